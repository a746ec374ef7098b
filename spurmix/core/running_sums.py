"""Running float64 sums of weights that repeat, stored as runs of equal steps.

Adding the same weight repeatedly adds the same step as long as the sums have the same exponent. The sums of 10^5 weights
are therefore about twenty runs, from which each sum, and so each threshold, follows exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.schedule import sum_thresholds
from spurmix.core.table_layout import RUN_WORDS, SUM_HEAD_WORDS

BLOCK_LISTS = 1 << 13
"""Number of lists that are computed at a time."""


class SumLists(NamedTuple):
    """Running sums of lists of weights, as draw tables contain them."""

    words: Int64Array
    """The words of all lists."""
    first: Int64Array
    """First word of each list, `[D]`."""
    length: Int64Array
    """Number of words of each list, `[D]`."""


def pack_sums(weights: FloatArray, counts: Int64Array) -> SumLists:
    """Compute the running sums of lists of weights.

    Args:
        weights: Weights of the entries of each list, `[D, K]`: `counts[d, 0]` entries of weight `weights[d, 0]`, then
            `counts[d, 1]` entries of weight `weights[d, 1]`, and so on.
        counts: Numbers of entries, `[D, K]`. Each list has at least one entry.

    Returns:
        The lists. `table_layout.py` defines their words.
    """
    words, length = [], []
    for start in range(0, len(weights), BLOCK_LISTS):
        block = slice(start, start + BLOCK_LISTS)
        parts, runs, total = _runs(weights[block], counts[block])
        length.append(SUM_HEAD_WORDS + RUN_WORDS * runs)
        first = np.cumsum(length[-1]) - length[-1]
        words.append(np.empty(int(length[-1].sum()), dtype=np.int64))
        words[-1][first], words[-1][first + 1] = runs, total.view(np.int64)
        for part in parts:
            at = first[part.lists] + SUM_HEAD_WORDS + RUN_WORDS * part.number
            for k, values in enumerate((part.begin, part.base, part.step)):
                words[-1][at + k] = values.view(np.int64)
    lengths = np.concatenate(length)
    return SumLists(np.concatenate(words), np.cumsum(lengths) - lengths, lengths)


def unpack_thresholds(words: Int64Array, first: Int64Array, counts: Int64Array) -> Int64Array:
    """Compute the thresholds of lists of running sums.

    Args:
        words: Words that contain the lists.
        first: First word of each list, `[D]`.
        counts: Number of entries of each list, `[D]`.

    Returns:
        The thresholds of the lists, one list after the other.
    """
    runs = words[first]
    at = np.repeat(first + SUM_HEAD_WORDS, runs)
    at += RUN_WORDS * (np.arange(at.size) - np.repeat(np.cumsum(runs) - runs, runs))
    begin = words[at]
    stop = np.append(begin[1:], 0)
    stop[np.cumsum(runs) - 1] = counts
    length = stop - begin
    entry = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    base, step = np.repeat(words[at + 1].view(np.float64), length), np.repeat(words[at + 2].view(np.float64), length)
    return sum_thresholds(base + entry * step, np.repeat(words[first + 1].view(np.float64), counts))


class _Runs(NamedTuple):
    """One run of each of some lists."""

    lists: Int64Array
    number: Int64Array
    """Number of earlier runs of the list."""
    begin: Int64Array
    """First entry."""
    base: FloatArray
    """Sum of the first entry."""
    step: FloatArray


def _runs(weights: FloatArray, counts: Int64Array) -> tuple[list[_Runs], Int64Array, FloatArray]:
    """All runs, the number of runs of each list, and the sum of each list."""
    total, entry, number = np.zeros(len(weights)), *np.zeros((2, len(weights)), dtype=np.int64)
    found = []
    for k in range(weights.shape[1]):
        left = counts[:, k].copy()
        lists = np.flatnonzero(left)
        while lists.size:
            weight, room = weights[lists, k], left[lists]
            base = total[lists] + weight
            second = base + weight
            third = second + weight
            ulp, top = np.spacing(base), np.ldexp(1.0, np.frexp(base)[1])
            step = second - base
            # Sums below `top` have the spacing `ulp`. Once two steps are equal, so are all steps up to there.
            even = (room > 2) & (third < top) & (third - second == step)
            inside = ((top - ulp - base) / ulp).astype(np.int64) // np.maximum((step / ulp).astype(np.int64), 1)
            length = np.where(even, np.minimum(room, inside + 1), 1)
            step = np.where(even, step, 0.0)
            found.append(_Runs(lists, number[lists], entry[lists], base, step))
            total[lists] = base + (length - 1) * step
            entry[lists] += length
            number[lists] += 1
            left[lists] -= length
            lists = lists[length < room]
    return found, number, total
