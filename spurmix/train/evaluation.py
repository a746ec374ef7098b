"""The result of an evaluation: accuracy, calibration and AUROC per group, worst group, averages, confusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spurmix.core.names import distinct_names, printable
from spurmix.train.scores import AttributeScore, resample_minimum

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
        ece: Expected calibration error, see `scores.calibration_error`.
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
    ece: float = math.nan

    def to_dict(self) -> dict[str, object]:
        """Convert to JSON types."""
        return {**vars(self), "ece": _or_none(self.ece)}


def _or_none(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Evaluation:
    """Per-group accuracy, calibration and AUROC of a model.

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
        ece: Expected calibration error over all examples, see `scores.calibration_error`.
        auroc: Area under the ROC curve over all examples: of class 1 if there are two classes, otherwise the mean over the
            classes, each against the rest. The score of a class is the log-odds of its probability, relative to those of
            equal probabilities, rounded to about 0.8% (`scores.SCORE_BINS`). NaN if there is a single class, or if the
            number of attribute values times classes exceeds `scores.MAX_SCORE_COLUMNS`.
        attributes: AUROC within the examples of each attribute value. It measures how well the classes are separated where
            the attribute does not help. Groups of label and attribute have a single class and therefore no AUROC.
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
    ece: float = math.nan
    auroc: float = math.nan
    attributes: tuple[AttributeScore, ...] = ()

    @cached_property
    def worst_interval(self) -> tuple[float, float]:
        """95% bootstrap interval of `worst_group`, see `scores.resample_minimum`. Overlapping cells count as independent."""
        rows = [row for row in self.cells or self.groups if row.decides]
        return resample_minimum(np.array([row.correct for row in rows]), np.array([row.count for row in rows]))

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
            "worst_interval": list(self.worst_interval),
            "average": self.average,
            "adjusted_average": self.adjusted_average,
            "weights_from": self.weights_from,
            "ece": _or_none(self.ece),
            "auroc": _or_none(self.auroc),
            "attributes": [{**vars(row), "auroc": _or_none(row.auroc)} for row in self.attributes],
            "min_group_size": self.min_group_size,
            "missing_groups": list(self.missing_groups),
            "untrained_groups": list(self.untrained_groups),
            "notes": list(self.notes),
            "groups": [row.to_dict() for row in self.groups],
            "cells": [row.to_dict() for row in self.cells],
            "confusion": self.confusion.tolist() if small else None,
        }

    def __str__(self) -> str:
        shown = self._shown_names()
        width = max(5, *(len(shown[g.name]) for g in self.groups + self.cells))
        lines = []
        for head, rows in (("group", self.groups), ("cell", self.cells)):
            if rows:
                lines.append(f"{head:<{width}}  {'count':>8}  accuracy  95% interval    ECE")
            lines += [
                f"{shown[g.name]:<{width}}  {g.count:>8,}  {100 * g.accuracy:7.2f}%  "
                f"{f'{100 * g.low:.1f} to {100 * g.high:.1f}':<13}  {g.ece:.3f}"
                + ("" if g.decides else f"  (below {self.min_group_size})")
                for g in rows
            ]
        lines.append(
            f"worst {self._unit} {100 * self.worst_group:.2f}% ({shown[self.worst_name]}), "
            f"average {100 * self.average:.2f}%, "
            f"adjusted average {100 * self.adjusted_average:.2f}% (weights: {self.weights_from} group sizes)"
        )
        low, high = self.worst_interval
        lines.append(f"95% interval of the worst {self._unit}: {100 * low:.1f} to {100 * high:.1f} (bootstrap)")
        lines.append(f"calibration error (ECE) {self.ece:.3f}, AUROC {self._auroc_text()}")
        return "\n".join(lines + [f"note: {printable(remark)}" for remark in self.remarks()])

    @property
    def _unit(self) -> str:
        return "cell" if self.cells else "group"

    def _auroc_text(self) -> str:
        """Return the AUROC of all examples, and within each attribute value."""
        text = _auroc_value(self.auroc)
        if self.attributes:
            names = map(printable, distinct_names([row.name for row in self.attributes]))
            rows = zip(names, self.attributes, strict=True)
            text += "; within " + ", ".join(f"{name} {_auroc_value(row.auroc)}" for name, row in rows)
        return text

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


def _auroc_value(value: float) -> str:
    return "not determined" if math.isnan(value) else f"{value:.3f}"


def _in_brackets(shown: Mapping[str, str], names: Sequence[str], most: int = 8) -> str:
    """Join names in brackets. Long lists are shortened."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(f"[{shown[name]}]" for name in names[:most]) + more
