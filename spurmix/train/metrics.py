"""Per-group statistics, in NumPy: accuracies, Wilson intervals, worst group, adjusted average, confusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.groups import MIXED, GroupIndex

Z95 = 1.959963984540054


def wilson(correct: int, total: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion (Wilson 1927); (0, 1) for an empty group."""
    if total == 0:
        return 0.0, 1.0
    p, z2 = correct / total, Z95 * Z95 / total
    centre, half = p + z2 / 2, Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total))
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy of one group with its 95% Wilson interval; one that is too small does not decide the worst group."""

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
    """Groups that overlap: an example may lie in none, one or several of K cells.

    Attributes:
        members: bool `[N, K]`. names: of the K cells.
    """

    members: NDArray[np.bool_]
    names: tuple[str, ...]

    @classmethod
    def of(cls, membership: Any, names: Sequence[str] | None, examples: int) -> Cells:
        """Checked cells of `examples` examples; `names` default to "cell 0", "cell 1", ...

        Raises:
            TypeError: for a matrix that is not boolean. ValueError: for another shape, or names that do not fit.
        """
        members = np.asarray(membership.cpu() if hasattr(membership, "cpu") else membership)
        if members.dtype != np.bool_:
            raise TypeError(f"membership must be a boolean matrix [N, K], got {members.dtype}")
        if members.ndim != 2 or members.shape[0] != examples or members.shape[1] == 0:
            raise ValueError(
                f"membership must have shape [{examples}, K] with K of 1 or more, got {list(members.shape)}"
            )
        unnamed = tuple(f"cell {k}" for k in range(members.shape[1]))
        chosen = checks.strings(names, "cell_names") if names is not None else unnamed
        if len(chosen) != members.shape[1] or len(set(chosen)) != len(chosen):
            raise ValueError(f"cell_names: need {members.shape[1]} different names, got {', '.join(chosen)}")
        return cls(members, chosen)


@dataclass(frozen=True)
class Evaluation:
    """Per-group accuracy of a model.

    Attributes:
        groups: every non-empty group of the partition.
        worst_group: the lowest accuracy of a group that is large enough, of a cell where there are cells; worst_name:
            that group or cell.
        average: accuracy over all examples.
        adjusted_average: group accuracies weighted by `weights_from` group sizes ("training" or "evaluation").
        confusion: int64 `[groups, classes, predicted]`.
        cells: every non-empty cell of a membership matrix, in its order.
        min_group_size: examples that a group needs to decide `worst_group`.
    """

    groups: tuple[GroupAccuracy, ...]
    worst_group: float
    worst_name: str
    average: float
    adjusted_average: float
    weights_from: str
    confusion: NDArray[np.int64]
    cells: tuple[GroupAccuracy, ...] = ()
    min_group_size: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain JSON types."""
        return {
            "worst_group": self.worst_group,
            "worst_name": self.worst_name,
            "average": self.average,
            "adjusted_average": self.adjusted_average,
            "weights_from": self.weights_from,
            "min_group_size": self.min_group_size,
            "groups": [vars(g).copy() for g in self.groups],
            "cells": [vars(g).copy() for g in self.cells],
            "confusion": self.confusion.tolist(),
        }

    def __str__(self) -> str:
        width = max(5, *(len(g.name) for g in self.groups + self.cells))
        lines = []
        for head, rows in (("group", self.groups), ("cell", self.cells)):
            if rows:
                lines.append(f"{head:<{width}}  {'count':>8}  accuracy  95% interval")
            lines += [
                f"{g.name:<{width}}  {g.count:>8,}  {100 * g.accuracy:7.2f}%  {100 * g.low:.1f} to {100 * g.high:.1f}"
                + ("" if g.decides else f"  (below {self.min_group_size})")
                for g in rows
            ]
        lines.append(
            f"worst {'cell' if self.cells else 'group'} {100 * self.worst_group:.2f}% ({self.worst_name}), "
            f"average {100 * self.average:.2f}%, "
            f"adjusted average {100 * self.adjusted_average:.2f}% (weights: {self.weights_from} group sizes)"
        )
        return "\n".join(lines)


def _row(name: str, label: int, attribute: int, table: NDArray[np.int64], min_group_size: int) -> GroupAccuracy:
    """The row of a confusion table `[classes, predicted]` that is not empty."""
    right, count = int(np.trace(table)), int(table.sum())
    interval = wilson(right, count)
    return GroupAccuracy(name, label, attribute, count, right, right / count, *interval, count >= min_group_size)


def summarise(
    confusion: NDArray[np.int64],
    groups: GroupIndex,
    train_groups: GroupIndex | None = None,
    *,
    cells: tuple[GroupAccuracy, ...] = (),
    min_group_size: int = 1,
) -> Evaluation:
    """The evaluation of a confusion table `[G, classes, predicted]`.

    Args:
        train_groups: groups whose sizes weigh the adjusted average, matched by (label, attribute); default `groups`.
        cells: overlapping cells, which then decide the worst group.
        min_group_size: groups (cells) of fewer examples are reported but do not decide it.
        The options as `check_options` wants them.
    """
    total = confusion.sum(axis=(1, 2))
    rows = [
        _row(groups.group_name(int(g)), int(groups.group_labels[g]), int(groups.group_attributes[g]), confusion[g],
             min_group_size)
        for g in np.flatnonzero(total)
    ]  # fmt: skip
    accuracies = np.array([r.accuracy for r in rows])
    weights = np.array([_weight(r.label, r.attribute, r.count, train_groups) for r in rows], dtype=np.float64)
    worst = min((r for r in cells or rows if r.decides), key=lambda r: r.accuracy)
    return Evaluation(
        tuple(rows),
        worst.accuracy,
        worst.name,
        sum(r.correct for r in rows) / int(total.sum()),
        float(weights @ accuracies / weights.sum()),
        "evaluation" if train_groups is None else "training",
        confusion,
        cells,
        min_group_size,
    )


def _weight(label: int, attribute: int, count: int, train_groups: GroupIndex | None) -> int:
    if train_groups is None:
        return count
    same = (train_groups.group_labels == label) & (train_groups.group_attributes == attribute)
    return int(train_groups.sizes[same].sum())


def check_options(
    groups: GroupIndex,
    *,
    train_groups: GroupIndex | None = None,
    membership: Any = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
) -> tuple[Cells | None, int]:
    """What `evaluate` can check before a model works for minutes: the cells, and min_group_size as a Python integer.

    Raises:
        TypeError, ValueError: as of `evaluate`, for all that needs no logits.
    """
    min_group_size = checks.integer(min_group_size, "min_group_size", 1)
    checks.instance(train_groups, "train_groups", GroupIndex, optional=True)
    if membership is None and cell_names is not None:
        raise ValueError("cell_names: there is no membership matrix that they name the columns of")
    cells = Cells.of(membership, cell_names, groups.num_examples) if membership is not None else None
    if cells is not None and not cells.members.any():
        raise ValueError("membership: no example lies in any cell")
    found = zip(groups.group_labels.tolist(), groups.group_attributes.tolist(), groups.sizes.tolist(), strict=True)
    if not any(count and _weight(label, attribute, count, train_groups) for label, attribute, count in found):
        raise ValueError("train_groups: none of the evaluated groups occurs in training")
    largest = int((cells.members.sum(axis=0) if cells is not None else groups.sizes).max())
    if largest < min_group_size:
        raise ValueError(f"min_group_size {min_group_size}: the largest group has only {largest} examples")
    return cells, min_group_size


def confusion_of(
    labels: NDArray[Any], predicted: NDArray[Any], group: NDArray[Any], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Counts `[G, classes, classes]` of (group, label, prediction); shape = (G, classes)."""
    groups, classes = shape
    cell = (group.astype(np.int64) * classes + labels) * classes + predicted
    return np.bincount(cell, minlength=groups * classes * classes).reshape(groups, classes, classes).astype(np.int64)


def _cell_rows(
    cells: Cells, labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int, min_group_size: int
) -> tuple[GroupAccuracy, ...]:
    """A row for every cell that has examples; label -2 where its examples differ in it, attribute -2."""
    rows = []
    for name, member in zip(cells.names, cells.members.T, strict=True):
        if not member.any():
            continue
        own = labels[member]
        table = confusion_of(own, predicted[member], np.zeros_like(own), (1, classes))[0]
        label = int(own[0]) if (own == own[0]).all() else MIXED
        rows.append(_row(name, label, MIXED, table, min_group_size))
    return tuple(rows)


def evaluate_logits(
    logits: Any,
    groups: GroupIndex,
    *,
    train_groups: GroupIndex | None = None,
    membership: Any = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
) -> Evaluation:
    """The evaluation of logits `[N, classes]` of the examples of `groups`, in order; arguments as of `evaluate`.

    Raises:
        TypeError, ValueError: for another number of rows, logits that are not finite, labels the logits have no class
            for, or a membership matrix that does not fit.
    """
    cells, min_group_size = check_options(
        groups, train_groups=train_groups, membership=membership, cell_names=cell_names, min_group_size=min_group_size
    )
    array = np.asarray(logits.detach().cpu().float() if hasattr(logits, "detach") else logits)
    if array.ndim != 2 or array.shape[0] != groups.num_examples:
        raise ValueError(f"logits must have shape [{groups.num_examples}, classes], got {list(array.shape)}")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(f"logits of example {at} are not finite")
    if groups.labels.max() >= array.shape[1]:
        raise ValueError(f"labels go up to {groups.labels.max()}, but the model has {array.shape[1]} classes")
    return _evaluate_predictions(array.argmax(axis=1), array.shape[1], groups, train_groups, cells, min_group_size)


def evaluate_predictions(
    predicted: NDArray[np.int64],
    classes: int,
    groups: GroupIndex,
    *,
    train_groups: GroupIndex | None = None,
    membership: object = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
) -> Evaluation:
    """Evaluate predicted classes.

    Args:
        predicted: Predicted class of each example of `groups`, int64 `[N]`. -1 marks logits that are not finite.
        classes: Number of classes that the model predicts.
        groups: Groups of the examples.
        train_groups: See `evaluate`.
        membership: See `evaluate`.
        cell_names: See `evaluate`.
        min_group_size: See `evaluate`.

    Returns:
        The evaluation, equal to that of the logits.

    Raises:
        ValueError: If logits are not finite, or a label is not smaller than `classes`.
    """
    cells, min_group_size = check_options(
        groups, train_groups=train_groups, membership=membership, cell_names=cell_names, min_group_size=min_group_size
    )
    if (predicted < 0).any():
        raise ValueError(f"logits of example {int(np.flatnonzero(predicted < 0)[0])} are not finite")
    if groups.labels.max() >= classes:
        raise ValueError(f"labels go up to {groups.labels.max()}, but the model has {classes} classes")
    return _evaluate_predictions(predicted, classes, groups, train_groups, cells, min_group_size)


def _evaluate_predictions(
    predicted: NDArray[np.int64],
    classes: int,
    groups: GroupIndex,
    train_groups: GroupIndex | None,
    cells: Cells | None,
    min_group_size: int,
) -> Evaluation:
    labels = groups.labels.astype(np.int64)
    confusion = confusion_of(labels, predicted, groups.group_ids(), (groups.num_groups, classes))
    rows = _cell_rows(cells, labels, predicted, classes, min_group_size) if cells is not None else ()
    return summarise(confusion, groups, train_groups, cells=rows, min_group_size=min_group_size)
