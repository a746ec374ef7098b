"""Per-group statistics in NumPy: accuracies, Wilson intervals, worst group, adjusted average, confusion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spurmix.core import checks
from spurmix.core.group_join import JoinedSizes, join_sizes
from spurmix.core.groups import MIXED, GroupIndex
from spurmix.core.names import distinct_names, listed, printable

if TYPE_CHECKING:
    from torch import Tensor

Z95 = 1.959963984540054
MAX_CONFUSION_ENTRIES = 10_000_000
"""Maximum size of a confusion table in `Evaluation.to_dict`."""


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Compute the 95% Wilson score interval of a proportion (Wilson 1927).

    Args:
        correct: Number of successes, in [0, total].
        total: Number of trials, 0 or more.

    Returns:
        The lower and upper bound, (0, 1) if `total` is 0.
    """
    if total == 0:
        return 0.0, 1.0
    p, z2 = correct / total, Z95 * Z95 / total
    center, half = p + z2 / 2, Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total))
    return max(0.0, (center - half) / (1 + z2)), min(1.0, (center + half) / (1 + z2))


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy of one group or cell.

    Attributes:
        name: Name of the group or cell.
        label: Label of its examples, -2 if they differ.
        attribute: Attribute of its examples, -1 if unknown, -2 if they differ.
        count: Number of examples.
        correct: Number of correct predictions.
        accuracy: `correct / count`.
        low: Lower bound of the 95% Wilson interval.
        high: Upper bound of the 95% Wilson interval.
        decides: Whether it is large enough to be the worst group.
    """

    name: str
    label: int
    attribute: int
    count: int
    correct: int
    accuracy: float
    low: float
    high: float
    decides: bool = True


@dataclass(frozen=True)
class Cells:
    """Groups that may overlap. An example is in any number of the K cells.

    Attributes:
        members: Membership matrix, bool `[N, K]`.
        names: Names of the K cells.
    """

    members: NDArray[np.bool_]
    names: tuple[str, ...]

    @classmethod
    def of(cls, membership: ArrayLike | Tensor, names: Sequence[str] | None, examples: int) -> Cells:
        """Check a membership matrix and the names of its columns.

        Args:
            membership: Boolean matrix `[N, K]`.
            names: Names of the K cells. Default: "cell 0", "cell 1", ...
            examples: N.

        Returns:
            The cells.

        Raises:
            TypeError: If the matrix is not boolean.
            ValueError: If the shape of the matrix or the number of names is wrong, or names repeat.
        """
        if np.ma.is_masked(membership):
            raise ValueError("membership must not have masked values; decide whether each example is in each cell")
        members = np.asarray(membership.cpu() if hasattr(membership, "cpu") else membership)
        if members.dtype != np.bool_:
            raise TypeError(f"membership must be a boolean matrix [N, K], got {members.dtype}")
        if members.ndim != 2 or members.shape[0] != examples or members.shape[1] == 0:
            raise ValueError(
                f"membership must have shape [{examples}, K] with K of 1 or more, got {list(members.shape)}"
            )
        unnamed = tuple(f"cell {k}" for k in range(members.shape[1]))
        chosen = checks.names(names, "cell_names") if names is not None else unnamed
        if len(chosen) != members.shape[1] or len(set(chosen)) != len(chosen):
            raise ValueError(f"cell_names must be {members.shape[1]} different names, got {listed(chosen)}")
        return cls(members, chosen)


@dataclass(frozen=True)
class Counts:
    """Counts of predictions, from which `summarize` computes an `Evaluation`. They can be summed over processes.

    Attributes:
        groups: Correct and total predictions of each group, int64 `[G, 2]`.
        cells: Correct and total predictions of each cell, int64 `[K, 2]`. K is 0 without cells.
        predictions: Number of predictions of each class for each row of `LabelPairs`, int64 `[R, C]`.
    """

    groups: NDArray[np.int64]
    cells: NDArray[np.int64]
    predictions: NDArray[np.int64]


@dataclass(frozen=True)
class LabelPairs:
    """The pairs of a group and a label that occur: one per group if groups are cells of label and attribute.

    Attributes:
        pairs: Group and label of each pair, int64 `[R, 2]`.
        row: Row in `pairs` of each example, int64 `[N]`.
    """

    pairs: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, groups: GroupIndex) -> LabelPairs:
        """Find the pairs of an index."""
        labels = groups.labels.astype(np.int64)
        count = int(labels.max()) + 1
        keys, row = np.unique(groups.group_ids().astype(np.int64) * count + labels, return_inverse=True)
        return cls(np.stack(np.divmod(keys, count), axis=1), row.reshape(-1))


@dataclass(frozen=True)
class Evaluation:
    """Per-group accuracy of a model.

    Attributes:
        groups: Accuracy of each group that has examples.
        worst_group: Lowest accuracy of a group that is large enough, or of a cell if there are cells.
        worst_name: Name of that group or cell.
        average: Accuracy over all examples.
        adjusted_average: Average of group accuracies, weighted by group sizes.
        weights_from: Origin of these sizes: "training" or "evaluation".
        num_groups: Number of groups G, including empty ones.
        pairs: Pairs of a group and a label that occur, int64 `[R, 2]`.
        predictions: Number of predictions of each class for each pair, int64 `[R, C]`.
        cells: Accuracy of each cell that has examples, in the order of the membership matrix.
        min_group_size: Minimum size of a group or cell that can be the worst group.
        missing_groups: Names of the training groups without examples here. They cannot be the worst group, and the
            adjusted average leaves them out.
        untrained_groups: Names of the groups that training lacks. Their weight in the adjusted average is 0.
        notes: Other differences between training and this evaluation.
    """

    groups: tuple[GroupAccuracy, ...]
    worst_group: float
    worst_name: str
    average: float
    adjusted_average: float
    weights_from: str
    num_groups: int
    pairs: NDArray[np.int64]
    predictions: NDArray[np.int64]
    cells: tuple[GroupAccuracy, ...] = ()
    min_group_size: int = 1
    missing_groups: tuple[str, ...] = ()
    untrained_groups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Number of examples by group, label and predicted class, int64 `[G, C, C]`. Each access builds the table."""
        classes = self.predictions.shape[1]
        table = np.zeros((self.num_groups, classes, classes), dtype=np.int64)
        table[self.pairs[:, 0], self.pairs[:, 1]] = self.predictions
        return table

    def to_dict(self) -> dict[str, object]:
        """Convert to JSON types. `confusion` is None if it has more than `MAX_CONFUSION_ENTRIES` entries."""
        small = self.num_groups * self.predictions.shape[1] ** 2 <= MAX_CONFUSION_ENTRIES
        return {
            "worst_group": self.worst_group,
            "worst_name": self.worst_name,
            "average": self.average,
            "adjusted_average": self.adjusted_average,
            "weights_from": self.weights_from,
            "min_group_size": self.min_group_size,
            "missing_groups": list(self.missing_groups),
            "untrained_groups": list(self.untrained_groups),
            "notes": list(self.notes),
            "groups": [vars(g).copy() for g in self.groups],
            "cells": [vars(g).copy() for g in self.cells],
            "confusion": self.confusion.tolist() if small else None,
        }

    def __str__(self) -> str:
        shown = self._shown_names()
        width = max(5, *(len(shown[g.name]) for g in self.groups + self.cells))
        lines = []
        for head, rows in (("group", self.groups), ("cell", self.cells)):
            if rows:
                lines.append(f"{head:<{width}}  {'count':>8}  accuracy  95% interval")
            lines += [
                f"{shown[g.name]:<{width}}  {g.count:>8,}  {100 * g.accuracy:7.2f}%  {100 * g.low:.1f} to {100 * g.high:.1f}"
                + ("" if g.decides else f"  (below {self.min_group_size})")
                for g in rows
            ]
        lines.append(
            f"worst {'cell' if self.cells else 'group'} {100 * self.worst_group:.2f}% ({shown[self.worst_name]}), "
            f"average {100 * self.average:.2f}%, "
            f"adjusted average {100 * self.adjusted_average:.2f}% (weights: {self.weights_from} group sizes)"
        )
        return "\n".join(lines + [f"note: {printable(remark)}" for remark in self.remarks()])

    def _shown_names(self) -> dict[str, str]:
        """Return how each name is shown: escaped, and with repr if another one looks the same."""
        rows = [row.name for row in self.groups + self.cells]
        names = [*dict.fromkeys([*rows, *self.missing_groups, *self.untrained_groups])]
        return {name: printable(text) for name, text in zip(names, distinct_names(names), strict=True)}

    def remarks(self) -> list[str]:
        """Return sentences about groups that only training or only this evaluation has, and the notes."""
        remarks, shown = [], self._shown_names()
        if self.missing_groups:
            remarks.append(
                f"training groups without examples here: {_in_brackets(shown, self.missing_groups)}; the worst group and "
                "the adjusted average do not include them"
            )
        if self.untrained_groups:
            remarks.append(
                f"groups without training examples: {_in_brackets(shown, self.untrained_groups)}; the adjusted average does "
                "not include them"
            )
        return [*remarks, *self.notes]


def _in_brackets(shown: Mapping[str, str], names: Sequence[str], most: int = 8) -> str:
    """Join names in brackets. Long lists are shortened."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(f"[{shown[name]}]" for name in names[:most]) + more


@dataclass(frozen=True)
class EvaluationOptions:
    """Checked options of an evaluation.

    Attributes:
        training: Training sizes of the groups, which weight the adjusted average. None: the sizes of the groups.
        cells: Overlapping cells that decide the worst group.
        min_group_size: Minimum size of a group or cell that can be the worst group.
    """

    training: JoinedSizes | None
    cells: Cells | None
    min_group_size: int


def check_options(
    groups: GroupIndex,
    *,
    train_groups: GroupIndex | None = None,
    membership: ArrayLike | Tensor | None = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
) -> EvaluationOptions:
    """Check the options of `evaluate` before a model runs.

    Args:
        groups: Groups of the examples.
        train_groups: See `evaluate`.
        membership: See `evaluate`.
        cell_names: See `evaluate`.
        min_group_size: See `evaluate`.

    Returns:
        The options.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is invalid for these groups.
    """
    min_group_size = checks.integer(min_group_size, "min_group_size", 1)
    checks.instance(train_groups, "train_groups", GroupIndex, optional=True)
    if membership is None and cell_names is not None:
        raise ValueError("cell_names requires membership, the matrix of these cells")
    cells = Cells.of(membership, cell_names, groups.num_examples) if membership is not None else None
    if cells is not None and not cells.members.any():
        raise ValueError("membership: all cells are empty; at least one cell must have examples")
    training = join_sizes(groups, train_groups) if train_groups is not None else None
    if training is not None and not training.sizes.any():
        raise ValueError("train_groups: none of the evaluated groups occurs in training")
    largest = int((cells.members.sum(axis=0) if cells is not None else groups.sizes).max())
    if largest < min_group_size:
        raise ValueError(f"min_group_size is {min_group_size}, but the largest group has only {largest} examples")
    return EvaluationOptions(training, cells, min_group_size)


def check_labels(groups: GroupIndex, classes: int) -> None:
    """Raise a ValueError if a label is not smaller than the number of classes of the model."""
    if groups.labels.max() >= classes:
        raise ValueError(f"labels go up to {groups.labels.max()}, but the model has {classes} classes")


def evaluate_logits(
    logits: ArrayLike | Tensor,
    groups: GroupIndex,
    *,
    train_groups: GroupIndex | None = None,
    membership: ArrayLike | Tensor | None = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
) -> Evaluation:
    """Measure the accuracy of logits on each group.

    Args:
        logits: Logits `[N, C]` of the examples of `groups`, in order.
        groups: Groups of the examples.
        train_groups: See `evaluate`.
        membership: See `evaluate`.
        cell_names: See `evaluate`.
        min_group_size: See `evaluate`.

    Returns:
        The evaluation, equal to that of `evaluate`.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If the shape is wrong, logits are not finite, a label has no logit, or an option is invalid.
    """
    options = check_options(
        groups, train_groups=train_groups, membership=membership, cell_names=cell_names, min_group_size=min_group_size
    )
    array = np.asarray(logits.detach().cpu().float() if hasattr(logits, "detach") else logits)
    if array.ndim != 2 or array.shape[0] != groups.num_examples:
        raise ValueError(f"logits must have shape [{groups.num_examples}, C], got {list(array.shape)}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(f"logits of example {int(finite.argmin())} are not finite")
    check_labels(groups, array.shape[1])
    pairs = LabelPairs.of(groups)
    return summarize(_count(array.argmax(axis=1), array.shape[1], groups, pairs, options.cells), groups, pairs, options)


def _count(
    predicted: NDArray[np.int64], classes: int, groups: GroupIndex, pairs: LabelPairs, cells: Cells | None
) -> Counts:
    """Count predicted classes, int64 `[N]`."""
    correct, ids = predicted == groups.labels, groups.group_ids()
    of_groups = [np.bincount(chosen, minlength=groups.num_groups) for chosen in (ids[correct], ids)]
    of_cells = np.zeros((0, 2), dtype=np.int64)
    if cells is not None:
        of_cells = np.stack([cells.members[correct].sum(axis=0), cells.members.sum(axis=0)], axis=1)
    rows = len(pairs.pairs)
    predictions = np.bincount(pairs.row * classes + predicted, minlength=rows * classes).reshape(rows, classes)
    return Counts(np.stack(of_groups, axis=1), of_cells, predictions)


def summarize(counts: Counts, groups: GroupIndex, pairs: LabelPairs, options: EvaluationOptions) -> Evaluation:
    """Compute an evaluation from counts.

    Args:
        counts: Counts of all examples.
        groups: Groups of the examples.
        pairs: Pairs of a group and a label, the rows of `counts.predictions`.
        options: Checked options.

    Returns:
        The evaluation.
    """
    smallest, training = options.min_group_size, options.training
    present = np.flatnonzero(counts.groups[:, 1])
    rows = [
        _row(groups.group_name(g), int(groups.group_labels[g]), int(groups.group_attributes[g]), counts.groups[g],
             smallest)
        for g in map(int, present)
    ]  # fmt: skip
    cells = tuple(_cell_rows(options.cells, counts.cells, groups, smallest)) if options.cells is not None else ()
    accuracies = np.array([r.accuracy for r in rows])
    weights = (counts.groups[:, 1] if training is None else training.sizes)[present].astype(np.float64)
    worst = min((r for r in cells or rows if r.decides), key=lambda r: r.accuracy)
    correct, total = counts.groups.sum(axis=0).tolist()
    return Evaluation(
        groups=tuple(rows),
        worst_group=worst.accuracy,
        worst_name=worst.name,
        average=correct / total,
        adjusted_average=float(weights @ accuracies / weights.sum()),
        weights_from="evaluation" if training is None else "training",
        num_groups=groups.num_groups,
        pairs=pairs.pairs,
        predictions=counts.predictions,
        cells=cells,
        min_group_size=smallest,
        missing_groups=training.missing if training is not None else (),
        untrained_groups=tuple(row.name for row, weight in zip(rows, weights, strict=True) if not weight),
        notes=training.notes if training is not None else (),
    )


def _row(name: str, label: int, attribute: int, counts: NDArray[np.int64], min_group_size: int) -> GroupAccuracy:
    """Create the row of a group from its counts (correct, total). The total must be positive."""
    correct, count = counts.tolist()
    interval = wilson(correct, count)
    return GroupAccuracy(name, label, attribute, count, correct, correct / count, *interval, count >= min_group_size)


def _cell_rows(
    cells: Cells, counts: NDArray[np.int64], groups: GroupIndex, min_group_size: int
) -> Iterable[GroupAccuracy]:
    """Create a row for each cell that has examples."""
    for name, member, count in zip(cells.names, cells.members.T, counts, strict=True):
        if not count[1]:
            continue
        labels = groups.labels[member]
        label = int(labels[0]) if (labels == labels[0]).all() else MIXED
        yield _row(name, label, MIXED, count, min_group_size)
