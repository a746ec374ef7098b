"""The draw in Triton: the specification's integers, so that its bits are those of every other backend."""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.core import table_layout as _layout

MAGIC = tl.constexpr(_layout.MAGIC)
HEADER_WORDS = tl.constexpr(_layout.HEADER_WORDS)
WORD_LENGTH = tl.constexpr(_layout.WORD_LENGTH)
WORD_NUM_EXAMPLES = tl.constexpr(_layout.WORD_NUM_EXAMPLES)
WORD_NUM_GROUPS = tl.constexpr(_layout.WORD_NUM_GROUPS)
WORD_NUM_STRATA = tl.constexpr(_layout.WORD_NUM_STRATA)
WORD_PERIOD = tl.constexpr(_layout.WORD_PERIOD)
WORD_NUM_ROWS = tl.constexpr(_layout.WORD_NUM_ROWS)
WORD_FLAGS = tl.constexpr(_layout.WORD_FLAGS)
MAX_COUNT = tl.constexpr(_layout.MAX_COUNT)
QUANTILES = tl.constexpr(_layout.QUANTILES)
REPLACEMENT = tl.constexpr(_layout.FLAG_REPLACEMENT)


@triton.jit
def mix32(x):
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def sample_words(seed, n, block: tl.constexpr):
    """The four words of samples `n` (int64), block `block`."""
    low, high = n.to(tl.uint32), (n >> 32).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, high, zero + block, zero)


@triton.jit
def bit_length(x):
    """Of positive int64."""
    bits = x * 0
    for step in tl.static_range(5, -1, -1):
        big = (x >> (1 << step)) > 0
        bits += tl.where(big, 1 << step, 0)
        x = tl.where(big, x >> (1 << step), x)
    return bits + 1


@triton.jit
def _round_key(word, r: tl.constexpr):
    return word + ((r * 0x9E3779B9) & 0xFFFFFFFF)


@triton.jit
def _feistel(x, low_bits, low_mask, high_mask, k0, k1, k2, k3):
    low, high = x.to(tl.uint32) & low_mask, (x >> low_bits).to(tl.uint32)
    for r in tl.static_range(0, 8, 2):
        if r % 4 == 0:
            even, odd = k0, k1
        else:
            even, odd = k2, k3
        low ^= mix32(mix32(high ^ _round_key(even, r))) & low_mask
        high ^= mix32(mix32(low ^ _round_key(odd, r + 1))) & high_mask
    return (high.to(tl.int64) << low_bits) | low.to(tl.int64)


@triton.jit
def _shuffled(p, m, k0, k1, k2, k3):
    """One element of a Fisher-Yates shuffle, followed through it (m <= 16)."""
    x = p
    for i in tl.static_range(15, -1, -1):
        if i % 4 == 0:
            key = k0
        elif i % 4 == 1:
            key = k1
        elif i % 4 == 2:
            key = k2
        else:
            key = k3
        j = (mix32(_round_key(key, i)).to(tl.uint64) * (i + 1) >> 32).to(tl.int64)
        moved = tl.where(x == i, j, tl.where(x == j, i, x))
        x = tl.where(i < m, moved, x)
    return x


@triton.jit
def permute(p, m, k0, k1, k2, k3):
    """Positions `p` under the permutations of [0, m) that the keys select; int64 blocks."""
    small = m <= 16
    bits = bit_length(tl.maximum(m - 1, 1))
    low_bits = bits // 2
    one = low_bits * 0 + 1
    low_mask = ((one << low_bits) - 1).to(tl.uint32)
    high_mask = ((one << (bits - low_bits)) - 1).to(tl.uint32)
    x = p
    outside = m > 16
    while tl.max(outside.to(tl.int32), 0) > 0:
        x = tl.where(outside, _feistel(x, low_bits, low_mask, high_mask, k0, k1, k2, k3), x)
        outside = (m > 16) & (x >= m)
    if tl.max(small.to(tl.int32), 0) > 0:
        x = tl.where(small, _shuffled(p, m, k0, k1, k2, k3), x)
    return x


@triton.jit
def count_at_most(values, count, x, mask):
    """Number of leading entries of `count` ascending int64 at `values` (a pointer each) that are <= x."""
    low = x * 0
    left = tl.where(mask, low + count, 0)
    while tl.max(left, 0) > 0:
        half = left // 2
        probe = tl.load(values + low + half, mask=left > 0, other=0)
        right = (left > 0) & (probe <= x)
        low = tl.where(right, low + half + 1, low)
        left = tl.where(right, left - half - 1, half)
    return low


@triton.jit
def _count_at_most_by_lanes(values, count, x, LANES: tl.constexpr):
    """The same for one `x`, a block of one: LANES probes at once, as each step waits for memory."""
    low, left, point = tl.sum(x, 0) * 0, tl.sum(x, 0) * 0 + count, tl.sum(x, 0)
    lane = tl.arange(0, LANES).to(tl.int64)
    while left > 0:
        step = (left + LANES - 1) // LANES
        at = (lane + 1) * step - 1
        passed = tl.load(values + low + at, mask=at < left, other=0) <= point
        skipped = tl.sum(((at < left) & passed).to(tl.int64), 0) * step
        low += skipped
        left = tl.minimum(step - 1, left - skipped)
    return x * 0 + low


@triton.jit
def uniform_below(high, low, m):
    """mulhi64 of the 64-bit word and m, int64."""
    word = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    return tl.umulhi(word, m.to(tl.uint64)).to(tl.int64)


@triton.jit
def tables_are_valid(tables, length, member_count, HAS_MEMBERS: tl.constexpr):
    """Whether `length` int64 at `tables` are packed tables of this version: what the header says fills them exactly.

    There are at least as many as a header; members are for each example, or there are none.
    """
    n, g = tl.load(tables + WORD_NUM_EXAMPLES), tl.load(tables + WORD_NUM_GROUPS)
    s, w = tl.load(tables + WORD_NUM_STRATA), tl.load(tables + WORD_PERIOD)
    r = tl.load(tables + WORD_NUM_ROWS)
    counts = (n >= 1) & (g >= 1) & (s >= 1) & (w >= 1) & (r >= 0) & (r <= g)
    counts = counts & (g <= MAX_COUNT) & (s <= MAX_COUNT) & (w <= MAX_COUNT)
    ends = HEADER_WORDS + w + 3 * s + g + 1 + g + r * g + QUANTILES
    if HAS_MEMBERS:
        counts = counts & (n == member_count)
    return (tl.load(tables) == MAGIC) & (tl.load(tables + WORD_LENGTH) == length) & counts & (ends == length)


@triton.jit
def draw_samples(tables, members, seed, n, mask, HAS_MEMBERS: tl.constexpr, LANES: tl.constexpr):
    """Samples `n` (an int64 block): index, partner, group int64, lam float32, and the word that flips.

    LANES: how many lanes look for the groups of a block of one; 0 for larger blocks.
    """
    groups, strata = tl.load(tables + WORD_NUM_GROUPS), tl.load(tables + WORD_NUM_STRATA)
    period, rows = tl.load(tables + WORD_PERIOD), tl.load(tables + WORD_NUM_ROWS)
    flags = tl.load(tables + WORD_FLAGS)
    slot = tables + HEADER_WORDS
    share = slot + period
    first = share + strata
    size_of = first + strata
    offsets = size_of + strata
    row_of = offsets + groups + 1
    threshold = row_of + groups
    quantile = threshold + rows * groups

    # 1. the stratum and how often it came before
    turn = n // period
    entry = tl.load(slot + (n - turn * period), mask=mask, other=0)
    s, rank = entry >> 32, entry & 0xFFFFFFFF
    size = tl.load(size_of + s, mask=mask, other=1)
    k = turn * tl.load(share + s, mask=mask, other=0) + rank

    # 2. the index
    a0, a1, a2, _ = sample_words(seed, n, 0)
    b0, b1, b2, b3 = sample_words(seed, n, 1)
    if (flags & REPLACEMENT) != 0:
        position = uniform_below(a0, a1, size)
    else:
        cycle = k // size
        zero = s.to(tl.uint32) * 0
        k0, k1, k2, k3 = tl.philox(seed, s.to(tl.uint32), cycle.to(tl.uint32), (cycle >> 32).to(tl.uint32), zero + 0x50)
        position = permute(k - cycle * size, size, k0, k1, k2, k3)
    position += tl.load(first + s, mask=mask, other=0)

    # 3. its group
    if LANES > 0:
        group = _count_at_most_by_lanes(offsets, groups + 1, position, LANES) - 1
    else:
        group = count_at_most(offsets, groups + 1, position, mask) - 1

    # 4. the partner
    row = tl.load(row_of + group, mask=mask, other=-1)
    paired = mask & (row >= 0)
    if LANES > 0:
        searched = tl.where(tl.sum(row, 0) >= 0, groups, 0)
        h = _count_at_most_by_lanes(
            threshold + tl.maximum(tl.sum(row, 0), 0) * groups, searched, a2.to(tl.int64), LANES
        )
    else:
        h = count_at_most(threshold + tl.where(paired, row, 0) * groups, groups, a2.to(tl.int64), paired)
    begin = tl.load(offsets + h, mask=paired, other=0)
    end = tl.load(offsets + h + 1, mask=paired, other=1)
    partner = tl.where(paired, begin + uniform_below(b0, b1, end - begin), position)

    # 5. lam
    bucket = (b2 >> 22).to(tl.int64)
    low = tl.load(quantile + bucket, mask=paired, other=0)
    high = tl.load(quantile + bucket + 1, mask=paired, other=0)
    fraction = (b2 & 0x3FFFFF).to(tl.int64)
    lam = tl.where(paired, (low + (((high - low) * fraction) >> 22)).to(tl.float32) * 5.9604644775390625e-08, 1.0)

    index = position
    if HAS_MEMBERS:
        index = tl.load(members + position, mask=mask, other=0).to(tl.int64)
        partner = tl.load(members + partner, mask=mask, other=0).to(tl.int64)
    return index, partner, group, lam, b3


@triton.jit(do_not_specialize=["length", "member_count", "seed", "start", "count"])
def draw_kernel(
    tables, length: tl.int64, members, member_count: tl.int64, seed: tl.int64, start: tl.int64, counter, index, partner,
    lam, group, flag, count, HAS_MEMBERS: tl.constexpr, HAS_COUNTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Samples start to start + count; BLOCK of them a program. Bad tables set `flag` and are not followed."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = start + i.to(tl.int64)
    inside = i < count
    known = tables_are_valid(tables, length, member_count, HAS_MEMBERS)
    if HAS_COUNTER:
        n += tl.load(counter)
        known = known & (tl.load(counter) >= 0) & (tl.min(n, 0) >= 0)
    if not known:
        tl.store(flag, 1)
        tl.store(index + i, 0, mask=inside)
        tl.store(partner + i, 0, mask=inside)
        tl.store(group + i, -1, mask=inside)
        tl.store(lam + i, float("nan"), mask=inside)
        return
    drawn, mate, of, weight, _ = draw_samples(tables, members, seed, n, inside, HAS_MEMBERS, 0)
    tl.store(index + i, drawn, mask=inside)
    tl.store(partner + i, mate, mask=inside)
    tl.store(group + i, of, mask=inside)
    tl.store(lam + i, weight, mask=inside)
