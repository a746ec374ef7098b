"""Join of the groups of two datasets: by names where both have names, by numbers otherwise, always by the whole cell."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spurmix.core.array_types import Int64Array
from spurmix.core.groups import MIXED, GroupIndex
from spurmix.core.names import join_similarity_notes, listed, without_inferred

EVALUATED, TRAINING = "the evaluated groups", "train_groups"
REMEDY = (
    "give the group numbers as an attribute column of both datasets instead of groups=..., or omit train_groups to weight "
    "by the evaluated sizes"
)
"""What to do with custom groups that cannot be joined: their numbers may mean something else in another dataset."""


@dataclass(frozen=True)
class JoinedSizes:
    """Sizes of training groups, joined to the groups of another dataset.

    Attributes:
        sizes: Number of training examples of each group of the other dataset, int64 `[G]`. 0 if training lacks the group.
        missing: Names of the training groups that have no examples in the other dataset.
        notes: Differences between the two datasets that a reader of the result should know.
    """

    sizes: Int64Array
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()


def join_sizes(groups: GroupIndex, train_groups: GroupIndex) -> JoinedSizes:
    """Find the number of training examples of each group.

    Two groups are the same if their label and all their attributes are. Labels and values of the spurious attribute are
    compared by name if both sides have names, and by number otherwise. The numbers of custom groups are not compared: a
    custom group can be joined if all its examples have one label and one combination of attributes.

    Args:
        groups: Groups of the examples of a split.
        train_groups: Groups of the training examples.

    Returns:
        The sizes, and the training groups that the split lacks.

    Raises:
        ValueError: If the groups cannot be compared.
    """
    if groups is train_groups:
        return JoinedSizes(groups.sizes, ())
    rows, train_rows = np.flatnonzero(groups.sizes), np.flatnonzero(train_groups.sizes)
    cells, train_cells = _cells(groups, EVALUATED), _cells(train_groups, TRAINING)
    _check_columns(groups, cells, train_groups, train_cells)
    notes = _renumber(train_cells, groups, train_groups)
    _, key = np.unique(np.concatenate([cells, train_cells]), axis=0, return_inverse=True)
    own, train = key.reshape(-1)[: rows.size], key.reshape(-1)[rows.size :]
    if groups.custom:
        _check_different(own, rows, EVALUATED)
        if train_groups.custom:  # they may divide a cell in another way than the evaluated groups
            _check_different(train, train_rows, TRAINING)
    by_key = np.zeros(key.size, dtype=np.int64)
    np.add.at(by_key, train, train_groups.sizes[train_rows])
    sizes = np.zeros(groups.num_groups, dtype=np.int64)
    sizes[rows] = by_key[own]
    missing = train_rows[~np.isin(train, own)]
    return JoinedSizes(sizes, tuple(train_groups.group_name(int(g)) for g in missing), notes)


def _check_different(keys: Int64Array, rows: Int64Array, what: str) -> None:
    """Check that custom groups have different cells."""
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    if same.size:
        first, second = (int(rows[order[k]]) for k in (same[0], same[0] + 1))
        raise ValueError(
            f"train_groups: groups {first} and {second} of {what} have the same label and attributes, so training "
            f"examples cannot be assigned to them; {REMEDY}"
        )


def check_name_order(names: Sequence[str], groups: GroupIndex, argument: str) -> None:
    """Raise a ValueError if a class has another number in `names` than in the class names of `groups`."""
    _warn_of_similar(names, groups.class_names or (), argument, stacklevel=4)
    known = {name: k for k, name in enumerate(groups.class_names or ())}
    for k, name in enumerate(names):
        if known.get(name, k) != k:
            raise ValueError(
                f"{argument}: class {name!r} has the number {k}, but the groups give it the number {known[name]}; use "
                "the same order"
            )


def _warn_of_similar(names: Sequence[str], others: Sequence[str], argument: str, stacklevel: int = 6) -> None:
    for note in join_similarity_notes(names, others, f"{argument} of two datasets:"):
        warnings.warn(note, UserWarning, stacklevel=stacklevel)


def _cells(groups: GroupIndex, what: str) -> Int64Array:
    """Label and attributes of each group that has examples, `[F, 1 + K]`. Without attributes, K is 1 and all are 0."""
    if groups.cells is not None:
        cells = groups.cells.copy()
    else:
        cells = groups.custom_cells()[groups.sizes > 0]
        mixed = np.flatnonzero((cells == MIXED).any(axis=1))
        if mixed.size:
            number = int(np.flatnonzero(groups.sizes)[mixed[0]])
            raise ValueError(
                f"train_groups: group {number} of {what} has several labels or attributes, so it cannot be joined to a "
                f"group of the other dataset; {REMEDY}"
            )
    return cells if groups.attributes is not None else np.column_stack([cells, np.zeros_like(cells)])


def _check_columns(groups: GroupIndex, cells: Int64Array, train_groups: GroupIndex, train_cells: Int64Array) -> None:
    """Check that both sides have the same attribute columns."""
    counts = [0 if index.attributes is None else values.shape[1] - 1
              for index, values in ((groups, cells), (train_groups, train_cells))]  # fmt: skip
    only_zero = {0, 1} == set(counts) and not (cells[:, 1:].any() or train_cells[:, 1:].any())
    if counts[0] != counts[1] and not only_zero:
        raise ValueError(
            f"train_groups must have the same attribute columns as the evaluated groups, which have {counts[0]}, got "
            f"{counts[1]}"
        )
    if groups.spurious != train_groups.spurious:
        raise ValueError(
            f"train_groups must have the same spurious column as the evaluated groups ({groups.spurious}), got "
            f"{train_groups.spurious}"
        )


def _renumber(train_cells: Int64Array, groups: GroupIndex, train_groups: GroupIndex) -> tuple[str, ...]:
    """Replace the numbers of named training values by those of `groups`, in place. Returns notes."""
    notes: tuple[str, ...] = ()
    columns = [
        (0, "class_names", groups.class_names, train_groups.class_names),
        (1 + groups.spurious, "attribute_names", groups.attribute_names, train_groups.attribute_names),
    ]
    for column, argument, names, train_names in columns:
        if names is None or train_names is None:
            continue
        if column > 0:
            names, train_names = (tuple(map(without_inferred, given)) for given in (names, train_names))
        if names == train_names:
            continue
        for repeated in (names, train_names):
            if len(set(repeated)) < len(repeated):
                raise ValueError(f"{argument} must be different names to be compared, got {listed(repeated)}")
        _warn_of_similar(names, train_names, argument)
        known = {name: k for k, name in enumerate(names)}
        renumbered = np.array([known.get(name, len(names) + k) for k, name in enumerate(train_names)], dtype=np.int64)
        shared = [k for k, name in enumerate(train_names) if name in known]
        if column == 0 and any(renumbered[k] != k for k in shared):
            notes = ("classes have other numbers in training; predictions are compared by the numbers of this split",)
        named = train_cells[:, column] >= 0
        train_cells[named, column] = renumbered[train_cells[named, column]]
    return notes
