"""Launchers for the operators on token embeddings. `launch.py` has all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import triton
from spurmix.kernels import checks
from spurmix.kernels.embeddings import bert_embeddings_kernel, mix_embeddings_kernel
from spurmix.kernels.embeddings_grad import bert_backward_kernel, sum_rows_kernel
from spurmix.kernels.launch import COLUMNS, as_bytes, check_if_synchronous, compute_dtype, configs, error_flag
from spurmix.kernels.tuned import Tuned, size_class
from spurmix.ops.reference.embeddings import token_weights

TOKEN_CHUNK = 16
_MIX, _SUM = Tuned(mix_embeddings_kernel, COLUMNS), Tuned(sum_rows_kernel, COLUMNS)
_BERT = Tuned(bert_embeddings_kernel, configs("", (4,), (8,), (2,)))
# A program keeps two sums over a row in registers, so long rows need more warps.
_BERT_BACKWARD = {
    long_rows: Tuned(bert_backward_kernel, configs("", (8,) if long_rows else (4,))) for long_rows in (True, False)
}


def mix_embeddings_out(
    weight: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    out: Tensor,
) -> None:  # fmt: skip
    """Launch the mix of word embeddings."""
    checks.rows("mix_embeddings", "weight", weight, weight)
    checks.lookups("mix_embeddings", weight, ids, partner_ids, lam, mask, partner_mask)
    columns = weight.shape[1]
    checks.tensor("mix_embeddings", "out", out, weight, checks.FLOATS, *ids.shape, columns)
    if out.numel():
        tokens = ids.numel()
        _MIX(
            weight.device, (size_class(tokens), size_class(columns), weight.dtype, out.dtype),
            lambda c: (tokens, triton.cdiv(columns, c["BLOCK"])), weight, weight.stride(0), weight.shape[0], ids,
            partner_ids, lam, as_bytes(mask), as_bytes(partner_mask), out, ids.shape[1], columns,
            error_flag(weight.device), MASK=mask is not None, PARTNER_MASK=partner_mask is not None,
            COMPUTE=compute_dtype(weight.dtype),
        )  # fmt: skip
    check_if_synchronous(weight.device, "mix_embeddings")


def mix_embeddings(
    weight: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Launch the mix of word embeddings, into a new tensor."""
    checks.rows("mix_embeddings", "weight", weight, weight)
    out = torch.empty((*ids.shape, weight.shape[1]), dtype=dtype, device=weight.device)
    mix_embeddings_out(weight, ids, partner_ids, lam, mask, partner_mask, out)
    return out


def _sum_rows(grad: Tensor, token: Tensor, weight: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Write out[r] = sum of weight[k] * grad[token[k]] for k in [offsets[r], offsets[r + 1])."""
    rows, columns = out.shape
    if out.numel():
        _SUM(
            grad.device, (size_class(rows), size_class(columns), grad.dtype, out.dtype),
            lambda c: (rows, triton.cdiv(columns, c["BLOCK"])), grad, token, weight, offsets, out, columns,
            COMPUTE=compute_dtype(weight.dtype),
        )  # fmt: skip


def _entries(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, rows: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Row, token and weight of both lookups, sorted by row. Those without a gradient come last, with row `rows`."""
    wide = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    weight = torch.cat([side.flatten() for side in token_weights(lam, mask, partner_mask, ids, wide)])
    row = torch.cat([ids.flatten(), partner_ids.flatten()])
    # Ids out of range, and weights outside [0, 1], have no gradient. The forward pass reported them.
    used = ((lam >= 0) & (lam <= 1))[:, None].expand(ids.shape).flatten().repeat(2) & (weight != 0)
    row = torch.where(used & (row != padding_idx) & (row >= 0) & (row < rows), row, rows)
    row, order = torch.sort(row, stable=True)
    return row, order % max(1, ids.numel()), weight[order]


def _starts(row: Tensor, rows: int) -> Tensor:
    """Offsets `[rows + 1]` of each row in the sorted `row`."""
    return torch.searchsorted(row, torch.arange(rows + 1, device=row.device))


def _check_backward(grad: Tensor, ids: Tensor, *others: Any) -> None:
    checks.lookups("mix_embeddings", grad, ids, *others)
    checks.require(grad.dim() == 3, "mix_embeddings", "grad", "[B, S, D]")
    checks.tensor("mix_embeddings", "grad", grad, grad, checks.FLOATS, *ids.shape, grad.shape[2])


def mix_embeddings_backward_out(*args: Any) -> None:
    """Launch the gradient of the table of word embeddings."""
    grad, *lookups, padding_idx, out = args
    _check_backward(grad, *lookups)
    checks.tensor("mix_embeddings", "grad_weight", out, grad, checks.FLOATS, out.shape[0], grad.shape[2])
    inputs: list[Any] = [grad, *lookups, padding_idx, out.shape[0], out.dtype]
    row, token, weight = _entries(*inputs)
    _sum_rows(grad, token, weight, _starts(row, out.shape[0]), out)


def mix_embeddings_backward(*args: Any) -> Tensor:
    """Launch the gradient of the table of word embeddings, into a new tensor."""
    grad, *lookups, padding_idx, rows, dtype = args
    _check_backward(grad, *lookups)
    out = torch.empty(rows, grad.shape[2], dtype=dtype, device=grad.device)
    mix_embeddings_backward_out(grad, *lookups, padding_idx, out)
    return out


def mix_embeddings_backward_rows(*args: Any) -> tuple[Tensor, Tensor]:
    """Launch the sparse gradient of the table: the rows that were looked up, and their values."""
    grad, *lookups, _, rows, dtype = args
    _check_backward(grad, *lookups)
    row, token, weight = _entries(*args)
    used, counts = torch.unique_consecutive(row[row < rows], return_counts=True)
    values = torch.empty(used.shape[0], grad.shape[2], dtype=dtype, device=grad.device)
    _sum_rows(grad, token, weight, torch.nn.functional.pad(counts.cumsum(0), (1, 0)), values)
    return used, values


def _bert_arguments(
    weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, *rest: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Check the arguments of both passes. Returns the arguments and constants of both kernels, without LayerNorm's."""
    norm_weight, *lookups, position_ids, token_type_ids = rest
    ids, partner_ids, lam, mask, partner_mask = lookups
    checks.lookups("mix_bert_embeddings", weight, *lookups)
    checks.bert(
        "mix_bert_embeddings", weight, position_weight, type_weight, norm_weight, ids, position_ids, token_type_ids
    )
    tables = (weight, weight.stride(0), weight.shape[0], position_weight, position_weight.shape[0], type_weight)
    types = 0 if type_weight is None else type_weight.shape[0]
    pointers = (ids, partner_ids, lam, as_bytes(mask), as_bytes(partner_mask), position_ids, token_type_ids)
    constants = dict(
        MASK=mask is not None, PARTNER_MASK=partner_mask is not None, TYPES=type_weight is not None,
        TYPE_IDS=token_type_ids is not None, COMPUTE=compute_dtype(weight.dtype),
        BLOCK=triton.next_power_of_2(weight.shape[1]),
    )  # fmt: skip
    return (*tables, types, *pointers), constants


def mix_bert_embeddings(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Launch BERT's embedding block. Returns the output, and the mean and reciprocal standard deviation of each token."""
    *tables, norm_weight, norm_bias = args[:5]
    *lookups, eps, _, dtype = args[5:]
    weight, ids = tables[0], lookups[0]
    (*common, ids_a, ids_b, lam, mask, partner_mask, positions, types), constants = _bert_arguments(
        *tables, norm_weight, *lookups
    )
    columns, wide = weight.shape[1], torch.promote_types(weight.dtype, torch.float32)
    checks.tensor("mix_bert_embeddings", "norm_bias", norm_bias, weight, weight.dtype, columns)
    out = torch.empty((*ids.shape, columns), dtype=dtype, device=weight.device)
    mean, rstd = (torch.empty(ids.shape, dtype=wide, device=weight.device) for _ in range(2))
    if ids.numel():
        _BERT(
            weight.device, (size_class(ids.numel()), size_class(columns), weight.dtype, dtype),
            lambda c: (ids.numel(),), *common, norm_weight, norm_bias, ids_a, ids_b, lam, mask, partner_mask, positions,
            types, eps, out, mean, rstd, ids.shape[1], columns, error_flag(weight.device), **constants,
        )  # fmt: skip
    check_if_synchronous(weight.device, "mix_bert_embeddings")
    return out, mean, rstd


def _by_id(grad_mixed: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    """Gradient of a table whose row `ids[token]` was added to each token."""
    out = torch.empty_like(table, memory_format=torch.contiguous_format)
    row, token = torch.sort(ids.flatten(), stable=True)
    ones = torch.ones(token.shape[0], dtype=grad_mixed.dtype, device=grad_mixed.device)
    _sum_rows(grad_mixed, token, ones, _starts(row, table.shape[0]), out)
    return out


def mix_bert_embeddings_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the gradients of BERT's embedding block: of mixed words, positions, types, and LayerNorm's scale and bias."""
    grad, *tables, norm_weight = args[:5]
    *lookups, mean, rstd = args[5:]
    weight, position_weight, type_weight = tables
    ids, position_ids, token_type_ids = lookups[0], lookups[5], lookups[6]
    (*common, ids_a, ids_b, lam, mask, partner_mask, positions, types), constants = _bert_arguments(
        *tables, norm_weight, *lookups
    )
    tokens, columns, wide = ids.numel(), weight.shape[1], torch.promote_types(weight.dtype, torch.float32)
    checks.tensor("mix_bert_embeddings", "grad", grad, weight, checks.FLOATS, *ids.shape, columns)
    for name, value in (("mean", mean), ("rstd", rstd)):
        checks.tensor("mix_bert_embeddings", name, value, weight, wide, *ids.shape)
    grad_mixed = torch.empty(grad.shape, dtype=wide, device=grad.device)
    chunks = triton.cdiv(tokens, TOKEN_CHUNK)
    partial = torch.empty(chunks, 2, columns, dtype=wide, device=grad.device)
    if tokens:
        _BERT_BACKWARD[constants["BLOCK"] >= 1024](
            grad.device, (), lambda c: (chunks,), grad, *common, norm_weight, ids_a, ids_b, lam, mask, partner_mask,
            positions, types, mean, rstd, grad_mixed, partial, tokens, ids.shape[1], columns, error_flag(grad.device),
            CHUNK=TOKEN_CHUNK, **constants,
        )  # fmt: skip
    check_if_synchronous(grad.device, "mix_bert_embeddings")
    norm_grads = partial.sum(0).to(norm_weight.dtype)
    grad_type = weight.new_empty(0, columns)
    if type_weight is not None:
        # A few rows share all tokens. A product with the one-hot matrix is faster than one long sum per row.
        type_ids = torch.zeros_like(ids) if token_type_ids is None else token_type_ids
        types_column = torch.arange(type_weight.shape[0], device=type_ids.device)[:, None]
        one_hot = (type_ids.flatten() == types_column).to(wide)
        grad_type = (one_hot @ grad_mixed.flatten(0, 1)).to(type_weight.dtype)
    return (
        grad_mixed,
        _by_id(grad_mixed, position_ids, position_weight),
        grad_type,
        norm_grads[0],
        norm_grads[1].clone(),
    )


KERNELS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        mix_embeddings, mix_embeddings_out, mix_embeddings_backward, mix_embeddings_backward_out,
        mix_embeddings_backward_rows, mix_bert_embeddings, mix_bert_embeddings_backward,
    )
}  # fmt: skip
