"""Paired comparison of two models on the same examples: exact McNemar tests per group, bootstrap of the worst group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import GroupIndex
from spurmix.train.metrics import Cells
from spurmix.train.scores import RESAMPLES

BoolArray = NDArray[np.bool_]
OUTCOMES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
"""Whether the first and the second model are correct, for each of four outcomes of an example."""


@dataclass(frozen=True)
class GroupDifference:
    """Difference of two models on one group or cell.

    Attributes:
        name: Name of the group or cell.
        count: Number of examples.
        first: Accuracy of the first model.
        second: Accuracy of the second model.
        only_first: Number of examples that only the first model predicts correctly.
        only_second: Number of examples that only the second model predicts correctly.
        low: Lower bound of the 95% bootstrap interval of `second - first`.
        high: Upper bound of that interval.
        p_value: p-value of the exact McNemar test (two-sided) that both models have the same accuracy.
        holm: The p-value, adjusted for the number of groups by the method of Holm.
        decides: Whether it is large enough to be the worst group.
    """

    name: str
    count: int
    first: float
    second: float
    only_first: int
    only_second: int
    low: float
    high: float
    p_value: float
    holm: float
    decides: bool

    @property
    def difference(self) -> float:
        """Accuracy of the second model minus that of the first."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Comparison of two models on the same examples.

    Attributes:
        rows: Difference on each group or cell that has examples.
        worst_first: Worst-group accuracy of the first model.
        worst_second: Worst-group accuracy of the second model.
        low: Lower bound of the 95% bootstrap interval of `worst_second - worst_first`.
        high: Upper bound of that interval.
        unit: "group" or "cell".
    """

    rows: tuple[GroupDifference, ...]
    worst_first: float
    worst_second: float
    low: float
    high: float
    unit: str

    @property
    def difference(self) -> float:
        """Worst-group accuracy of the second model minus that of the first."""
        return self.worst_second - self.worst_first

    def to_dict(self) -> dict[str, object]:
        """Convert to JSON types."""
        return {
            "unit": self.unit,
            "worst_group": {
                "first": self.worst_first,
                "second": self.worst_second,
                "difference": self.difference,
                "interval": [self.low, self.high],
            },
            "groups": [{**vars(row), "difference": row.difference} for row in self.rows],
        }


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the p-value of the exact two-sided McNemar test.

    Args:
        only_first: Number of examples that only the first model predicts correctly.
        only_second: Number of examples that only the second model predicts correctly.

    Returns:
        The p-value, 1 if both are 0.

    Source:
        McNemar 1947. Given the discordant examples, each number is binomial with probability 1/2 under the hypothesis.
    """
    from scipy.stats import binom

    discordant = only_first + only_second
    return min(1.0, 2 * float(binom.cdf(min(only_first, only_second), discordant, 0.5)))


def holm(p_values: FloatArray) -> FloatArray:
    """Adjust p-values for multiple tests by the method of Holm 1979."""
    order = np.argsort(p_values, kind="stable")
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(steps)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def compare_outcomes(
    first: BoolArray,
    second: BoolArray,
    groups: GroupIndex,
    *,
    cells: Cells | None = None,
    min_group_size: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same examples.

    Each bootstrap resample draws examples with replacement, together with the outcomes of both models: within each group, or
    from all examples if cells overlap. The intervals are the 2.5% and 97.5% quantiles over the resamples.

    Args:
        first: Whether the first model is correct on each example, bool `[N]`.
        second: Whether the second model is correct on each example, bool `[N]`.
        groups: Groups of the examples.
        cells: Overlapping cells to compare on instead of groups.
        min_group_size: Minimum size of a group or cell that can be the worst group.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        The comparison.

    Raises:
        ValueError: If no group is large enough.
    """
    outcome = 2 * first.astype(np.int64) + second
    if cells is None:
        table = np.bincount(groups.group_ids() * 4 + outcome, minlength=4 * groups.num_groups).reshape(-1, 4)
        names = [groups.group_name(g) for g in range(groups.num_groups)]
    else:
        table = np.stack([cells.members[outcome == k].sum(axis=0) for k in range(4)], axis=1)
        names = list(cells.names)
    sizes = table.sum(axis=1)
    decides = sizes >= min_group_size
    if not (decides & (sizes > 0)).any():
        raise ValueError(f"min_group_size is {min_group_size}, but the largest group has only {sizes.max()} examples")
    draws = (
        _resampled_groups(table, resamples, seed)
        if cells is None
        else _resampled_cells(cells, outcome, resamples, seed)
    )
    accuracy = (table @ OUTCOMES) / np.maximum(sizes, 1)[:, None]
    intervals = np.zeros((len(table), 2))
    lowest = np.ones((2, resamples))
    for k, (of_first, of_second) in draws:
        intervals[k] = np.quantile(of_second - of_first, [0.025, 0.975])
        if decides[k]:
            lowest = np.minimum(lowest, [of_first, of_second])
    present = np.flatnonzero(sizes)
    p_values = np.array([mcnemar(int(table[k, 2]), int(table[k, 1])) for k in present])
    rows = [
        GroupDifference(
            names[k], int(sizes[k]), float(accuracy[k, 0]), float(accuracy[k, 1]), int(table[k, 2]), int(table[k, 1]),
            float(intervals[k, 0]), float(intervals[k, 1]), float(p), float(adjusted), bool(decides[k]),
        )
        for k, p, adjusted in zip(present, p_values, holm(p_values), strict=True)
    ]  # fmt: skip
    worst = accuracy[present][decides[present]].min(axis=0)
    low, high = np.quantile(lowest[1] - lowest[0], [0.025, 0.975])
    unit = "group" if cells is None else "cell"
    return Comparison(tuple(rows), float(worst[0]), float(worst[1]), float(low), float(high), unit)


def _resampled_groups(table: Int64Array, resamples: int, seed: int) -> Iterator[tuple[int, FloatArray]]:
    """Yield each group that has examples, and the resampled accuracies of both models, `[2, resamples]`."""
    rng = np.random.default_rng(seed)
    for g in map(int, np.flatnonzero(table.sum(axis=1))):
        size = int(table[g].sum())
        yield g, (rng.multinomial(size, table[g] / size, resamples) @ OUTCOMES / size).T


def _resampled_cells(cells: Cells, outcome: Int64Array, resamples: int, seed: int) -> Iterator[tuple[int, FloatArray]]:
    """Yield each cell that has examples, and the resampled accuracies. A resample without examples of the cell has 1."""
    rng = np.random.default_rng(seed)
    keys = np.concatenate([cells.members, outcome[:, None]], axis=1).astype(np.int8)
    patterns, counts = np.unique(keys, axis=0, return_counts=True)
    drawn = rng.multinomial(len(outcome), counts / len(outcome), resamples)
    correct = OUTCOMES[patterns[:, -1]]
    for k in map(int, np.flatnonzero(cells.members.any(axis=0))):
        member = np.flatnonzero(patterns[:, k])
        size = drawn[:, member].sum(axis=1)
        accuracy = drawn[:, member] @ correct[member] / np.maximum(size, 1)[:, None]
        yield k, np.where(size[:, None] > 0, accuracy, 1.0).T
