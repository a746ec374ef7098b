"""Per-group statistics, in NumPy: accuracies, Wilson intervals, worst group, adjusted average, confusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core.groups import GroupIndex

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
    """Accuracy of one group with its 95% Wilson interval."""

    name: str
    label: int
    attribute: int
    count: int
    correct: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Per-group accuracy of a model.

    Attributes:
        groups: every non-empty group.
        worst_group: the lowest group accuracy; worst_name: that group.
        average: accuracy over all examples.
        adjusted_average: group accuracies weighted by `weights_from` group sizes ("training" or "evaluation").
        confusion: int64 `[groups, classes, predicted]`.
    """

    groups: tuple[GroupAccuracy, ...]
    worst_group: float
    worst_name: str
    average: float
    adjusted_average: float
    weights_from: str
    confusion: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain JSON types."""
        return {
            "worst_group": self.worst_group,
            "worst_name": self.worst_name,
            "average": self.average,
            "adjusted_average": self.adjusted_average,
            "weights_from": self.weights_from,
            "groups": [vars(g).copy() for g in self.groups],
            "confusion": self.confusion.tolist(),
        }

    def __str__(self) -> str:
        width = max(5, *(len(g.name) for g in self.groups))
        lines = [f"{'group':<{width}}  {'count':>8}  accuracy  95% interval"]
        lines += [
            f"{g.name:<{width}}  {g.count:>8,}  {100 * g.accuracy:7.2f}%  {100 * g.low:.1f} to {100 * g.high:.1f}"
            for g in self.groups
        ]
        lines.append(
            f"worst group {100 * self.worst_group:.2f}% ({self.worst_name}), average {100 * self.average:.2f}%, "
            f"adjusted average {100 * self.adjusted_average:.2f}% (weights: {self.weights_from} group sizes)"
        )
        return "\n".join(lines)


def summarise(confusion: NDArray[np.int64], groups: GroupIndex, train_groups: GroupIndex | None = None) -> Evaluation:
    """The evaluation of a confusion table `[G, classes, predicted]`.

    Args:
        train_groups: groups whose sizes weigh the adjusted average, matched by (label, attribute); default `groups`.

    Raises:
        ValueError: where no training group matches an evaluated one.
    """
    total = confusion.sum(axis=(1, 2))
    correct = np.einsum("gcc->g", confusion[:, :, : confusion.shape[1]])
    rows = []
    for g in np.flatnonzero(total):
        right, count = int(correct[g]), int(total[g])
        label, attribute = int(groups.group_labels[g]), int(groups.group_attributes[g])
        accuracy = right / count
        rows.append(
            GroupAccuracy(groups.group_name(int(g)), label, attribute, count, right, accuracy, *wilson(right, count))
        )
    accuracies = np.array([r.accuracy for r in rows])
    weights = np.array([_weight(r, train_groups) for r in rows], dtype=np.float64)
    if not weights.any():
        raise ValueError("train_groups: none of the evaluated groups occurs in training")
    worst = rows[int(accuracies.argmin())]
    return Evaluation(
        tuple(rows),
        worst.accuracy,
        worst.name,
        float(correct.sum() / total.sum()),
        float(weights @ accuracies / weights.sum()),
        "evaluation" if train_groups is None else "training",
        confusion,
    )


def _weight(row: GroupAccuracy, train_groups: GroupIndex | None) -> int:
    if train_groups is None:
        return row.count
    same = (train_groups.group_labels == row.label) & (train_groups.group_attributes == row.attribute)
    return int(train_groups.sizes[same].sum())


def confusion_of(
    labels: NDArray[Any], predicted: NDArray[Any], group: NDArray[Any], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Counts `[G, classes, classes]` of (group, label, prediction); shape = (G, classes)."""
    groups, classes = shape
    cell = (group.astype(np.int64) * classes + labels) * classes + predicted
    return np.bincount(cell, minlength=groups * classes * classes).reshape(groups, classes, classes).astype(np.int64)


def evaluate_logits(logits: Any, groups: GroupIndex, *, train_groups: GroupIndex | None = None) -> Evaluation:
    """The evaluation of logits `[N, classes]` of the examples of `groups`, in order.

    Raises:
        ValueError: for another number of rows, logits that are not finite, or labels the logits have no class for.
    """
    array = np.asarray(logits.detach().cpu().float() if hasattr(logits, "detach") else logits)
    if array.ndim != 2 or array.shape[0] != groups.num_examples:
        raise ValueError(f"logits must have shape [{groups.num_examples}, classes], got {list(array.shape)}")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(f"logits of example {at} are not finite")
    if groups.labels.max() >= array.shape[1]:
        raise ValueError(f"labels go up to {groups.labels.max()}, but the model has {array.shape[1]} classes")
    shape = (groups.num_groups, array.shape[1])
    confusion = confusion_of(groups.labels.astype(np.int64), array.argmax(axis=1), groups.group_ids(), shape)
    return summarise(confusion, groups, train_groups)
