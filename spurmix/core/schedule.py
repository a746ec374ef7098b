"""The schedule of strata and the thresholds of partners: weights as integers, the same on every machine.

`docs/draw-specification.md`, "Tables", defines both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array

MAX_SLOTS = 1 << 16
"""Maximum number of slots in a period of a schedule with different weights."""


@dataclass(frozen=True)
class Schedule:
    """One period of the schedule, which repeats forever.

    Attributes:
        share: Number of slots of each stratum, `[S]`.
        stratum: Stratum of each slot, `[W]`.
        rank: How many slots of the same stratum precede each slot, `[W]`.
    """

    share: Int64Array
    stratum: Int64Array
    rank: Int64Array


def make_schedule(weights: FloatArray) -> Schedule:
    """Spread the slots of each stratum evenly over one period.

    Slots are ordered by the fraction (2 rank + 1) / (2 share), then by stratum.

    Args:
        weights: Non-negative weight of each stratum, `[S]`. Equal weights, and weights that are integers after division
            by their greatest common divisor, with a sum of at most 65536, are met exactly. Others are rounded to shares
            of 65536 slots.

    Returns:
        The schedule.

    Raises:
        ValueError: If different weights are positive for more than 65536 strata, or a positive weight is less than one
            slot.
    """
    positive = np.count_nonzero(weights)
    if positive > MAX_SLOTS and weights.max() != weights[weights > 0].min():
        raise ValueError(
            f"weights: {positive:,} strata have positive weights, but a schedule with different weights has at most "
            f"{MAX_SLOTS:,} slots, one or more for each of them; use equal weights or fewer groups"
        )
    share = _integer_shares(weights)
    lost = np.flatnonzero((share == 0) & (weights > 0))
    if lost.size:
        s = int(lost[0])
        raise ValueError(
            f"weights: stratum {s} has weight {weights[s]:g} of {weights.sum():g}, which is less than one of "
            f"{MAX_SLOTS} slots; increase it or set it to 0"
        )
    stratum = np.repeat(np.arange(weights.size, dtype=np.int64), share)
    rank = np.arange(stratum.size, dtype=np.int64) - np.repeat(np.cumsum(share) - share, share)
    order = _slot_order(stratum, rank, share)
    return Schedule(share, stratum[order], rank[order])


def _integer_shares(weights: FloatArray) -> Int64Array:
    used = weights[weights > 0]
    if used.min() == used.max():
        return (weights > 0).astype(np.int64)
    if np.all(weights == np.floor(weights)) and weights.max() < 2**53:
        whole = [int(w) for w in weights]
        divisor = int(np.gcd.reduce(np.array(whole, dtype=object)))
        if sum(whole) // divisor <= MAX_SLOTS:
            return np.array([w // divisor for w in whole], dtype=np.int64)
    ideal = MAX_SLOTS * weights / np.cumsum(weights)[-1]
    share = np.floor(ideal).astype(np.int64)
    missing = MAX_SLOTS - int(share.sum())
    largest_remainders = np.argsort(-(ideal - share), kind="stable")[:missing]
    share[largest_remainders] += 1
    return share // int(np.gcd.reduce(share))


def _slot_order(stratum: Int64Array, rank: Int64Array, share: Int64Array) -> Int64Array:
    """Order by the exact fraction (2 rank + 1) / (2 share), then by stratum.

    float64 keys are exact enough: different fractions with denominators of at most 2^17 differ by at least 2^-34, and
    equal fractions round to the same number.
    """
    return np.lexsort((stratum, (2 * rank + 1) / (2 * share[stratum])))


def partner_thresholds(weights: FloatArray) -> Int64Array:
    """Cumulative distribution of rows of partner weights, scaled to 2^32.

    Args:
        weights: Weight of each group, `[G]` or `[R, G]`. Each row has a positive sum.

    Returns:
        floor(2^32 * c[h] / c[G - 1]) of the running float64 sums c, int64 of the same shape.
    """
    running = np.cumsum(weights, axis=-1)
    return sum_thresholds(running, running[..., -1:].copy())


def sum_thresholds(running: FloatArray, total: FloatArray) -> Int64Array:
    """Return floor(2^32 * running / total), int64. `running` is overwritten."""
    running *= 2.0**32
    running /= total
    return np.floor(running, out=running).astype(np.int64)
