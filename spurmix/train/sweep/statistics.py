"""Tables of a comparison of methods: means over seeds, paired bootstrap intervals, intervals of the minimum over groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np

from spurmix.core.array_types import FloatArray
from spurmix.train.scores import RESAMPLES, resampled_minima


class SweepRow(TypedDict):
    """Result of a method with a seed.

    Attributes:
        setting: Name of the data.
        method: Name of the method.
        seed: Random seed.
        known: Number of attributed examples per group, or "all".
        worst: Worst-group accuracy on the test split.
        average: Average accuracy on the test split.
        groups: Number of correct and of all predictions in each group of the test split.
        validation: Worst-group accuracy on the validation split.
        values: Values of the hyperparameters.
        seconds: Duration.
        residual: Correlation that the policy leaves, None if it cannot be determined.
        residual_given_lam: The same given lam.
    """

    setting: str
    method: str
    seed: int
    known: int | str
    worst: float
    average: float
    groups: NotRequired[list[list[int]]]
    validation: NotRequired[float]
    values: NotRequired[dict[str, float]]
    seconds: NotRequired[float]
    residual: NotRequired[float | None]
    residual_given_lam: NotRequired[float | None]


@dataclass(frozen=True)
class SweepSummary:
    """Results of a method over seeds, and over settings if there are several.

    Attributes:
        method: Name of the method.
        seeds: Number of results.
        worst: Mean worst-group accuracy.
        deviation: Sample standard deviation over the seeds, averaged over the settings. NaN for a single seed.
        average: Mean average accuracy.
        minimum: 95% bootstrap interval of the mean minimum over groups, from the test examples. None without counts.
        difference: Mean difference of the worst group from the reference method. None without paired results.
        interval: 95% paired bootstrap interval of that difference, over seeds. None for a single seed.
    """

    method: str
    seeds: int
    worst: float
    deviation: float
    average: float
    minimum: tuple[float, float] | None
    difference: float | None
    interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, object]:
        """Convert to JSON types."""
        deviation = None if np.isnan(self.deviation) else self.deviation
        return {**vars(self), "deviation": deviation}

    def cells(self) -> list[str]:
        """Return the row of a table, see `COLUMNS`."""
        deviation = "" if np.isnan(self.deviation) else f"{100 * self.deviation:.1f}"
        difference = "" if self.difference is None else f"{100 * self.difference:+.1f}"
        if self.interval is not None:
            difference += f" ({_range(self.interval)})"
        return [
            self.method, f"{100 * self.worst:.1f}", deviation, _range(self.minimum), difference,
            f"{100 * self.average:.1f}",
        ]  # fmt: skip


COLUMNS = ("method", "worst group", "sd", "interval", "difference", "average")
"""Headings of `SweepSummary.cells`. All numbers are in percent."""


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def summarize_methods(rows: Iterable[SweepRow], reference: str = "erm", seed: int = 0) -> list[SweepSummary]:
    """Summarize the results of each method.

    Differences from the reference are paired by setting, number of attributed examples and seed. Their bootstrap resamples
    pairs within each setting. With few seeds, such intervals are rough.

    Args:
        rows: Results.
        reference: Method that the others are compared with.
        seed: Seed of the resamples.

    Returns:
        A summary of each method, the best mean worst group first.
    """
    rows = list(rows)
    by_key = {(row["setting"], row["known"], row["seed"]): row["worst"] for row in rows if row["method"] == reference}
    summaries = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        settings = _by_setting(mine)
        spread = [float(np.std([row["worst"] for row in part], ddof=1)) for part in settings if len(part) > 1]
        pairs = [
            [
                row["worst"] - by_key[key]
                for row in part
                if (key := (row["setting"], row["known"], row["seed"])) in by_key
            ]
            for part in settings
        ]
        paired = [np.array(part) for part in pairs if part] if method != reference else []
        summaries.append(
            SweepSummary(
                method=method,
                seeds=len(mine),
                worst=float(np.mean([row["worst"] for row in mine])),
                deviation=float(np.mean(spread)) if spread else float("nan"),
                average=float(np.mean([row["average"] for row in mine])),
                minimum=_minimum_interval(mine, seed),
                difference=float(np.mean(np.concatenate(paired))) if paired else None,
                interval=_paired_interval(paired, seed),
            )
        )
    return sorted(summaries, key=lambda summary: -summary.worst)


def _by_setting(rows: Sequence[SweepRow]) -> list[list[SweepRow]]:
    parts: dict[tuple[str, int | str], list[SweepRow]] = {}
    for row in rows:
        parts.setdefault((row["setting"], row["known"]), []).append(row)
    return list(parts.values())


def _paired_interval(pairs: Sequence[FloatArray], seed: int) -> tuple[float, float] | None:
    if not pairs or max(map(len, pairs)) < 2:
        return None
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for part in pairs:
        total += part[rng.integers(0, len(part), (RESAMPLES, len(part)))].sum(axis=1)
    low, high = np.quantile(total / sum(map(len, pairs)), [0.025, 0.975])
    return float(low), float(high)


def _minimum_interval(rows: Sequence[SweepRow], seed: int) -> tuple[float, float] | None:
    """Interval of the mean over the rows of the minimum over groups. The counts of each group are resampled."""
    counts = [np.array(row["groups"]) for row in rows if "groups" in row]
    if len(counts) < len(rows):
        return None
    rng = np.random.default_rng(seed)
    minima = [resampled_minima(table[:, 0], table[:, 1], RESAMPLES, rng) for table in counts]
    low, high = np.quantile(np.mean(minima, axis=0), [0.025, 0.975])
    return float(low), float(high)
