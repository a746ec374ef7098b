"""Token embeddings in Triton. An id out of range is not followed: NaN is written and a flag set."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _store(to, values, mask):
    """Store in the format of `to`; float64 reaches half formats by way of float32, which all backends of Triton convert."""
    if to.dtype.element_ty.primitive_bitwidth < 32:
        values = values.to(tl.float32)
    tl.store(to, values.to(to.dtype.element_ty), mask=mask)


@triton.jit
def _mixed(
    weight, stride, total, ids, partner_ids, lam, mask, partner_mask, token, sequence, column, inside, flag,
    MASK: tl.constexpr, PARTNER_MASK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The mixed row of a token; what has weight 0 is not read."""
    a, b = tl.load(ids + token), tl.load(partner_ids + token)
    own = tl.load(lam + token.to(tl.int32) // sequence).to(WIDE)
    other = 1 - own
    if MASK:
        own = tl.where(tl.load(mask + token) != 0, own, 0.0)
    if PARTNER_MASK:
        other = tl.where(tl.load(partner_mask + token) != 0, other, 0.0)
    known = (a >= 0) & (a < total) & (b >= 0) & (b < total)
    if not known:
        tl.store(flag, 1)
    x = tl.load(weight + a * stride + column, mask=inside & (known & (own != 0)), other=0).to(WIDE)
    y = tl.load(weight + b * stride + column, mask=inside & (known & (other != 0)), other=0).to(WIDE)
    return tl.where(known, own * x + other * y, float("nan"))


@triton.jit
def mix_embeddings_kernel(
    weight, stride, total, ids, partner_ids, lam, mask, partner_mask, out, sequence, columns, flag,
    MASK: tl.constexpr, PARTNER_MASK: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token and BLOCK columns a program; arithmetic in WIDE (float32, or float64 for float64 weights)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    mixed = _mixed(
        weight, stride, total, ids, partner_ids, lam, mask, partner_mask, token, sequence, column, inside, flag,
        MASK, PARTNER_MASK, WIDE,
    )  # fmt: skip
    _store(out + token * columns + column, mixed, inside)


@triton.jit
def sum_rows_kernel(grad, entry_token, entry_weight, offsets, out, columns, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """One row of a gradient and BLOCK columns a program: the row's entries in their order, so without atomics."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros([BLOCK], dtype=WIDE)
    k, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    while k < end:
        token = tl.load(entry_token + k)
        values = tl.load(grad + token * columns + column, mask=inside, other=0).to(WIDE)
        total += tl.load(entry_weight + k).to(WIDE) * values
        k += 1
    _store(out + row * columns + column, total, inside)


@triton.jit
def _embedded(
    weight, stride, total, position_weight, positions, type_weight, types, ids, partner_ids, lam, mask, partner_mask,
    position_ids, token_type_ids, token, sequence, columns, column, inside, flag, MASK: tl.constexpr,
    PARTNER_MASK: tl.constexpr, TYPES: tl.constexpr, TYPE_IDS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mixed words + position + type of a token; zeros behind the columns."""
    x = _mixed(
        weight, stride, total, ids, partner_ids, lam, mask, partner_mask, token, sequence, column, inside, flag,
        MASK, PARTNER_MASK, WIDE,
    )  # fmt: skip
    position = tl.load(position_ids + token)
    known = (position >= 0) & (position < positions)
    x += tl.load(position_weight + position * columns + column, mask=inside & known, other=0).to(WIDE)
    if TYPES:
        kind = position * 0
        if TYPE_IDS:
            kind = tl.load(token_type_ids + token)
        known = known & (kind >= 0) & (kind < types)
        x += tl.load(type_weight + kind * columns + column, mask=inside & known, other=0).to(WIDE)
    if not known:
        tl.store(flag, 1)
    return tl.where(inside, tl.where(known, x, float("nan")), 0.0)


@triton.jit
def bert_embeddings_kernel(
    weight, stride, total, position_weight, positions, type_weight, types, norm_weight, norm_bias, ids, partner_ids, lam,
    mask, partner_mask, position_ids, token_type_ids, eps, out, mean, rstd, sequence, columns, flag, MASK: tl.constexpr,
    PARTNER_MASK: tl.constexpr, TYPES: tl.constexpr, TYPE_IDS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token a program, all its columns in one block."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    x = _embedded(
        weight, stride, total, position_weight, positions, type_weight, types, ids, partner_ids, lam, mask,
        partner_mask, position_ids, token_type_ids, token, sequence, columns, column, inside, flag, MASK, PARTNER_MASK,
        TYPES, TYPE_IDS, WIDE,
    )  # fmt: skip
    centre = tl.sum(x, 0) / columns
    centred = tl.where(inside, x - centre, 0.0)
    by = 1 / tl.sqrt((tl.sum(centred * centred, 0) / columns + eps).to(WIDE))
    scale = tl.load(norm_weight + column, mask=inside, other=0).to(WIDE)
    shift = tl.load(norm_bias + column, mask=inside, other=0).to(WIDE)
    _store(out + token * columns + column, centred * by * scale + shift, inside)
    tl.store(mean + token, centre)
    tl.store(rstd + token, by)


@triton.jit
def bert_backward_kernel(
    grad, weight, stride, total, position_weight, positions, type_weight, types, norm_weight, ids, partner_ids, lam,
    mask, partner_mask, position_ids, token_type_ids, mean, rstd, grad_mixed, partial, tokens, sequence, columns, flag,
    MASK: tl.constexpr, PARTNER_MASK: tl.constexpr, TYPES: tl.constexpr, TYPE_IDS: tl.constexpr, WIDE: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """CHUNK tokens a program: their gradients, and the chunk's sums of grad * normalised and of grad."""
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    scale = tl.load(norm_weight + column, mask=inside, other=0).to(WIDE)
    along_sum, plain_sum = tl.zeros([BLOCK], dtype=WIDE), tl.zeros([BLOCK], dtype=WIDE)
    token = chunk * CHUNK
    end = tl.minimum(token + CHUNK, tokens)
    while token < end:
        x = _embedded(
            weight, stride, total, position_weight, positions, type_weight, types, ids, partner_ids, lam, mask,
            partner_mask, position_ids, token_type_ids, token, sequence, columns, column, inside, flag, MASK,
            PARTNER_MASK, TYPES, TYPE_IDS, WIDE,
        )  # fmt: skip
        by = tl.load(rstd + token)
        normed = tl.where(inside, (x - tl.load(mean + token)) * by, 0.0)
        upstream = tl.load(grad + token * columns + column, mask=inside, other=0).to(WIDE)
        along_sum += upstream * normed
        plain_sum += upstream
        u = upstream * scale
        value = by * (u - tl.sum(u, 0) / columns - normed * (tl.sum(u * normed, 0) / columns))
        tl.store(grad_mixed + token * columns + column, value, mask=inside)
        token += 1
    tl.store(partial + 2 * chunk * columns + column, along_sum, mask=inside)
    tl.store(partial + (2 * chunk + 1) * columns + column, plain_sum, mask=inside)
