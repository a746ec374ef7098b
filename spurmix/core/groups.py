"""`GroupIndex`: the examples of a dataset sorted by group, from which the draw tables are built."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spurmix.core import checks
from spurmix.core.array_types import Int64Array, IntArray
from spurmix.core.cells import as_attributes, as_integers, check_range, sort_by_cell
from spurmix.core.names import distinct_names, missing_notes, printable

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = -1
"""Attribute of an example whose attribute is unknown."""
MIXED = -2
"""Label or attribute of a custom group with several labels or attributes."""


Cell: TypeAlias = int | float | str | tuple[int, ...]
"""A value of a `GroupTable`."""


def _shown(value: Cell) -> str:
    """Return a label, an attribute, or attributes, as text."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return {UNKNOWN: "unknown", MIXED: "mixed"}.get(value, str(value)) if isinstance(value, int) else str(value)


@dataclass(frozen=True)
class GroupTable:
    """One row for each group. It prints as a table.

    Attributes:
        rows: Rows with the keys group, label, attribute, count and share.
    """

    rows: tuple[dict[str, Cell], ...]

    def __iter__(self) -> Iterator[dict[str, Cell]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Cell]:
        return self.rows[i]

    def names(self, column: str) -> list[str]:
        """Return a column as texts to show. Control characters are escaped, and names that look the same have quotes.

        The numbers -1 and -2 are shown as "unknown" and "mixed".

        Args:
            column: "label" or "attribute".

        Returns:
            The texts.
        """
        return [printable(name) for name in distinct_names(_shown(row[column]) for row in self.rows)]

    def __str__(self) -> str:
        head = ("group", "label", "attribute", "count", "share")
        body = [
            (str(r["group"]), label, attribute, f"{r['count']:,}", f"{r['share']:.2%}")
            for r, label, attribute in zip(self.rows, self.names("label"), self.names("attribute"), strict=True)
        ]
        width = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.rjust(w) for cell, w in zip(line, width, strict=True)) for line in [head, *body]
        )


class GroupIndex:
    """The examples of a dataset sorted by group.

    By default, the groups are the pairs (label, attribute) that occur, in lexicographic order with unknown attributes (-1)
    first. They are found with a stable counting sort in O(N) time. Inputs without missing values are not copied: the only
    array of length N that is allocated is `members`.

    Args:
        labels: Class of each example, integers `[N]` in [0, 2^31): an array, a tensor or a list.
        attributes: Spurious attribute of each example, whole numbers from 0, `[N]` or `[N, K]`. Unknown values are -1, None,
            NaN, pandas.NA or masked. With K columns, a group is a combination of the label and all columns. Default: all
            examples have the attribute 0.
        groups: Group of each example, integers `[N]` in [0, 2^24), instead of the groups by label and attribute. Numbers
            without examples are empty groups. Labels and attributes are then used for names and audits only.
        class_names: Names of the classes, by number.
        attribute_names: Names of the values of the spurious attribute, by number.
        spurious: Column of `attributes` on which the policies act.

    Attributes:
        labels: The labels as an array, `[N]`.
        attributes: The attributes as an array, `[N]` or `[N, K]`, -1 where unknown, or None.
        num_examples: Number of examples, N.
        num_groups: Number of groups, G.
        num_classes: Number of classes, C: the number of names, or the largest label + 1.
        num_attributes: Number of values of the spurious attribute, A: the number of names, or the largest value + 1.
        class_names: Names of the classes, or None.
        attribute_names: Names of the attributes, or None.
        spurious: Column of the spurious attribute.
        custom: Whether the argument `groups` was given.
        offsets: int64 `[G + 1]`. Group g has the positions offsets[g] to offsets[g + 1] - 1 of `members`.
        members: Example numbers by group, `[N]`, int32 (int64 for more than 2^31 examples). None if the examples are already
            in the order of the groups.
        group_labels: Label of each group, int64 `[G]`. -2 if the examples of a custom group have several labels.
        group_attributes: Spurious attribute of each group, int64 `[G]`. -1 if unknown, -2 if there are several.
        cells: Label and attributes of each group, int64 `[G, 1 + K]`. None for custom groups.
        target_groups: Number of groups, the last ones, with the target examples of `mixpro`.

    Raises:
        TypeError: If labels or groups are not integers, or attributes are not whole numbers.
        ValueError: If the dataset is empty, lengths differ, a value is out of range, or there are too few names. If the
            values of an attribute are exactly -1 and 1, which would make half of them unknown.

    Example:
        >>> groups = GroupIndex([0, 0, 1, 1, 1], [0, 1, 1, 1, -1])
        >>> groups.sizes.tolist(), groups.group_labels.tolist(), groups.group_attributes.tolist()
        ([1, 1, 1, 2], [0, 0, 1, 1], [0, 1, -1, 1])
    """

    target_groups: int = 0

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        attributes: ArrayLike | Tensor | None = None,
        *,
        groups: ArrayLike | Tensor | None = None,
        class_names: Sequence[str] | None = None,
        attribute_names: Sequence[str] | None = None,
        spurious: int = 0,
    ) -> None:
        self.labels: IntArray = as_integers(labels, "labels", (1,))
        self.num_examples = int(self.labels.shape[0])
        if self.num_examples == 0:
            raise ValueError("labels must have at least one example, got an empty dataset")
        self.attributes: IntArray | None = None
        if attributes is not None:
            self.attributes = as_attributes(attributes)
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
        self.cells: Int64Array | None = None
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
                raise ValueError(f"groups must be in [0, 2^24), got {high}")
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
            raise ValueError(f"{name} must have {self.num_examples} entries like labels, got {array.shape[0]}")

    def _attribute_columns(self) -> list[IntArray]:
        if self.attributes is None:
            return []
        if self.attributes.ndim == 1:
            return [self.attributes]
        return [self.attributes[:, k] for k in range(self.attributes.shape[1])]

    def _value_within(self, column: IntArray) -> Int64Array:
        """Value of each group's examples, `[G]`. MIXED if they differ or the group is empty."""
        values = np.full(self.num_groups, MIXED, dtype=np.int64)
        filled = np.flatnonzero(self.sizes)
        ordered = column if self.members is None else column[self.members]
        smallest = np.minimum.reduceat(ordered, self.offsets[filled])
        largest = np.maximum.reduceat(ordered, self.offsets[filled])
        values[filled] = np.where(smallest == largest, smallest.astype(np.int64), MIXED)
        return values

    def custom_cells(self) -> Int64Array:
        """Return the label and attributes of each group, int64 `[G, 1 + K]`, -2 where the examples of a group differ."""
        return np.stack([self._value_within(c) for c in (self.labels, *self._attribute_columns())], axis=1)

    @property
    def sizes(self) -> Int64Array:
        """Number of examples of each group, int64 `[G]`."""
        return np.diff(self.offsets)

    @property
    def spurious_attributes(self) -> IntArray | None:
        """The spurious attribute column as given, `[N]`, or None if there are no attributes."""
        columns = self._attribute_columns()
        return columns[self.spurious] if columns else None

    def examples(self, group: int) -> IntArray:
        """Return the example numbers of a group.

        Args:
            group: Number of the group.

        Returns:
            Ascending example numbers.
        """
        start, stop = int(self.offsets[group]), int(self.offsets[group + 1])
        return np.arange(start, stop) if self.members is None else self.members[start:stop]

    def group_ids(self) -> NDArray[np.int32]:
        """Return the group of each example, int32 `[N]`."""
        by_position = np.repeat(np.arange(self.num_groups, dtype=np.int32), self.sizes)
        if self.members is None:
            return by_position
        ids = np.empty(self.num_examples, dtype=np.int32)
        ids[self.members] = by_position
        return ids

    def group_name(self, group: int) -> str:
        """Return the name of a group, such as "landbird, water".

        Args:
            group: Number of the group.

        Returns:
            The name.
        """
        if self.custom:
            return f"group {group}"
        label, attribute = int(self.group_labels[group]), int(self.group_attributes[group])
        if self.attributes is None:
            return self._class_name(label)
        if self.attributes.ndim == 2 and self.attributes.shape[1] > 1:
            assert self.cells is not None
            values = [_shown(int(v)) for v in self.cells[group, 1:]]
            if self.attribute_names:
                values[self.spurious] = self._attribute_name(attribute)
            rest = ", ".join(values)
            return f"{self._class_name(label)}, ({rest})"
        return f"{self._class_name(label)}, {self._attribute_name(attribute)}"

    def _class_name(self, label: int) -> str:
        return _shown(label) if label == MIXED else self.class_names[label] if self.class_names else f"y={label}"

    def _attribute_name(self, attribute: int) -> str:
        if attribute in (UNKNOWN, MIXED):
            return _shown(attribute)
        return self.attribute_names[attribute] if self.attribute_names else f"a={attribute}"

    def table(self) -> GroupTable:
        """Describe the groups.

        Returns:
            A table with one row for each group: group, label and attribute (or their names), count, and share of the
            dataset.
        """
        rows = []
        for g, size in enumerate(self.sizes.tolist()):
            label, attribute = int(self.group_labels[g]), int(self.group_attributes[g])
            row: dict[str, Cell] = {
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
        """Return a digest of the groups and of the examples in each group.

        Returns:
            A hex string.
        """
        return self._fingerprint

    def __repr__(self) -> str:
        return f"GroupIndex({self.num_examples:,} examples, {self.num_groups} groups)\n{self.table()}"


def _names(names: Sequence[str] | None, count: int, what: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    given = checks.names(names, what)
    if what == "attribute_names":
        for note in missing_notes(given, f"{what}:", "code these examples as unknown (-1)", any_case=False):
            warnings.warn(note, UserWarning, stacklevel=4)
    if len(given) < count:
        raise ValueError(f"{what} must have a name for each value from 0 to {count - 1}, got {len(given)} names")
    return given


__all__ = ["MIXED", "UNKNOWN", "GroupIndex", "GroupTable"]
