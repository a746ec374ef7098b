"""Mixed token embeddings in Triton, forward and backward; a token whose weight is 0 is not read and adds nothing."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _side_weights(lam, sample, token, mask, partner_mask, HAS_MASK: tl.constexpr, HAS_PARTNER_MASK: tl.constexpr, WIDE):
    """Weights of tokens `token` of samples `sample` on the two sides."""
    own = tl.load(lam + sample).to(WIDE)
    other = 1 - own
    if HAS_MASK:
        own = tl.where(tl.load(mask + token) != 0, own, 0.0)
    if HAS_PARTNER_MASK:
        other = tl.where(tl.load(partner_mask + token) != 0, other, 0.0)
    return own, other


@triton.jit(do_not_specialize=["rows", "length"])
def mix_embeddings_kernel(
    weight, stride: tl.int64, rows: tl.int64, ids, partner_ids, lam, mask, partner_mask, out, length, columns, flag,
    WIDE: tl.constexpr, ALIGN: tl.constexpr, HAS_MASK: tl.constexpr, HAS_PARTNER_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One token and BLOCK columns a program. ALIGN: a power of two that divides stride and columns."""
    stride, columns = stride // ALIGN * ALIGN, columns // ALIGN * ALIGN  # the compiler does not know
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, second = tl.load(ids + token), tl.load(partner_ids + token)
    own, other = _side_weights(
        lam, token // length, token, mask, partner_mask, HAS_MASK, HAS_PARTNER_MASK, WIDE
    )  # fmt: skip
    known = (first >= 0) & (first < rows) & (second >= 0) & (second < rows)
    if not known:
        tl.store(flag, 1)
    inside = column < columns
    a = tl.load(weight + first * stride + column, mask=inside & tl.where(own > 0, known, False), other=0).to(WIDE)
    b = tl.load(weight + second * stride + column, mask=inside & tl.where(other > 0, known, False), other=0).to(WIDE)
    mixed = tl.where(known, own * a + other * b, float("nan"))
    tl.store(out + token * columns + column, mixed.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "length"])
def mix_embeddings_backward_kernel(
    grad, order, offsets, lam, out, tokens, length, columns,
    WIDE: tl.constexpr, ALIGN: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of a row's gradient: its tokens, offsets[row] to offsets[row + 1] of `order`, TILE at a time.

    Entries of `order` below `tokens` are of the first side, the others of the second. Every row is written, in an order
    of additions that does not depend on the schedule of programs.
    """
    columns = columns // ALIGN * ALIGN  # the compiler does not know
    row = tl.program_id(0).to(tl.int64)
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    at, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    total = tl.zeros([TILE, BLOCK], WIDE)
    while at < end:
        entry = at + tl.arange(0, TILE)[:, None]
        present = entry < end
        k = tl.load(order + entry, mask=present, other=0)
        second = k >= tokens
        token = tl.where(second, k - tokens, k)
        own = tl.load(lam + token // length, mask=present, other=0).to(WIDE)
        value = tl.load(grad + token * columns + column, mask=present & (column < columns), other=0).to(WIDE)
        total += tl.where(present, tl.where(second, 1 - own, own) * value, 0.0)
        at += TILE
    summed = tl.sum(total, 0)[None, :]
    tl.store(out + row * columns + column, summed.to(out.dtype.element_ty), mask=column < columns)
