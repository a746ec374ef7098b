"""Rows of partners as draw tables contain them: lists of thresholds and lists of groups, which rows share.

`table_layout.py` defines the words of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spurmix.core import partners
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.partners import PartnerRows, expand, require_memory
from spurmix.core.running_sums import pack_sums
from spurmix.core.running_sums import unpack_thresholds as sum_thresholds_of
from spurmix.core.schedule import partner_thresholds
from spurmix.core.table_layout import FLAG_SUMS, MAX_COUNT, ROW_SLICES, ROW_WORDS


class PackedRows(NamedTuple):
    """The sections of draw tables that describe partners."""

    row_of: Int64Array
    """Row of each group, or -1, `[G]`."""
    rows: Int64Array
    """Words of each row, `[R, 5]`."""
    lists: Int64Array
    """Thresholds or running sums, then groups."""
    flags: int
    """`FLAG_SUMS` if there are running sums, else 0."""


MAX_THRESHOLDS = 1 << 20
"""Maximum number of thresholds of rows that could have running sums instead."""
MIN_ENTRIES = 256
"""Minimum number of entries, on average, of lists of running sums."""


class _Lists(NamedTuple):
    """Weights of the entries of distinct lists, `[D, 4]`: `counts[d, 0]` entries of weight `weights[d, 0]`, and so on."""

    weights: FloatArray
    counts: Int64Array
    list_of: Int64Array
    """List of each row, `[R]`."""


class _Rows(NamedTuple):
    """Rows of thresholds or running sums. The other fields are those of `PartnerRows`."""

    thresholds: Int64Array
    first: Int64Array
    length: Int64Array
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
            np.full(num_groups, -1), np.empty((0, ROW_WORDS), dtype=np.int64), np.empty(0, dtype=np.int64), 0
        )
    used, first = np.unique(given.row_of[given.row_of >= 0], return_index=True)
    order = used[np.argsort(first, kind="stable")]
    rows, flags = _rows_of(given, order)
    number, kept = _distinct(_keys(rows, flags))
    row_number = np.full(given.count + 1, -1, dtype=np.int64)  # the last one is for groups without a partner
    row_number[order] = number
    return PackedRows(row_number[given.row_of], *_packed(rows, kept), flags)


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


def unpack_thresholds(rows: Int64Array, lists: Int64Array, flags: int) -> Int64Array:
    """Return the thresholds of rows, `[R, 5]`, one row after the other."""
    first, _, slice_length = unpack_rows(rows)
    counts = slice_length.sum(axis=1)
    return sum_thresholds_of(lists, first, counts) if flags & FLAG_SUMS else lists[expand(first, counts)]


def _rows_of(given: PartnerRows, order: Int64Array) -> tuple[_Rows, int]:
    """The rows `order`, and the flags of their kind. Rows with the same weights share a list."""
    groups = given.groups, given.slice_first[order], given.slice_length[order]
    if not given.even:
        count, first_weight = given.entries[order], given.first_weight[order]
        _, at, list_of = np.unique(first_weight * (count.max() + 1) + count, return_index=True, return_inverse=True)
        thresholds, first = _thresholds(given.weights, first_weight[at], count[at])
        return _without_flat_entries(_Rows(thresholds, first[list_of], count, *groups)), 0
    lists = _lists_of(given.slice_weights(order), groups[2])
    count = lists.counts.sum(axis=1)
    if count.sum() > max(MAX_THRESHOLDS, MIN_ENTRIES * count.size) and _has_no_flat_entries(lists):
        sums = pack_sums(lists.weights, lists.counts)
        return _Rows(sums.words, sums.first[lists.list_of], sums.length[lists.list_of], *groups), FLAG_SUMS
    require_memory(int(count.sum()))
    weights = np.repeat(lists.weights.reshape(-1), lists.counts.reshape(-1))
    thresholds, first = _thresholds(weights, np.cumsum(count) - count, count)
    return _without_flat_entries(_Rows(thresholds, first[lists.list_of], count[lists.list_of], *groups)), 0


def _lists_of(weights: FloatArray, counts: Int64Array) -> _Lists:
    """The distinct lists of rows, `[R, 4]`. Neighbors of the same weight are joined."""
    joined_weights, joined_counts = np.zeros_like(weights), np.zeros_like(counts)
    last = np.full(len(weights), -1)
    for k in range(weights.shape[1]):
        rows = np.flatnonzero(counts[:, k])
        last[rows] += (last[rows] < 0) | (joined_weights[rows, last[rows]] != weights[rows, k])
        joined_weights[rows, last[rows]] = weights[rows, k]
        joined_counts[rows, last[rows]] += counts[rows, k]
    columns = np.concatenate([joined_weights.view(np.int64), joined_counts], axis=1)
    order = np.lexsort(columns.T)
    is_new = np.concatenate([[True], (columns[order[1:]] != columns[order[:-1]]).any(axis=1)])
    list_of = np.empty(order.size, dtype=np.int64)
    list_of[order] = np.cumsum(is_new) - 1
    return _Lists(joined_weights[order[is_new]], joined_counts[order[is_new]], list_of)


def _has_no_flat_entries(lists: _Lists) -> bool:
    """Whether each weight is more than one unit of the thresholds."""
    total = (lists.weights * lists.counts).sum(axis=1, keepdims=True)
    return bool(((lists.weights >= total * 2.0**-31) | (lists.counts == 0)).all())


def _thresholds(weights: FloatArray, source: Int64Array, length: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Thresholds of lists of weights, and the first one of each list."""
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
        padded = np.where(inside, weights.take(source[block, None] + column, mode="clip"), 0.0)
        thresholds[(first[block, None] + column)[inside]] = partner_thresholds(padded)[inside]
        start = stop
    return thresholds, first


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
    counts = rows.length
    flat_before = np.concatenate([[0], np.cumsum(flat)])
    changed = np.flatnonzero(flat_before[rows.first + counts] > flat_before[rows.first])
    require_memory(int(counts[changed].sum()))
    at = expand(rows.first[changed], counts[changed])
    group_at = expand(rows.slice_first[changed], rows.slice_length[changed])
    kept = ~flat[at]
    row = np.repeat(np.arange(changed.size), counts[changed])
    left = np.bincount(row[kept], minlength=changed.size)
    offset = np.cumsum(left) - left
    first, length = rows.first.copy(), rows.length.copy()
    slice_first, slice_length = rows.slice_first.copy(), rows.slice_length.copy()
    first[changed], length[changed] = rows.thresholds.size + offset, left
    slice_first[changed], slice_length[changed] = 0, 0
    slice_first[changed, 0], slice_length[changed, 0] = rows.groups.size + offset, left
    thresholds = np.concatenate([rows.thresholds, rows.thresholds[at[kept]]])
    groups = np.concatenate([rows.groups, rows.groups[group_at[kept]]])
    return _Rows(thresholds, first, length, groups, slice_first, slice_length)


def _keys(rows: _Rows, flags: int) -> NDArray[np.uint64]:
    """Hash of each row, `[R, 2]`: sums of hashes of its groups and of its thresholds, both of which are ascending."""
    keys = np.empty((rows.first.size, 2), dtype=np.uint64)
    for k in range(2):
        groups = _running_hash(rows.groups, 2 * k + 1)
        keys[:, k] = (groups[rows.slice_first + rows.slice_length] - groups[rows.slice_first]).sum(axis=1)
        if not flags & FLAG_SUMS:  # rows of the same groups have the same running sums
            thresholds = _running_hash(rows.thresholds, 2 * k)
            keys[:, k] += thresholds[rows.first + rows.length] - thresholds[rows.first]
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
    thresholds, first = _used(rows.thresholds, rows.first[kept], rows.length[kept])
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
    begin, stop = first[length > 0], (first + length)[length > 0]
    order = np.argsort(begin, kind="stable")
    reached = np.concatenate([[0], np.maximum.accumulate(stop[order])])
    if (begin[order] <= reached[:-1]).all() and reached[-1] == values.size:
        return values, first
    change = np.bincount(begin, minlength=values.size + 1)
    change -= np.bincount(stop, minlength=values.size + 1)
    used = np.cumsum(change[:-1]) > 0
    position = np.concatenate([[0], np.cumsum(used)])
    return values[used], position[first]
