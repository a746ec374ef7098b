"""Draw tables: a policy on a GroupIndex, as integers that every backend reads bit for bit alike (DESIGN.md: draw)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spurmix.core.groups import GroupIndex
from spurmix.core.policy import FloatArray, MixPolicy, Parts

MAX_SLOTS = 1 << 16
MAGIC = 0x5350524D49580001
HEADER = 16
REPLACEMENT, KEEP_LABELS = 1, 2
"""Flag bits of header word 7."""

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """One period of the schedule: `stratum[W]`, `rank[W]` and the slots `share[S]` each stratum has in it."""

    share: IntArray
    stratum: IntArray
    rank: IntArray


def schedule(weights: FloatArray) -> Schedule:
    """The smooth weighted round robin of strata.

    Integer weights over their gcd where that sum fits in 65536 slots, else the largest remainders of
    65536 w / sum(w), over their gcd. Slots are ordered by ((2 r + 1) / (2 share), stratum).

    Raises:
        ValueError: for more than 65536 strata, or a positive weight whose share rounds to 0.
    """
    positive = int(np.count_nonzero(weights))
    if weights.size > MAX_SLOTS:
        raise ValueError(f"weights: {weights.size} strata, at most {MAX_SLOTS} are possible")
    share = _shares(weights)
    lost = np.flatnonzero((share == 0) & (weights > 0))
    if lost.size:
        s = int(lost[0])
        raise ValueError(
            f"weights: stratum {s} has weight {weights[s]:g} of {weights.sum():g} in all, less than one of "
            f"{MAX_SLOTS} slots; raise it or set it to 0"
        )
    assert np.count_nonzero(share) == positive
    stratum = np.repeat(np.arange(weights.size, dtype=np.int64), share)
    rank = np.arange(stratum.size, dtype=np.int64) - np.repeat(np.cumsum(share) - share, share)
    order = _slot_order(stratum, rank, share)
    return Schedule(share, stratum[order], rank[order])


def _shares(weights: FloatArray) -> IntArray:
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
    largest = np.argsort(-(ideal - share), kind="stable")[:missing]
    share[largest] += 1
    return share // int(np.gcd.reduce(share))


def _slot_order(stratum: IntArray, rank: IntArray, share: IntArray) -> IntArray:
    """Order by the exact fraction (2 r + 1) / (2 share), then the stratum.

    Two different fractions with denominators up to 2^17 differ by at least 2^-34, far more than a float64's rounding,
    and equal ones round alike: float64 keys order them exactly.
    """
    return np.lexsort((stratum, (2 * rank + 1) / (2 * share[stratum])))


def thresholds(row: FloatArray) -> IntArray:
    """floor(2^32 * c_h / c_last) of the running float64 sums c of a row of weights, int64 `[G]`."""
    running = np.cumsum(row)
    return np.floor((2.0**32 * running) / running[-1]).astype(np.int64)


@dataclass(frozen=True)
class Tables:
    """What `draw` reads: `packed` int64 (layout in csrc/draw.h) and `members` (empty where positions are examples)."""

    packed: IntArray
    members: NDArray[np.int32] | IntArray
    num_examples: int
    period: int

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest of the packed tables, which hold all of the policy and the group offsets."""
        return hashlib.blake2b(self.packed.tobytes(), digest_size=16).hexdigest()


def build_tables(groups: GroupIndex, policy: MixPolicy) -> Tables:
    """The tables of `policy` on `groups`, every part checked.

    Raises:
        TypeError, ValueError: where the policy does not fit the groups, naming the part.
    """
    if not isinstance(policy, MixPolicy):
        raise TypeError(f"policy must be a MixPolicy (see spurmix.policies), got {type(policy).__name__}")
    parts = policy.parts(groups)
    plan = schedule(parts.weights)
    first = groups.offsets[parts.first_group[:-1]]
    size = groups.offsets[parts.first_group[1:]] - first
    row_of, threshold = _partner_rows(parts)
    sections = [
        (plan.stratum << 32) | plan.rank,
        plan.share,
        first,
        size,
        groups.offsets,
        row_of,
        threshold.reshape(-1),
        parts.quantile,
    ]
    starts = HEADER + np.concatenate([[0], np.cumsum([s.size for s in sections])])
    flags = REPLACEMENT * parts.replacement + KEEP_LABELS * (parts.labels == "keep")
    counts = [groups.num_examples, groups.num_groups, plan.share.size, plan.stratum.size, threshold.shape[0]]
    header = np.array([MAGIC, starts[-1], *counts, flags, *starts[:-1]], dtype=np.int64)
    assert header.size == HEADER
    members = groups.members if groups.members is not None else np.empty(0, dtype=np.int32)
    packed = np.concatenate([header, *sections]).astype(np.int64, copy=False)
    return Tables(packed, members, groups.num_examples, int(plan.stratum.size))


def _partner_rows(parts: Parts) -> tuple[IntArray, IntArray]:
    """`row_of[G]` into distinct rows of thresholds `[R, G]`; -1 where a group has no partner."""
    count = parts.first_group[-1]
    row_of = np.full(count, -1, dtype=np.int64)
    distinct: dict[bytes, int] = {}
    rows: list[IntArray] = []
    if parts.partner is not None:
        for g in np.flatnonzero(parts.partner.any(axis=1)):
            row = thresholds(parts.partner[g])
            row_of[g] = distinct.setdefault(row.tobytes(), len(rows))
            if row_of[g] == len(rows):
                rows.append(row)
    return row_of, np.stack(rows) if rows else np.empty((0, count), dtype=np.int64)
