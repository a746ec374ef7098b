"""Draw kernel: sample numbers to (index, partner, group, lam). The arithmetic is that of `csrc/draw.h`."""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.core import table_layout as _layout
from spurmix.kernels.errors import report

MAGIC = tl.constexpr(_layout.MAGIC)
HEADER_WORDS = tl.constexpr(_layout.HEADER_WORDS)
WORD_LENGTH = tl.constexpr(_layout.WORD_LENGTH)
WORD_NUM_EXAMPLES = tl.constexpr(_layout.WORD_NUM_EXAMPLES)
WORD_NUM_GROUPS = tl.constexpr(_layout.WORD_NUM_GROUPS)
WORD_NUM_STRATA = tl.constexpr(_layout.WORD_NUM_STRATA)
WORD_PERIOD = tl.constexpr(_layout.WORD_PERIOD)
WORD_NUM_ROWS = tl.constexpr(_layout.WORD_NUM_ROWS)
WORD_FLAGS = tl.constexpr(_layout.WORD_FLAGS)
WORD_LIST_WORDS = tl.constexpr(_layout.WORD_LIST_WORDS)
ROW_WORDS = tl.constexpr(_layout.ROW_WORDS)
SUM_HEAD_WORDS = tl.constexpr(_layout.SUM_HEAD_WORDS)
RUN_WORDS = tl.constexpr(_layout.RUN_WORDS)
FLAG_SUMS = tl.constexpr(_layout.FLAG_SUMS)
FLAG_MEMBERS = tl.constexpr(_layout.FLAG_MEMBERS)
FLAG_REPLACEMENT = tl.constexpr(_layout.FLAG_REPLACEMENT)
QUANTILES = tl.constexpr(_layout.QUANTILES)
MAX_COUNT = tl.constexpr(_layout.MAX_COUNT)


@triton.jit
def _mix32(x):
    """Bijective hash of uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def sample_words(seed, n, block: tl.constexpr):
    """Return the four Philox words, uint32, of samples `n` (int64) in counter block `block`."""
    low, high = n.to(tl.uint32), (n >> 32).to(tl.uint32)
    zero = low * 0
    return tl.philox(seed, low, high, zero + block, zero)


@triton.jit
def _bit_length(x):
    """Number of bits of positive int64 values."""
    bits = x * 0
    for step in tl.static_range(5, -1, -1):
        large = (x >> (1 << step)) > 0
        bits += tl.where(large, 1 << step, 0)
        x = tl.where(large, x >> (1 << step), x)
    return bits + 1


@triton.jit
def _round_key(word, r: tl.constexpr):
    return word + ((r * 0x9E3779B9) & 0xFFFFFFFF)


@triton.jit
def _feistel(x, low_bits, low_mask, high_mask, k0, k1, k2, k3):
    """Eight rounds of a Feistel network on `x`, split into a low half of `low_bits` bits and a high half."""
    low, high = x.to(tl.uint32) & low_mask, (x >> low_bits).to(tl.uint32)
    for r in tl.static_range(0, 8, 2):
        if r % 4 == 0:
            even, odd = k0, k1
        else:
            even, odd = k2, k3
        low ^= _mix32(_mix32(high ^ _round_key(even, r))) & low_mask
        high ^= _mix32(_mix32(low ^ _round_key(odd, r + 1))) & high_mask
    return (high.to(tl.int64) << low_bits) | low.to(tl.int64)


@triton.jit
def _fisher_yates(p, m, k0, k1, k2, k3):
    """Position of element `p` after a Fisher-Yates shuffle of `m` <= 16 elements."""
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
        j = (_mix32(_round_key(key, i)).to(tl.uint64) * (i + 1) >> 32).to(tl.int64)
        moved = tl.where(x == i, j, tl.where(x == j, i, x))
        x = tl.where(i < m, moved, x)
    return x


@triton.jit
def _permute(p, m, k0, k1, k2, k3):
    """Positions `p` (int64) under the permutations of [0, m) that the four key words select."""
    small = m <= 16
    bits = _bit_length(tl.maximum(m - 1, 1))
    low_bits = bits // 2
    one = low_bits * 0 + 1
    low_mask = ((one << low_bits) - 1).to(tl.uint32)
    high_mask = ((one << (bits - low_bits)) - 1).to(tl.uint32)
    x = p
    outside = m > 16
    # Cycle walking: repeat the network until the value is below m.
    while tl.max(outside.to(tl.int32), 0) > 0:
        x = tl.where(outside, _feistel(x, low_bits, low_mask, high_mask, k0, k1, k2, k3), x)
        outside = (m > 16) & (x >= m)
    # A Feistel network over so few values is biased.
    if tl.max(small.to(tl.int32), 0) > 0:
        x = tl.where(small, _fisher_yates(p, m, k0, k1, k2, k3), x)
    return x


@triton.jit
def _count_at_most(values_ptr, count, x, mask):
    """Number of entries <= `x` among `count` ascending int64 values. `values_ptr` has one pointer per lane."""
    low = x * 0
    remaining = tl.where(mask, low + count, 0)
    while tl.max(remaining, 0) > 0:
        half = remaining // 2
        probe = tl.load(values_ptr + low + half, mask=remaining > 0, other=0)
        right = (remaining > 0) & (probe <= x)
        low = tl.where(right, low + half + 1, low)
        remaining = tl.where(right, remaining - half - 1, half)
    return low


@triton.jit
def _count_at_most_parallel(values_ptr, count, x, LANES: tl.constexpr):
    """Searches one `x`, a block of one, with LANES probes per step, to hide memory latency."""
    low, remaining, value = tl.sum(x, 0) * 0, tl.sum(x, 0) * 0 + count, tl.sum(x, 0)
    lane = tl.arange(0, LANES).to(tl.int64)
    while remaining > 0:
        step = (remaining + LANES - 1) // LANES
        offset = (lane + 1) * step - 1
        passed = tl.load(values_ptr + low + offset, mask=offset < remaining, other=0) <= value
        skipped = tl.sum(((offset < remaining) & passed).to(tl.int64), 0) * step
        low += skipped
        remaining = tl.minimum(step - 1, remaining - skipped)
    return x * 0 + low


@triton.jit
def _uniform_below(high, low, m):
    """Uniform int64 in [0, m): the high 64 bits of the product of m and the random word (high << 32 | low)."""
    word = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    return tl.umulhi(word, m.to(tl.uint64)).to(tl.int64)


@triton.jit
def tables_are_valid(tables_ptr, length, member_count, HAS_MEMBERS: tl.constexpr):
    """Return whether `length` int64 words at `tables_ptr` are packed tables of this version.

    The header must describe sections that fill exactly `length` words, and `member_count` must match the number of
    examples. The host has checked that there are at least HEADER_WORDS words.
    """
    n, g = tl.load(tables_ptr + WORD_NUM_EXAMPLES), tl.load(tables_ptr + WORD_NUM_GROUPS)
    s, w = tl.load(tables_ptr + WORD_NUM_STRATA), tl.load(tables_ptr + WORD_PERIOD)
    r, lists = tl.load(tables_ptr + WORD_NUM_ROWS), tl.load(tables_ptr + WORD_LIST_WORDS)
    counts = (n >= 1) & (g >= 1) & (s >= 1) & (w >= 1) & (r >= 0) & (r <= g) & (lists >= 0)
    counts = counts & (g <= MAX_COUNT) & (s <= MAX_COUNT) & (w <= MAX_COUNT) & (lists <= MAX_COUNT)
    end = HEADER_WORDS + w + 3 * s + g + 1 + g + r * ROW_WORDS + lists + QUANTILES
    optional = (tl.load(tables_ptr + WORD_FLAGS) & FLAG_MEMBERS) == 0
    counts = counts & (n == member_count if HAS_MEMBERS else optional)
    return (tl.load(tables_ptr) == MAGIC) & (tl.load(tables_ptr + WORD_LENGTH) == length) & counts & (end == length)


@triton.jit
def _in_range(x, count):
    return (x >= 0) & (x < count)


@triton.jit
def _below(sum, total, limit):
    """Whether the threshold of a running sum, floor(2^32 * sum / total), is below `limit`, an integer."""
    return sum * 4294967296.0 / total < limit


@triton.jit
def _load_double(pointer, mask):
    return tl.load(pointer, mask=mask, other=0).to(tl.float64, bitcast=True)


@triton.jit
def _sums_at_most(lists_ptr, list_words, first, count, word, mask):
    """Number of entries with a threshold <= `word` of rows of running sums, and whether the rows are valid.

    A row has `count` entries. Its list starts at the word `first` of the lists.
    """
    valid = mask & (first >= 0) & (first + SUM_HEAD_WORDS <= list_words)
    num_runs = tl.load(lists_ptr + first, mask=valid, other=0)
    valid = valid & (num_runs >= 0) & (num_runs <= (list_words - first - SUM_HEAD_WORDS) // RUN_WORDS)
    runs_ptr = lists_ptr + first + SUM_HEAD_WORDS
    total = tl.where(valid, _load_double(lists_ptr + first + 1, valid), 1.0)
    limit = word.to(tl.float64) + 1.0
    low = word * 0  # the number of runs that begin below the limit
    left = tl.where(valid, low + num_runs, 0)
    while tl.max(left, 0) > 0:
        half = left // 2
        right = (left > 0) & _below(_load_double(runs_ptr + (low + half) * RUN_WORDS + 1, left > 0), total, limit)
        low = tl.where(right, low + half + 1, low)
        left = tl.where(right, left - half - 1, half)
    found = valid & (low > 0)
    run_ptr = runs_ptr + (low - 1) * RUN_WORDS
    begin = tl.load(run_ptr, mask=found, other=0)
    stop = tl.load(run_ptr + RUN_WORDS, mask=found & (low < num_runs), other=0)
    stop = tl.where(low < num_runs, stop, count)
    valid = valid & (~found | (_in_range(begin, count) & _in_range(stop, count + 1)))
    # The estimate is the number of entries of the run below the limit, or up to 2 less.
    base, step = _load_double(run_ptr + 1, found), _load_double(run_ptr + 2, found)
    length = stop - begin
    estimate = (limit * total * (1.0 / 4294967296.0) - base) / tl.where(step > 0.0, step, 1.0)
    estimate = tl.where(estimate > 0.0, estimate, 0.0)
    bound = length.to(tl.float64)
    k = tl.where(estimate < bound, estimate, bound).to(tl.int64)
    for _ in range(2):  # unrolled loops spill registers on sm_80
        k += ((k < length) & _below(base + k.to(tl.float64) * step, total, limit)).to(tl.int64)
    return tl.where(found, begin + k, 0), valid


@triton.jit
def _partner_groups(rows_ptr, lists_ptr, list_words, flags, row, word, mask, LANES: tl.constexpr):
    """Return the groups that `word` (int64) selects from rows of partners, and whether the rows are valid.

    Reads the lists only within `list_words`.
    """
    words_ptr = rows_ptr + tl.where(mask, row, 0) * ROW_WORDS
    head = tl.load(words_ptr, mask=mask, other=0)
    first, count = head >> 32, head & 0xFFFFFFFF
    valid = mask & (first >= 0) & (first + count <= list_words)
    if (flags & FLAG_SUMS) != 0:
        entry, valid = _sums_at_most(lists_ptr, list_words, first, count, word, mask)
    elif LANES > 0:
        searched = tl.where(tl.sum(valid.to(tl.int32), 0) > 0, tl.sum(count, 0), 0)
        entry = _count_at_most_parallel(lists_ptr + tl.sum(first, 0), searched, word, LANES)
    else:
        entry = _count_at_most(lists_ptr + first, count, word, valid)
    part = tl.load(words_ptr + 1, mask=mask, other=0)
    for k in tl.static_range(2, ROW_WORDS):
        following = tl.load(words_ptr + k, mask=mask, other=0)
        part = tl.where((following >> 32) <= entry, following, part)
    at = (part & 0xFFFFFFFF) + entry - (part >> 32)
    valid = valid & _in_range(entry, count) & _in_range(at, list_words)
    return tl.load(lists_ptr + at, mask=valid, other=-1), valid


@triton.jit
def draw_samples(  # noqa: DOC107
    tables_ptr, members_ptr, seed, n, mask, HAS_MEMBERS: tl.constexpr, LANES: tl.constexpr
):
    """Draw samples `n`, a block of int64 sample numbers.

    Args:
        tables_ptr: packed tables, int64.
        members_ptr: example number of each position, int32 or int64. Not read unless HAS_MEMBERS.
        seed: seed of the sequence, int64.
        n: sample numbers, int64.
        mask: lanes to draw.
        HAS_MEMBERS: whether positions are mapped to example numbers by `members_ptr`.
        LANES: number of lanes that search together where `n` has one element; 0 for blocks of several elements.

    Returns:
        index, partner and group (int64), lam (float32), and the random word for flips (uint32). If the tables have values
        that draw tables cannot have, group is -1, lam NaN, and index and partner are 0.
    """
    examples = tl.load(tables_ptr + WORD_NUM_EXAMPLES)
    groups, strata = tl.load(tables_ptr + WORD_NUM_GROUPS), tl.load(tables_ptr + WORD_NUM_STRATA)
    period, rows = tl.load(tables_ptr + WORD_PERIOD), tl.load(tables_ptr + WORD_NUM_ROWS)
    flags, list_words = tl.load(tables_ptr + WORD_FLAGS), tl.load(tables_ptr + WORD_LIST_WORDS)
    slot_ptr = tables_ptr + HEADER_WORDS
    share_ptr = slot_ptr + period
    first_ptr = share_ptr + strata
    size_ptr = first_ptr + strata
    offsets_ptr = size_ptr + strata
    row_of_ptr = offsets_ptr + groups + 1
    rows_ptr = row_of_ptr + groups
    lists_ptr = rows_ptr + rows * ROW_WORDS
    quantile_ptr = lists_ptr + list_words

    # 1. The stratum, and how often the sequence has visited it before.
    schedule_cycle = n // period
    slot = tl.load(slot_ptr + (n - schedule_cycle * period), mask=mask, other=0)
    stratum, rank = slot >> 32, slot & 0xFFFFFFFF
    valid = mask & _in_range(stratum, strata)
    size = tl.load(size_ptr + stratum, mask=valid, other=1)
    first = tl.load(first_ptr + stratum, mask=valid, other=0)
    valid = valid & (first >= 0) & (size > 0) & (size <= examples - first)
    size = tl.where(valid, size, 1)
    visit = schedule_cycle * tl.load(share_ptr + stratum, mask=valid, other=0) + rank

    # 2. The index.
    a0, a1, a2, _ = sample_words(seed, n, 0)
    b0, b1, b2, b3 = sample_words(seed, n, 1)
    if (flags & FLAG_REPLACEMENT) != 0:
        position = _uniform_below(a0, a1, size)
    else:
        cycle = (visit.to(tl.uint64) // size.to(tl.uint64)).to(tl.int64)
        zero = stratum.to(tl.uint32) * 0
        k0, k1, k2, k3 = tl.philox(
            seed, stratum.to(tl.uint32), cycle.to(tl.uint32), (cycle >> 32).to(tl.uint32), zero + 0x50
        )
        position = _permute(visit - cycle * size, size, k0, k1, k2, k3)
    position += first

    # 3. The group of the index.
    if LANES > 0:
        group = _count_at_most_parallel(offsets_ptr, groups + 1, position, LANES) - 1
    else:
        group = _count_at_most(offsets_ptr, groups + 1, position, mask) - 1
    valid = valid & _in_range(group, groups)

    # 4. The partner.
    row = tl.load(row_of_ptr + group, mask=valid, other=-1)
    has_partner = valid & (row >= 0)
    valid = valid & (row < rows)
    partner_group, row_valid = _partner_groups(
        rows_ptr, lists_ptr, list_words, flags, row, a2.to(tl.int64), has_partner & valid, LANES
    )
    row_valid = row_valid & _in_range(partner_group, groups)
    begin = tl.load(offsets_ptr + partner_group, mask=row_valid, other=0)
    end = tl.load(offsets_ptr + partner_group + 1, mask=row_valid, other=1)
    partner = tl.where(has_partner, begin + _uniform_below(b0, b1, end - begin), position)
    valid = valid & (~has_partner | row_valid) & _in_range(partner, examples)

    # 5. lam, by linear interpolation in the quantile table.
    bucket = (b2 >> 22).to(tl.int64)
    low = tl.load(quantile_ptr + bucket, mask=has_partner, other=0)
    high = tl.load(quantile_ptr + bucket + 1, mask=has_partner, other=0)
    fraction = (b2 & 0x3FFFFF).to(tl.int64)
    weight = low + (((high - low) * fraction) >> 22)
    valid = valid & _in_range(weight, (1 << 24) + 1)
    lam = tl.where(has_partner, weight.to(tl.float32) * 5.9604644775390625e-08, 1.0)

    index = tl.where(valid, position, 0)
    partner = tl.where(valid, partner, 0)
    if HAS_MEMBERS:
        index = tl.load(members_ptr + index, mask=valid, other=0).to(tl.int64)
        partner = tl.load(members_ptr + partner, mask=valid, other=0).to(tl.int64)
        valid = valid & _in_range(index, examples) & _in_range(partner, examples)
        index, partner = tl.where(valid, index, 0), tl.where(valid, partner, 0)
    return index, partner, tl.where(valid, group, -1), tl.where(valid, lam, float("nan")), b3


@triton.jit(do_not_specialize=["length", "member_count", "seed", "start", "count"])
def draw_kernel(  # noqa: DOC107, DOC201
    tables_ptr, length: tl.int64, members_ptr, member_count: tl.int64, seed: tl.int64, start: tl.int64, counter_ptr,
    index_ptr, partner_ptr, lam_ptr, group_ptr, error_ptr, count, HAS_MEMBERS: tl.constexpr, HAS_COUNTER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Draw samples start (+ counter) to start (+ counter) + count. Grid: (cdiv(count, BLOCK),).

    If the tables are damaged or a sample number is out of range, sets the error flag, writes NaN to `lam` and reads
    nothing outside of the tables and members.

    Args:
        tables_ptr: packed tables, int64 `[length]`.
        length: number of words of the tables.
        members_ptr: example number of each position, int32 or int64 `[member_count]`.
        member_count: number of members; 0 if positions are example numbers.
        seed: seed of the sequence, in [0, 2^63).
        start: first sample number.
        counter_ptr: int64 `[1]` that is added to `start`, or None.
        index_ptr: output, int64 `[count]`.
        partner_ptr: output, int64 `[count]`.
        lam_ptr: output, float32 `[count]`.
        group_ptr: output, int64 `[count]`: the group of the index.
        error_ptr: error flag of the device, int32 `[1]`.
        count: number of samples.
        HAS_MEMBERS: whether `member_count` is not 0.
        HAS_COUNTER: whether `counter_ptr` is not None.
        BLOCK: samples per program.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = start + i.to(tl.int64)
    mask = i < count
    valid = tables_are_valid(tables_ptr, length, member_count, HAS_MEMBERS)
    if HAS_COUNTER:
        n += tl.load(counter_ptr)
        valid = valid & (tl.load(counter_ptr) >= 0) & (tl.min(n, 0) >= 0)
    report(error_ptr, valid, True)
    if not valid:
        tl.store(index_ptr + i, 0, mask=mask)
        tl.store(partner_ptr + i, 0, mask=mask)
        tl.store(group_ptr + i, -1, mask=mask)
        tl.store(lam_ptr + i, float("nan"), mask=mask)
        return
    index, partner, group, lam, _ = draw_samples(tables_ptr, members_ptr, seed, n, mask, HAS_MEMBERS, 0)
    report(error_ptr, tl.min(tl.where(mask, group, 0), 0) >= 0, True)
    tl.store(index_ptr + i, index, mask=mask)
    tl.store(partner_ptr + i, partner, mask=mask)
    tl.store(group_ptr + i, group, mask=mask)
    tl.store(lam_ptr + i, lam, mask=mask)
