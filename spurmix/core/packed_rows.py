"""Rows of partners as draw tables contain them: lists of thresholds and lists of groups, which rows share.

`table_layout.py` defines the words of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spurmix.core import partners
from spurmix.core.array_types import Int64Array
from spurmix.core.partners import PartnerRows, expand, require_memory
from spurmix.core.schedule import partner_thresholds
from spurmix.core.table_layout import MAX_COUNT, ROW_SLICES, ROW_WORDS


class PackedRows(NamedTuple):
    """The sections of draw tables that describe partners."""

    row_of: Int64Array
    """Row of each group, or -1, `[G]`."""
    rows: Int64Array
    """Words of each row, `[R, 5]`."""
    lists: Int64Array
    """Thresholds and groups."""


class _Rows(NamedTuple):
    """Rows of thresholds. The fields are those of `PartnerRows`, with thresholds in place of weights."""

    thresholds: Int64Array
    first: Int64Array
    groups: Int64Array
    slice_first: Int64Array
    slice_length: Int64Array


def pack_rows(given: PartnerRows | None, num_groups: int) -> PackedRows:
    """Compute the thresholds of partner rows, and store equal rows once.

    Args:
        given: The rows. None: no group has a partner.
        num_groups: Number of groups.

    Returns:
        The rows in the order of the groups that use them first. Entries that are never drawn are left out.

    Raises:
        ValueError: If there are too many entries.
    """
    if given is None or (given.row_of < 0).all():
        return PackedRows(
            np.full(num_groups, -1), np.empty((0, ROW_WORDS), dtype=np.int64), np.empty(0, dtype=np.int64)
        )
    used, first = np.unique(given.row_of[given.row_of >= 0], return_index=True)
    order = used[np.argsort(first, kind="stable")]
    rows = _without_flat_entries(_thresholds_of(given, order))
    number, kept = _distinct(_keys(rows))
    row_number = np.full(given.count + 1, -1, dtype=np.int64)  # the last one is for groups without a partner
    row_number[order] = number
    return PackedRows(row_number[given.row_of], *_packed(rows, kept))


def unpack_rows(rows: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Decode the words of rows, `[R, 5]`.

    Args:
        rows: The words.

    Returns:
        The first word of the thresholds of each row, `[R]`. The first word and the length of each slice of groups,
        `[R, 4]`.
    """
    count, begin = rows[:, 0] & 0xFFFFFFFF, rows[:, 1:] >> 32
    return rows[:, 0] >> 32, rows[:, 1:] & 0xFFFFFFFF, np.diff(begin, axis=1, append=count[:, None])


def _thresholds_of(given: PartnerRows, order: Int64Array) -> _Rows:
    """Thresholds of the rows `order`. Rows that share their weights share their thresholds."""
    count, first_weight = given.entries[order], given.first_weight[order]
    _, at, list_of = np.unique(first_weight * (count.max() + 1) + count, return_index=True, return_inverse=True)
    length, source = count[at], first_weight[at]
    require_memory(int(length.sum()))
    first = np.cumsum(length) - length
    thresholds = np.empty(int(length.sum()), dtype=np.int64)
    by_length = np.argsort(length, kind="stable")
    start = 0
    while start < by_length.size:
        # Lists of similar length, padded with zeros, which do not change a sum, are the rows of one matrix.
        fit = np.arange(1, by_length.size - start + 1) * length[by_length[start:]] <= partners.BLOCK_ENTRIES
        stop = start + max(1, int(np.count_nonzero(fit)))
        block = by_length[start:stop]
        column = np.arange(length[block[-1]])
        inside = column < length[block, None]
        weights = np.where(inside, given.weights.take(source[block, None] + column, mode="clip"), 0.0)
        thresholds[(first[block, None] + column)[inside]] = partner_thresholds(weights)[inside]
        start = stop
    return _Rows(thresholds, first[list_of], given.groups, given.slice_first[order], given.slice_length[order])


def _without_flat_entries(rows: _Rows) -> _Rows:
    """Leave out entries whose threshold is that of the entry before, because no word selects them.

    Rows with such entries get lists of their own.
    """
    before = np.empty_like(rows.thresholds)
    before[1:] = rows.thresholds[:-1]
    before[rows.first] = 0
    flat = rows.thresholds == before
    if not flat.any():
        return rows
    counts = rows.slice_length.sum(axis=1)
    flat_before = np.concatenate([[0], np.cumsum(flat)])
    changed = np.flatnonzero(flat_before[rows.first + counts] > flat_before[rows.first])
    require_memory(int(counts[changed].sum()))
    at = expand(rows.first[changed], counts[changed])
    group_at = expand(rows.slice_first[changed], rows.slice_length[changed])
    kept = ~flat[at]
    row = np.repeat(np.arange(changed.size), counts[changed])
    left = np.bincount(row[kept], minlength=changed.size)
    offset = np.cumsum(left) - left
    first, slice_first, slice_length = rows.first.copy(), rows.slice_first.copy(), rows.slice_length.copy()
    first[changed] = rows.thresholds.size + offset
    slice_first[changed], slice_length[changed] = 0, 0
    slice_first[changed, 0], slice_length[changed, 0] = rows.groups.size + offset, left
    thresholds = np.concatenate([rows.thresholds, rows.thresholds[at[kept]]])
    groups = np.concatenate([rows.groups, rows.groups[group_at[kept]]])
    return _Rows(thresholds, first, groups, slice_first, slice_length)


def _keys(rows: _Rows) -> NDArray[np.uint64]:
    """Hash of each row, `[R, 2]`: sums of hashes of its thresholds and of its groups, both of which are ascending."""
    keys = np.empty((rows.first.size, 2), dtype=np.uint64)
    counts = rows.slice_length.sum(axis=1)
    for k in range(2):
        thresholds, groups = _running_hash(rows.thresholds, 2 * k), _running_hash(rows.groups, 2 * k + 1)
        of_thresholds = thresholds[rows.first + counts] - thresholds[rows.first]
        keys[:, k] = of_thresholds + (groups[rows.slice_first + rows.slice_length] - groups[rows.slice_first]).sum(
            axis=1
        )
    return keys


def _running_hash(values: Int64Array, seed: int) -> NDArray[np.uint64]:
    """Sums of the hashes (SplitMix64) of the first 0, 1, 2, ... values, modulo 2^64."""
    x = values.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(x ^ (x >> np.uint64(31)), dtype=np.uint64)])


def _distinct(keys: NDArray[np.uint64]) -> tuple[Int64Array, Int64Array]:
    """Number of each row among the distinct rows in the order of their first occurrence, and these first occurrences."""
    order = np.lexsort(keys.T)
    ordered = keys[order]
    is_new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    first = order[is_new]
    kept = np.sort(first)
    number = np.empty(order.size, dtype=np.int64)
    number[order] = np.searchsorted(kept, first)[np.cumsum(is_new) - 1]
    return number, kept


def _packed(rows: _Rows, kept: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Words of the rows `kept`, and the lists that they use."""
    length = rows.slice_length[kept]
    counts = length.sum(axis=1)
    thresholds, first = _used(rows.thresholds, rows.first[kept], counts)
    groups, slice_first = _used(rows.groups, rows.slice_first[kept], length)
    words = thresholds.size + groups.size
    if words > MAX_COUNT:
        raise ValueError(
            f"partner: the rows of partner groups need {words:,} words, but draw tables have at most {MAX_COUNT:,}; use "
            "fewer groups"
        )
    packed = np.empty((kept.size, ROW_WORDS), dtype=np.int64)
    packed[:, 0] = first << 32 | counts
    begin = np.cumsum(length, axis=1) - length
    packed[:, 1:] = begin << 32 | np.where(length > 0, slice_first + thresholds.size, 0)
    assert packed.shape[1] == 1 + ROW_SLICES
    return packed, np.concatenate([thresholds, groups])


def _used(values: Int64Array, first: Int64Array, length: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The values that the slices contain, and the new positions of the slices."""
    change = np.bincount(first.reshape(-1), weights=(length > 0).reshape(-1), minlength=values.size + 1)
    change -= np.bincount((first + length).reshape(-1), weights=(length > 0).reshape(-1), minlength=values.size + 1)
    used = np.cumsum(change[:-1]) > 0
    if used.all():
        return values, first
    position = np.concatenate([[0], np.cumsum(used)])
    return values[used], position[first]
