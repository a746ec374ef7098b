"""GroupIndex: a dataset's examples sorted by group, the index every draw reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.cells import as_integers, check_range, sort_by_cell

UNKNOWN = -1
"""Attribute value of an example whose attribute is not known."""
MIXED = -2
"""Label or attribute of a custom group whose members differ in it."""

IntArray = NDArray[Any]


@dataclass(frozen=True)
class GroupTable:
    """Rows of `GroupIndex.table()`: dicts with group, label, attribute, count, share. Prints as a table."""

    rows: tuple[dict[str, Any], ...]

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.rows[i]

    def __str__(self) -> str:
        head = ("group", "label", "attribute", "count", "share")
        body = [
            (str(r["group"]), str(r["label"]), str(r["attribute"]), f"{r['count']:,}", f"{100 * r['share']:.2f}%")
            for r in self.rows
        ]
        width = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.rjust(w) for cell, w in zip(line, width, strict=True)) for line in [head, *body]
        )


class GroupIndex:
    """The examples of a dataset sorted by group: cells (label, attribute) by default, any partition on request.

    Groups are the cells that occur, in lexicographic order of (label, attribute columns), unknown (-1) first. Built by
    a stable counting sort in O(N) time; the inputs are kept as they are, never widened, and the only array of length
    N that is made is `members`.

    Args:
        labels: class of each example, integers `[N]` in [0, 2^31), any integer dtype; NumPy array, tensor or list.
        attributes: spurious attribute of each example, integers `[N]` or `[N, K]` (K columns; the group is the cell of
            all of them), -1 where unknown. None: all examples share one attribute, 0.
        groups: a partition of your own, integers `[N]`: group of each example. Replaces the cells; labels and
            attributes are then only described and audited. Values without examples are empty groups.
        class_names, attribute_names: names for printouts, by value; attribute names are those of the spurious column.
        spurious: which attribute column is the spurious one that policies act on.

    Attributes:
        num_examples, num_groups, num_classes, num_attributes: N, G, 1 + the largest label, 1 + the largest attribute.
        offsets: int64 `[G + 1]`, group g holds positions offsets[g] to offsets[g + 1] of `members`.
        members: int32 (int64 from 2^31 examples on) `[N]`, or None where the examples are already in group order.
        group_labels, group_attributes: int64 `[G]`; attribute -1 is unknown, -2 marks a custom group that mixes values.
        cells: int64 `[G, 1 + K]`, label and every attribute column of each group (None for a custom partition).

    Raises:
        TypeError: for labels, attributes or groups that are not integers.
        ValueError: for an empty dataset, lengths that differ, negative labels, attributes below -1, or too few names.

    Example:
        >>> groups = GroupIndex([0, 0, 1, 1, 1], [0, 1, 1, 1, -1])
        >>> groups.sizes.tolist(), groups.group_labels.tolist(), groups.group_attributes.tolist()
        ([1, 1, 1, 2], [0, 0, 1, 1], [0, 1, -1, 1])
    """

    def __init__(
        self,
        labels: Any,
        attributes: Any = None,
        *,
        groups: Any = None,
        class_names: Sequence[str] | None = None,
        attribute_names: Sequence[str] | None = None,
        spurious: int = 0,
    ) -> None:
        self.labels: IntArray = as_integers(labels, "labels", (1,))
        self.num_examples = int(self.labels.shape[0])
        if self.num_examples == 0:
            raise ValueError("labels: the dataset is empty, need at least one example")
        self.attributes: IntArray | None = None
        if attributes is not None:
            self.attributes = as_integers(attributes, "attributes", (1, 2))
            self._check_length(self.attributes, "attributes")
        columns = self._attribute_columns()
        spurious = checks.integer(spurious, "spurious, an attribute column,", 0, max(1, len(columns)) - 1)
        self.spurious = spurious

        label_range = check_range(self.labels, "labels", 0)
        attribute_ranges = [check_range(c, "attributes", UNKNOWN) for c in columns]
        self.num_classes = label_range[1] + 1
        self.num_attributes = attribute_ranges[spurious][1] + 1 if columns else 1
        self.class_names = _names(class_names, self.num_classes, "class_names")
        self.attribute_names = _names(attribute_names, self.num_attributes, "attribute_names")
        if self.class_names is not None:
            self.num_classes = len(self.class_names)
        if self.attribute_names is not None:
            self.num_attributes = len(self.attribute_names)

        self.custom = groups is not None
        self.cells: NDArray[np.int64] | None = None
        if groups is None:
            cells, counts, self.members = sort_by_cell([self.labels, *columns], [label_range, *attribute_ranges])
            self.cells = cells
            self.group_labels = cells[:, 0].copy()
            self.group_attributes = cells[:, 1 + spurious].copy() if columns else np.zeros(len(cells), dtype=np.int64)
        else:
            partition = as_integers(groups, "groups", (1,))
            self._check_length(partition, "groups")
            low, high = check_range(partition, "groups", 0)
            if high >= 1 << 24:
                raise ValueError(f"groups: values must lie in [0, 2^24), found {high}")
            ids, present, self.members = sort_by_cell([partition], [(low, high)])
            counts = np.zeros(high + 1, dtype=np.int64)
            counts[ids[:, 0]] = present
        self.offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])
        self.num_groups = int(counts.size)
        if groups is not None:
            self.group_labels = self._value_within(self.labels)
            self.group_attributes = (
                self._value_within(columns[spurious]) if columns else np.zeros(self.num_groups, dtype=np.int64)
            )

    def _check_length(self, array: IntArray, name: str) -> None:
        if array.shape[0] != self.num_examples:
            raise ValueError(f"{name}: length {array.shape[0]} differs from the {self.num_examples} labels")

    def _attribute_columns(self) -> list[IntArray]:
        if self.attributes is None:
            return []
        if self.attributes.ndim == 1:
            return [self.attributes]
        return [self.attributes[:, k] for k in range(self.attributes.shape[1])]

    def _value_within(self, column: IntArray) -> NDArray[np.int64]:
        """The value that all members of a group share, MIXED where they differ or there are none."""
        values = np.full(self.num_groups, MIXED, dtype=np.int64)
        filled = np.flatnonzero(self.sizes)
        ordered = column if self.members is None else column[self.members]
        smallest = np.minimum.reduceat(ordered, self.offsets[filled])
        largest = np.maximum.reduceat(ordered, self.offsets[filled])
        values[filled] = np.where(smallest == largest, smallest.astype(np.int64), MIXED)
        return values

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples of each group, int64 `[G]`."""
        return np.diff(self.offsets)

    @property
    def spurious_attributes(self) -> IntArray | None:
        """The spurious attribute column `[N]`, as it was given, or None."""
        columns = self._attribute_columns()
        return columns[self.spurious] if columns else None

    def examples(self, group: int) -> IntArray:
        """Example numbers of a group, ascending."""
        start, stop = int(self.offsets[group]), int(self.offsets[group + 1])
        return np.arange(start, stop) if self.members is None else self.members[start:stop]

    def group_ids(self) -> NDArray[np.int32]:
        """Group of every example, int32 `[N]`."""
        by_position = np.repeat(np.arange(self.num_groups, dtype=np.int32), self.sizes)
        if self.members is None:
            return by_position
        ids = np.empty(self.num_examples, dtype=np.int32)
        ids[self.members] = by_position
        return ids

    def group_name(self, group: int) -> str:
        """A readable name, such as "landbird, water"."""
        if self.custom:
            return f"group {group}"
        label, attribute = int(self.group_labels[group]), int(self.group_attributes[group])
        if self.attributes is None:
            return self._class_name(label)
        if self.attributes.ndim == 2 and self.attributes.shape[1] > 1:
            assert self.cells is not None
            rest = ", ".join(str(v) for v in self.cells[group, 1:])
            return f"{self._class_name(label)}, ({rest})"
        return f"{self._class_name(label)}, {self._attribute_name(attribute)}"

    def _class_name(self, label: int) -> str:
        return "mixed" if label == MIXED else self.class_names[label] if self.class_names else f"y={label}"

    def _attribute_name(self, attribute: int) -> str:
        if attribute in (UNKNOWN, MIXED):
            return "unknown" if attribute == UNKNOWN else "mixed"
        return self.attribute_names[attribute] if self.attribute_names else f"a={attribute}"

    def table(self) -> GroupTable:
        """One row a group: group, label, attribute (names where given), count, share of the dataset."""
        rows = []
        for g, size in enumerate(self.sizes.tolist()):
            label, attribute = int(self.group_labels[g]), int(self.group_attributes[g])
            row: dict[str, Any] = {
                "group": g,
                "label": self.class_names[label] if self.class_names and label >= 0 else label,
                "attribute": self.attribute_names[attribute] if self.attribute_names and attribute >= 0 else attribute,
                "count": size,
                "share": size / self.num_examples,
            }
            if self.cells is not None and self.cells.shape[1] > 2:
                row["attribute"] = tuple(self.cells[g, 1:].tolist())
            rows.append(row)
        return GroupTable(tuple(rows))

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.offsets, self.group_labels, self.group_attributes, self.members):
            if part is not None:
                digest.update(np.ascontiguousarray(part).view(np.uint8).data)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """A hex digest of the grouping: equal for equal groups of equal examples."""
        return self._fingerprint

    def __repr__(self) -> str:
        return f"GroupIndex({self.num_examples:,} examples, {self.num_groups} groups)\n{self.table()}"


def _names(names: Sequence[str] | None, count: int, what: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    given = checks.strings(names, what)
    if len(given) < count:
        raise ValueError(f"{what}: {len(given)} names for values 0 to {count - 1}")
    return given


__all__ = ["MIXED", "UNKNOWN", "GroupIndex", "GroupTable"]
