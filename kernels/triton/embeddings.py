"""Forward kernels for mixed token embeddings: `mix_embeddings`, and BERT's embedding block.

An id out of range is not looked up. The output row becomes NaN and the error flag is set, also if lam is not in [0, 1].
"""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.kernels.errors import is_weight, report


@triton.jit
def store_as_output(pointer, values, mask):
    """Store `values` in the dtype of `pointer`.

    float64 is converted to half types through float32, a conversion that every Triton backend supports.
    """
    if pointer.dtype.element_ty.primitive_bitwidth < 32:
        values = values.to(tl.float32)
    tl.store(pointer, values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _mix_words(
    weight_ptr, row_stride, vocabulary, ids_ptr, partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, token, length,
    column, column_mask, error_ptr, MASK: tl.constexpr, PARTNER_MASK: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The mixed word embedding of a token. A row of weight 0 is not read."""
    id, partner_id = tl.load(ids_ptr + token), tl.load(partner_ids_ptr + token)
    lam = tl.load(lam_ptr + token.to(tl.int32) // length).to(COMPUTE)
    lam_valid = is_weight(lam)
    partner_lam = 1 - lam
    if MASK:
        lam = tl.where(tl.load(mask_ptr + token) != 0, lam, 0.0)
    if PARTNER_MASK:
        partner_lam = tl.where(tl.load(partner_mask_ptr + token) != 0, partner_lam, 0.0)
    in_range = (id >= 0) & (id < vocabulary) & (partner_id >= 0) & (partner_id < vocabulary)
    report(error_ptr, in_range, lam_valid)
    valid = in_range & lam_valid
    x = tl.load(weight_ptr + id * row_stride + column, mask=column_mask & (valid & (lam != 0)), other=0).to(COMPUTE)
    y = tl.load(
        weight_ptr + partner_id * row_stride + column, mask=column_mask & (valid & (partner_lam != 0)), other=0
    ).to(COMPUTE)
    return tl.where(valid, lam * x + partner_lam * y, float("nan"))


@triton.jit
def mix_embeddings_kernel(  # noqa: DOC107
    weight_ptr, row_stride, vocabulary, ids_ptr, partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, out_ptr, length,
    columns, error_ptr, MASK: tl.constexpr, PARTNER_MASK: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mix the word embeddings of two texts. Grid: (B * S, cdiv(columns, BLOCK)).

    Args:
        weight_ptr: word embeddings, float `[vocabulary, columns]`, contiguous along columns.
        row_stride: elements between two rows of `weight`.
        vocabulary: number of rows of `weight`.
        ids_ptr: int64 `[B, S]`.
        partner_ids_ptr: int64 `[B, S]`.
        lam_ptr: float32 `[B]`: weight of `ids`; `partner_ids` have weight 1 - lam.
        mask_ptr: bool `[B, S]`: where it is false, `ids` have weight 0. Not read unless MASK.
        partner_mask_ptr: bool `[B, S]`, the same for `partner_ids`. Not read unless PARTNER_MASK.
        out_ptr: output, float `[B, S, columns]`.
        length: S.
        columns: number of columns.
        error_ptr: error flag of the device, int32 `[1]`.
        MASK: whether there is a mask.
        PARTNER_MASK: whether there is a partner mask.
        COMPUTE: dtype of the arithmetic: float64 for float64 weights, else float32.
        BLOCK: columns per program.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column_mask = column < columns
    mixed = _mix_words(
        weight_ptr, row_stride, vocabulary, ids_ptr, partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, token,
        length, column, column_mask, error_ptr, MASK, PARTNER_MASK, COMPUTE,
    )  # fmt: skip
    store_as_output(out_ptr + token * columns + column, mixed, column_mask)


@triton.jit
def bert_sum(
    weight_ptr, row_stride, vocabulary, position_weight_ptr, positions, type_weight_ptr, types, ids_ptr,
    partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, position_ids_ptr, token_type_ids_ptr, token, length, columns,
    column, column_mask, error_ptr, MASK: tl.constexpr, PARTNER_MASK: tl.constexpr, TYPES: tl.constexpr,
    TYPE_IDS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Return the input of BERT's LayerNorm for a token: mixed words + position + type; zeros beyond the last column."""
    x = _mix_words(
        weight_ptr, row_stride, vocabulary, ids_ptr, partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, token,
        length, column, column_mask, error_ptr, MASK, PARTNER_MASK, COMPUTE,
    )  # fmt: skip
    position = tl.load(position_ids_ptr + token)
    valid = (position >= 0) & (position < positions)
    x += tl.load(position_weight_ptr + position * columns + column, mask=column_mask & valid, other=0).to(COMPUTE)
    if TYPES:
        type_id = position * 0
        if TYPE_IDS:
            type_id = tl.load(token_type_ids_ptr + token)
        valid = valid & (type_id >= 0) & (type_id < types)
        x += tl.load(type_weight_ptr + type_id * columns + column, mask=column_mask & valid, other=0).to(COMPUTE)
    report(error_ptr, valid, True)
    return tl.where(column_mask, tl.where(valid, x, float("nan")), 0.0)


@triton.jit
def bert_embeddings_kernel(  # noqa: DOC107
    weight_ptr, row_stride, vocabulary, position_weight_ptr, positions, type_weight_ptr, types, norm_weight_ptr,
    norm_bias_ptr, ids_ptr, partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, position_ids_ptr, token_type_ids_ptr,
    eps, out_ptr, mean_ptr, rstd_ptr, length, columns, error_ptr, MASK: tl.constexpr, PARTNER_MASK: tl.constexpr,
    TYPES: tl.constexpr, TYPE_IDS: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute LayerNorm(mixed words + position + type). Grid: (B * S,); a program holds a whole row.

    Args:
        weight_ptr: word embeddings, float `[vocabulary, columns]`, contiguous along columns.
        row_stride: elements between two rows of `weight`.
        vocabulary: number of rows of `weight`.
        position_weight_ptr: position embeddings, like `weight` `[positions, columns]`.
        positions: number of positions.
        type_weight_ptr: type embeddings, like `weight` `[types, columns]`. Not read unless TYPES.
        types: number of token types.
        norm_weight_ptr: scale of LayerNorm, like `weight` `[columns]`.
        norm_bias_ptr: bias of LayerNorm, like `weight` `[columns]`.
        ids_ptr: int64 `[B, S]`.
        partner_ids_ptr: int64 `[B, S]`.
        lam_ptr: float32 `[B]`: weight of `ids`; `partner_ids` have weight 1 - lam.
        mask_ptr: bool `[B, S]`: where it is false, `ids` have weight 0. Not read unless MASK.
        partner_mask_ptr: bool `[B, S]`, the same for `partner_ids`. Not read unless PARTNER_MASK.
        position_ids_ptr: int64 `[B, S]`.
        token_type_ids_ptr: int64 `[B, S]`. Not read unless TYPE_IDS; then all types are 0.
        eps: epsilon of LayerNorm.
        out_ptr: output, float `[B, S, columns]`.
        mean_ptr: output, COMPUTE `[B, S]`.
        rstd_ptr: output, COMPUTE `[B, S]`: the reciprocal standard deviation.
        length: S.
        columns: number of columns.
        error_ptr: error flag of the device, int32 `[1]`.
        MASK: whether there is a mask.
        PARTNER_MASK: whether there is a partner mask.
        TYPES: whether there are type embeddings.
        TYPE_IDS: whether there are type ids.
        COMPUTE: dtype of the arithmetic: float64 for float64 weights, else float32.
        BLOCK: power of two that is not smaller than `columns`.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    column_mask = column < columns
    x = bert_sum(
        weight_ptr, row_stride, vocabulary, position_weight_ptr, positions, type_weight_ptr, types, ids_ptr,
        partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, position_ids_ptr, token_type_ids_ptr, token, length,
        columns, column, column_mask, error_ptr, MASK, PARTNER_MASK, TYPES, TYPE_IDS, COMPUTE,
    )  # fmt: skip
    mean = tl.sum(x, 0) / columns
    centered = tl.where(column_mask, x - mean, 0.0)
    rstd = 1 / tl.sqrt((tl.sum(centered * centered, 0) / columns + eps).to(COMPUTE))
    norm_weight = tl.load(norm_weight_ptr + column, mask=column_mask, other=0).to(COMPUTE)
    norm_bias = tl.load(norm_bias_ptr + column, mask=column_mask, other=0).to(COMPUTE)
    store_as_output(out_ptr + token * columns + column, centered * rstd * norm_weight + norm_bias, column_mask)
    tl.store(mean_ptr + token, mean)
    tl.store(rstd_ptr + token, rstd)
