"""Backward kernels for mixed token embeddings."""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.kernels.embeddings import bert_sum, store_as_output


@triton.jit
def sum_rows_kernel(  # noqa: DOC107
    grad_ptr, entry_token_ptr, entry_weight_ptr, offsets_ptr, out_ptr, columns, COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum weighted rows of `grad` into each row of a table's gradient. Grid: (rows, cdiv(columns, BLOCK)).

    out[r] is the sum of entry_weight[k] * grad[entry_token[k]] for k in [offsets[r], offsets[r + 1]). One program adds
    all entries of a row in order, so the result needs no atomics and is deterministic.

    Args:
        grad_ptr: float `[tokens, columns]`.
        entry_token_ptr: int64 `[entries]`, grouped by row.
        entry_weight_ptr: COMPUTE `[entries]`.
        offsets_ptr: int64 `[rows + 1]`.
        out_ptr: output, float `[rows, columns]`.
        columns: number of columns.
        COMPUTE: dtype of the sums.
        BLOCK: columns per program.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    total = tl.zeros([BLOCK], dtype=COMPUTE)
    k, end = tl.load(offsets_ptr + row), tl.load(offsets_ptr + row + 1)
    while k < end:
        token = tl.load(entry_token_ptr + k)
        values = tl.load(grad_ptr + token * columns + column, mask=mask, other=0).to(COMPUTE)
        total += tl.load(entry_weight_ptr + k).to(COMPUTE) * values
        k += 1
    store_as_output(out_ptr + row * columns + column, total, mask)


@triton.jit
def bert_backward_kernel(  # noqa: DOC107
    grad_ptr, weight_ptr, row_stride, vocabulary, position_weight_ptr, positions, type_weight_ptr, types,
    norm_weight_ptr, ids_ptr, partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, position_ids_ptr,
    token_type_ids_ptr, mean_ptr, rstd_ptr, grad_mixed_ptr, partial_ptr, tokens, length, columns, error_ptr,
    MASK: tl.constexpr, PARTNER_MASK: tl.constexpr, TYPES: tl.constexpr, TYPE_IDS: tl.constexpr, COMPUTE: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of LayerNorm's input, and partial sums for its scale and bias. Grid: (cdiv(tokens, CHUNK),).

    The input of LayerNorm is looked up again instead of saved.

    Args:
        grad_ptr: upstream gradient, float `[B, S, columns]`.
        weight_ptr: as in `bert_embeddings_kernel`, like the following arguments up to `token_type_ids_ptr`.
        row_stride: elements between two rows of `weight`.
        vocabulary: number of rows of `weight`.
        position_weight_ptr: position embeddings.
        positions: number of positions.
        type_weight_ptr: type embeddings.
        types: number of token types.
        norm_weight_ptr: scale of LayerNorm.
        ids_ptr: int64 `[B, S]`.
        partner_ids_ptr: int64 `[B, S]`.
        lam_ptr: float32 `[B]`.
        mask_ptr: bool `[B, S]`.
        partner_mask_ptr: bool `[B, S]`.
        position_ids_ptr: int64 `[B, S]`.
        token_type_ids_ptr: int64 `[B, S]`.
        mean_ptr: COMPUTE `[B, S]`, from the forward pass.
        rstd_ptr: COMPUTE `[B, S]`, from the forward pass.
        grad_mixed_ptr: output, COMPUTE `[B, S, columns]`: gradient of LayerNorm's input.
        partial_ptr: output, COMPUTE `[chunks, 2, columns]`: sums over a chunk of grad * normalized input, and of grad.
        tokens: B * S.
        length: S.
        columns: number of columns.
        error_ptr: error flag of the device, int32 `[1]`.
        MASK: whether there is a mask.
        PARTNER_MASK: whether there is a partner mask.
        TYPES: whether there are type embeddings.
        TYPE_IDS: whether there are type ids.
        COMPUTE: dtype of the arithmetic: float64 for float64 weights, else float32.
        CHUNK: tokens per program.
        BLOCK: power of two that is not smaller than `columns`.
    """
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    column_mask = column < columns
    norm_weight = tl.load(norm_weight_ptr + column, mask=column_mask, other=0).to(COMPUTE)
    norm_weight_sum, norm_bias_sum = tl.zeros([BLOCK], dtype=COMPUTE), tl.zeros([BLOCK], dtype=COMPUTE)
    token = chunk * CHUNK
    end = tl.minimum(token + CHUNK, tokens)
    while token < end:
        x = bert_sum(
            weight_ptr, row_stride, vocabulary, position_weight_ptr, positions, type_weight_ptr, types, ids_ptr,
            partner_ids_ptr, lam_ptr, mask_ptr, partner_mask_ptr, position_ids_ptr, token_type_ids_ptr, token, length,
            columns, column, column_mask, error_ptr, MASK, PARTNER_MASK, TYPES, TYPE_IDS, COMPUTE,
        )  # fmt: skip
        rstd = tl.load(rstd_ptr + token)
        normalized = tl.where(column_mask, (x - tl.load(mean_ptr + token)) * rstd, 0.0)
        upstream = tl.load(grad_ptr + token * columns + column, mask=column_mask, other=0).to(COMPUTE)
        norm_weight_sum += upstream * normalized
        norm_bias_sum += upstream
        u = upstream * norm_weight
        value = rstd * (u - tl.sum(u, 0) / columns - normalized * (tl.sum(u * normalized, 0) / columns))
        tl.store(grad_mixed_ptr + token * columns + column, value, mask=column_mask)
        token += 1
    tl.store(partial_ptr + 2 * chunk * columns + column, norm_weight_sum, mask=column_mask)
    tl.store(partial_ptr + (2 * chunk + 1) * columns + column, norm_bias_sum, mask=column_mask)
