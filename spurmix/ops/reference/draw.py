"""Reference of the draw. `docs/draw-specification.md` defines it, and the names here are those of that page.

Words of 32 bits are stored in int64 tensors. Products wrap modulo 2^64, which keeps the required low bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spurmix.core import table_layout as layout

M32 = 0xFFFFFFFF
KEY_BLOCK = 0x50
"""Last counter word of the key of a cycle."""


def _high32(x: Tensor) -> Tensor:
    return (x >> 32) & M32


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four words of Philox4x32-10 (Salmon et al., SC 2011) for a counter of four words and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p, q = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = _high32(q) ^ c1 ^ k0, q & M32, _high32(p) ^ c3 ^ k1, p & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return c0, c1, c2, c3


def mulhi64(high: Tensor, low: Tensor, m: Tensor) -> Tensor:
    """High 64 bits of (high * 2^32 + low) * m, for words `high` and `low` and 0 <= m < 2^63."""
    m_low, m_high = m & M32, m >> 32
    middle = high * m_low + _high32(low * m_low)  # may exceed 2^63, but not 2^64
    cross = low * m_high + (middle & M32)
    return high * m_high + _high32(middle) + _high32(cross)


def mix32(x: Tensor) -> Tensor:
    """Scramble words."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & M32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & M32
    return x ^ (x >> 16)


def _round_key(key: tuple[Tensor, ...], r: int) -> Tensor:
    return (key[r % 4] + r * 0x9E3779B9) & M32


def _shuffled(p: Tensor, m: Tensor, key: tuple[Tensor, ...]) -> Tensor:
    """Position of element `p` after a Fisher-Yates shuffle of m <= 16 elements."""
    x = p
    for i in range(15, -1, -1):
        j = _high32(mix32(_round_key(key, i)) * (i + 1))
        moved = torch.where(x == i, j, torch.where(x == j, torch.full_like(x, i), x))
        x = torch.where(i < m, moved, x)
    return x


def _bit_length(x: Tensor) -> Tensor:
    length = torch.zeros_like(x)
    for shift in (32, 16, 8, 4, 2, 1):
        big = x >= (1 << shift)
        length = torch.where(big, length + shift, length)
        x = torch.where(big, x >> shift, x)
    return length + (x > 0)


def _feistel(x: Tensor, lo: Tensor, hi: Tensor, key: tuple[Tensor, ...]) -> Tensor:
    """Eight rounds of a Feistel network on the low `lo` and the high `hi` bits."""
    one = torch.ones_like(x)
    low_mask, high_mask = (one << lo) - 1, (one << hi) - 1
    left, right = x & low_mask, x >> lo
    for r in range(8):
        k = _round_key(key, r)
        if r % 2 == 0:
            left = left ^ (mix32(mix32(right ^ k)) & low_mask)
        else:
            right = right ^ (mix32(mix32(left ^ k)) & high_mask)
    return (right << lo) | left


def permute(p: Tensor, m: Tensor, key: tuple[Tensor, ...]) -> Tensor:
    """Position of `p` under the permutation of [0, m) that the four words `key` select."""
    small = m <= 16
    if small.all():
        return _shuffled(p, m, key)
    bits = _bit_length(m - 1)
    lo = bits // 2
    hi = bits - lo
    x = torch.where(small, p, _feistel(p, lo, hi, key))
    while True:
        outside = ~small & (x >= m)
        if not outside.any():
            break
        x = torch.where(outside, _feistel(x, lo, hi, key), x)
    return torch.where(small, _shuffled(p, m, key), x)


class TableView(NamedTuple):
    """Views of the sections of packed tables."""

    num_examples: int
    flags: int
    slot: Tensor
    share: Tensor
    first: Tensor
    size: Tensor
    offsets: Tensor
    row_of: Tensor
    rows: Tensor
    lists: Tensor
    quantile: Tensor


def view_tables(tables: Tensor, members: Tensor) -> TableView:
    """Return views of the sections of `tables`.

    Raises ValueError if `tables` is not an array of `build_tables`, or `members` has another length.
    """
    if tables.dtype != torch.int64 or tables.dim() != 1 or tables.numel() < layout.HEADER_WORDS:
        raise ValueError(
            f"tables must be the packed int64 tensor of build_tables, got {tables.dtype} {list(tables.shape)}"
        )
    header = tables[: layout.HEADER_WORDS].tolist()
    if header[layout.WORD_MAGIC] != layout.MAGIC or header[layout.WORD_LENGTH] != tables.numel():
        raise ValueError("tables: the header is not that of packed draw tables of this version; build the tables again")
    n, g, s, w, r, flags, list_words = header[layout.WORD_NUM_EXAMPLES : layout.WORD_LIST_WORDS + 1]
    optional = not flags & layout.FLAG_MEMBERS
    if members.numel() != n and (members.numel() or not optional):
        accepted = f"{n} entries (or none)" if optional else f"{n} entries"
        raise ValueError(f"members must have {accepted} for these tables, got {members.numel()}")
    sizes = layout.section_sizes(g, s, w, r, list_words)
    if min(sizes) < 0 or layout.HEADER_WORDS + sum(sizes) != tables.numel():
        raise ValueError("tables: the sections do not fill the tensor; build the tables again")
    return TableView(n, flags, *tables[layout.HEADER_WORDS :].split(sizes))


class Drawn(NamedTuple):
    """Samples, each field `[B]`."""

    index: Tensor  # type: ignore[assignment]  # a field, not the method of tuple
    partner: Tensor
    lam: Tensor
    group: Tensor
    flip_bits: Tensor
    """Word w3 of block 1. Bit 0 flips the image of the index, bit 1 that of the partner."""


def sample_numbers(tables: Tensor, start: int, count: int, counter: Tensor | None) -> Tensor:
    """Numbers of the samples start to start + count (plus `counter`), int64 `[count]`."""
    n = torch.arange(count, dtype=torch.int64, device=tables.device) + start
    return n if counter is None else n + counter


def sample_words(n: Tensor, seed: int, block: int) -> tuple[Tensor, ...]:
    """Words of a block of samples `n`."""
    low, high = n & M32, _high32(n)
    return philox((low, high, torch.full_like(n, block), torch.zeros_like(n)), (seed & M32, seed >> 32))


def cycle_key(s: Tensor, cycle: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Words that select the permutation of a cycle of stratum s."""
    counter = (s, cycle & M32, _high32(cycle), torch.full_like(s, KEY_BLOCK))
    return philox(counter, (seed & M32, seed >> 32))


def sum_thresholds(words: Tensor, count: int) -> Tensor:
    """Thresholds of the `count` entries of the list of running sums at the start of `words`."""
    runs = words[layout.SUM_HEAD_WORDS :][: int(words[0]) * layout.RUN_WORDS].view(-1, layout.RUN_WORDS)
    entry = torch.arange(count, device=words.device)
    run = torch.searchsorted(runs[:, 0].contiguous(), entry, right=True) - 1
    base, step = runs[:, 1:].contiguous().view(torch.float64)[run].unbind(1)
    total = words[1:2].contiguous().view(torch.float64)
    return ((base + (entry - runs[run, 0]) * step) * 2.0**32 / total).floor().to(torch.int64)


def partner_group(view: TableView, row: int, word: Tensor) -> Tensor:
    """The group of the partner that `word` selects from a row of partners."""
    thresholds, *slices = view.rows[row * layout.ROW_WORDS : (row + 1) * layout.ROW_WORDS].tolist()
    first, count = thresholds >> 32, thresholds & M32
    if view.flags & layout.FLAG_SUMS:
        if count > view.row_of.numel():
            raise ValueError("tables: a row of partners has more entries than there are groups; build the tables again")
        values = sum_thresholds(view.lists[first:], count)
    else:
        values = view.lists[first : first + count].contiguous()
    entry = torch.searchsorted(values, word, right=True)
    begin = torch.tensor([s >> 32 for s in slices], device=word.device)
    start = torch.tensor([s & M32 for s in slices], device=word.device)
    used = torch.searchsorted(begin, entry, right=True) - 1
    return view.lists[start[used] + entry - begin[used]]


def draw_samples(
    tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None = None
) -> Drawn:
    """Draw the samples start to start + count. The steps are those of the specification, section "Draw".

    Raises ValueError if the tables are invalid, or the seed or a sample number is outside [0, 2^63).
    """
    view = view_tables(tables, members)
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    if start < 0 or count < 0 or start + count > 1 << 63:
        raise ValueError(f"sample numbers must be in [0, 2^63), got start={start}, count={count}")
    n = sample_numbers(tables, start, count, counter)
    period = view.slot.numel()

    # 1. Stratum, and number of its earlier samples.
    slot = view.slot[n % period]
    s, rank = slot >> 32, slot & M32
    k = torch.div(n, period, rounding_mode="floor") * view.share[s] + rank
    size = view.size[s]

    # 2. Index.
    block0, block1 = sample_words(n, seed, 0), sample_words(n, seed, 1)
    if view.flags & layout.FLAG_REPLACEMENT:
        position = mulhi64(block0[0], block0[1], size)
    else:
        cycle = torch.div(k, size, rounding_mode="floor")
        position = permute(k - cycle * size, size, cycle_key(s, cycle, seed))
    position = view.first[s] + position

    # 3. Group of the index.
    group = torch.searchsorted(view.offsets, position, right=True) - 1

    # 4. Partner.
    row = view.row_of[group]
    paired = row >= 0
    h = torch.zeros_like(group)
    for r in torch.unique(row[paired]).tolist():
        h = torch.where(row == r, partner_group(view, r, block0[2]), h)
    partner = view.offsets[h] + mulhi64(block1[0], block1[1], view.offsets[h + 1] - view.offsets[h])
    partner = torch.where(paired, partner, position)

    # 5. Mixing weight.
    bucket, fraction = block1[2] >> 22, block1[2] & ((1 << 22) - 1)
    low, high = view.quantile[bucket], view.quantile[bucket + 1]
    weight = torch.where(paired, low + (((high - low) * fraction) >> 22), 1 << 24)
    lam = weight.to(torch.float32) * 2.0**-24

    if members.numel():
        position, partner = members[position].to(torch.int64), members[partner].to(torch.int64)
    _check_drawn(position, partner, weight, view.num_examples)
    return Drawn(position, partner, lam, group, block1[3])


def _check_drawn(index: Tensor, partner: Tensor, weight: Tensor, num_examples: int) -> None:
    """Raise ValueError if altered tables or members gave values that a draw cannot have. `weight` is lam * 2^24."""
    examples = torch.cat([index, partner])
    if ((examples < 0) | (examples >= num_examples)).any() or ((weight < 0) | (weight > 1 << 24)).any():
        raise ValueError("tables: a section or the members have values that draw tables cannot have")


def draw(
    tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the samples start to start + count: index, partner, lam and group, each `[count]`."""
    return draw_samples(tables, members, seed, start, count, counter)[:4]


def draw_out(tables: Tensor, members: Tensor, seed: int, start: int, counter: Tensor | None, *out: Tensor) -> None:
    """Write the result of `draw` to the last four arguments."""
    for target, value in zip(out, draw(tables, members, seed, start, out[0].numel(), counter), strict=True):
        target.copy_(value)


def keeps_labels(tables: Tensor) -> bool:
    """Whether a sample keeps the label of its index."""
    return bool(int(tables[layout.WORD_FLAGS]) & layout.FLAG_KEEP_LABELS)


def crop_boxes(
    n: Tensor, seed: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Random resized crops of index and partner, float32 `[B, 2, 4]`: top, left, height, width in pixels."""

    def single(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=n.device)

    boxes = []
    s0, s1 = single(scale[0]), single(scale[1])
    r0, r1 = single(math.log(ratio[0])), single(math.log(ratio[1]))
    for block in (2, 3):
        u = [w.to(torch.float32) * 2.0**-32 for w in sample_words(n, seed, block)]
        area = float(height * width) * (s0 + (s1 - s0) * u[0])
        r = torch.exp(r0 + (r1 - r0) * u[1])
        w = torch.clamp(torch.sqrt(area * r), max=float(width))
        h = torch.clamp(torch.sqrt(area / r), max=float(height))
        boxes.append(torch.stack([u[2] * (height - h), u[3] * (width - w), h, w], dim=-1))
    return torch.stack(boxes, dim=1)


def flip_flags(flip_bits: Tensor) -> Tensor:
    """Horizontal flips of index and partner, uint8 `[B, 2]`."""
    return torch.stack([flip_bits & 1, (flip_bits >> 1) & 1], dim=-1).to(torch.uint8)
