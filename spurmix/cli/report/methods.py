"""Statistics of the methods of a demo over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spurmix.cli.demo.experiment import SeedResult


@dataclass(frozen=True)
class MethodSummary:
    """Accuracies of one method on the test set.

    Attributes:
        name: Name of the method.
        worst_group: Worst-group accuracy of each seed.
        average: Average accuracy of each seed.
        validation: Worst-group accuracy of each seed on the validation split.
    """

    name: str
    worst_group: tuple[float, ...]
    average: tuple[float, ...]
    validation: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean worst-group accuracy."""
        return float(np.mean(self.worst_group))

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the worst-group accuracy. None for a single seed."""
        return float(np.std(self.worst_group, ddof=1)) if len(self.worst_group) > 1 else None

    def interval(self) -> tuple[float, float] | None:
        """Compute the 95% interval of the mean worst-group accuracy with Student's t. None for a single seed.

        The bounds are clipped to [0, 1].
        """
        if self.deviation is None:
            return None
        from scipy.stats import t

        count = len(self.worst_group)
        half = float(t.ppf(0.975, count - 1)) * self.deviation / count**0.5
        return max(0.0, self.mean - half), min(1.0, self.mean + half)

    def to_dict(self) -> dict[str, object]:
        """Convert to JSON types."""
        interval = self.interval()
        return {
            "worst_group": list(self.worst_group),
            "average": list(self.average),
            "validation_worst_group": list(self.validation),
            "mean": self.mean,
            "standard_deviation": self.deviation,
            "interval": None if interval is None else list(interval),
        }

    def cells(self) -> list[str]:
        """Return the row of a table, see `columns`."""
        interval = self.interval()
        average = f"{100 * np.mean(self.average):.1f}%"
        if interval is None or self.deviation is None:
            return [self.name, f"{100 * self.mean:.1f}%", average]
        low, high = interval
        return [
            self.name,
            ", ".join(f"{100 * value:.1f}" for value in self.worst_group),
            f"{100 * self.mean:.1f}%",
            f"{100 * self.deviation:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            average,
        ]


def summarize(results: Sequence[SeedResult]) -> list[MethodSummary]:
    """Collect the accuracies of every method.

    Args:
        results: Results of every seed.

    Returns:
        A summary of each method, in the order of the first seed.
    """
    return [
        MethodSummary(
            name,
            tuple(result.test[name].worst_group for result in results),
            tuple(result.test[name].average for result in results),
            tuple(result.validation[name] for result in results),
        )
        for name in results[0].test
    ]


def columns(seeds: int) -> list[str]:
    """Return the headings of a table of methods.

    Args:
        seeds: Number of seeds.

    Returns:
        The headings, one for each of `MethodSummary.cells`.
    """
    if seeds == 1:
        return ["method", "worst group", "average"]
    return ["method", "worst group of each seed", "mean", "standard deviation", "95% interval", "average"]
