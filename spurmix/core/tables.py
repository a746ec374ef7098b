"""Draw tables: a policy for one `GroupIndex` as integers that every backend reads the same way.

`docs/draw-specification.md`, "Tables", defines them. `table_layout.py` defines how they are packed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spurmix.core import checks
from spurmix.core import table_layout as layout
from spurmix.core.array_types import FloatArray, Int64Array, IntArray
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.core.resolved_policy import ResolvedPolicy
from spurmix.core.schedule import make_schedule, partner_thresholds

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class Tables:
    """What a draw reads.

    Attributes:
        packed: The packed tables, int64.
        members: Example number of each position, `[N]`. Empty if positions are example numbers.
        num_examples: Number of examples, N.
        period: Number of slots in a period of the schedule, W.
    """

    packed: Int64Array
    members: IntArray
    num_examples: int
    period: int

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the packed tables, which contain the policy and the group sizes."""
        return hashlib.blake2b(self.packed.tobytes(), digest_size=16).hexdigest()


def build_tables(groups: GroupIndex, policy: MixPolicy) -> Tables:
    """Build the tables of a policy.

    Args:
        groups: Groups of the dataset.
        policy: The policy.

    Returns:
        The tables.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If the policy does not fit the groups.
    """
    if not isinstance(policy, MixPolicy):
        raise TypeError(f"policy must be a MixPolicy (see spurmix.policies), got {type(policy).__name__}")
    checks.instance(groups, "groups", GroupIndex)
    resolved = policy.resolve_arrays(groups)
    plan = make_schedule(resolved.weights)
    first = groups.offsets[resolved.first_group[:-1]]
    size = groups.offsets[resolved.first_group[1:]] - first
    row_of, threshold = _partner_rows(resolved)
    sections = [
        (plan.stratum << 32) | plan.rank,
        plan.share,
        first,
        size,
        groups.offsets,
        row_of,
        threshold.reshape(-1),
        resolved.quantile,
    ]
    counts = groups.num_groups, plan.share.size, plan.stratum.size, threshold.shape[0]
    assert tuple(s.size for s in sections) == layout.section_sizes(*counts)
    starts = layout.HEADER_WORDS + np.concatenate([[0], np.cumsum([s.size for s in sections])])
    flags = layout.FLAG_REPLACEMENT * resolved.replacement + layout.FLAG_KEEP_LABELS * (resolved.labels == "keep")
    header = np.array([layout.MAGIC, starts[-1], groups.num_examples, *counts, flags, *starts[:-1]], dtype=np.int64)
    assert header.size == layout.HEADER_WORDS
    members = groups.members if groups.members is not None else np.empty(0, dtype=np.int32)
    packed = np.concatenate([header, *sections]).astype(np.int64, copy=False)
    return Tables(packed, members, groups.num_examples, int(plan.stratum.size))


def _partner_rows(resolved: ResolvedPolicy) -> tuple[Int64Array, Int64Array]:
    """Row of each group in the distinct rows of thresholds (-1: no partner), `[G]`, and the rows, `[R, G]`.

    The rows are in the order of the groups that use them first.
    """
    count = int(resolved.first_group[-1])
    given = resolved.partner_rows
    if given is None:
        return np.full(count, -1, dtype=np.int64), np.empty((0, count), dtype=np.int64)
    used, first = np.unique(given.row_of[given.row_of >= 0], return_index=True)
    number = np.full(given.count + 1, -1, dtype=np.int64)  # the last one is for groups without a partner
    number[used[np.argsort(first, kind="stable")]] = np.arange(used.size)
    thresholds = np.empty((used.size, count), dtype=np.int64)
    for start, block in given.blocks():
        for k in np.flatnonzero(number[start : start + block.shape[0]] >= 0):
            thresholds[number[start + k]] = _thresholds_of_row(block, int(k))
    merged, thresholds = _without_repeated(thresholds)
    return np.where(given.row_of >= 0, merged[number[given.row_of]], -1), thresholds


def _thresholds_of_row(block: FloatArray | csr_array, k: int) -> Int64Array:
    """Thresholds of row k of a block, int64 `[G]`. In a sparse row, they change at stored weights only."""
    if isinstance(block, np.ndarray):
        return partner_thresholds(block[k])
    stored = slice(block.indptr[k], block.indptr[k + 1])
    steps = np.concatenate([[0], partner_thresholds(block.data[stored])])
    return np.repeat(steps, np.diff(block.indices[stored], prepend=0, append=block.shape[1]))


def _without_repeated(rows: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Number of each row among the distinct rows, and the distinct rows, in the order of their first occurrence."""
    number = np.empty(len(rows), dtype=np.int64)
    by_hash: dict[bytes, int] = {}
    kept: list[int] = []
    for k, row in enumerate(rows):
        number[k] = by_hash.setdefault(hashlib.blake2b(row.data, digest_size=32).digest(), len(kept))
        if number[k] == len(kept):
            kept.append(k)
    return number, rows if len(kept) == len(rows) else rows[kept]
