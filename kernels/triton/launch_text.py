"""Launches the Triton kernels on token embeddings, with the arguments of the schemas, as `launch.py` does the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spurmix.kernels.launch import _block, _finish, _wide, flag_of
from spurmix.kernels.text import bert_backward_kernel, bert_embeddings_kernel, mix_embeddings_kernel, sum_rows_kernel
from torch import Tensor

import triton
from spurmix.ops.reference_text import token_weights

TOKEN_CHUNK = 16


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def mix_embeddings_out(
    weight: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    out: Tensor,
) -> None:  # fmt: skip
    columns = weight.shape[1]
    if out.numel():
        block = _block(columns)
        mix_embeddings_kernel[(ids.numel(), triton.cdiv(columns, block))](
            weight, weight.stride(0), weight.shape[0], ids, partner_ids, lam, _bytes(mask), _bytes(partner_mask), out,
            ids.shape[1], columns, flag_of(weight.device), MASK=mask is not None, PARTNER_MASK=partner_mask is not None,
            WIDE=_wide(weight.dtype), BLOCK=block,
        )  # fmt: skip
    _finish(weight.device, "mix_embeddings")


def mix_embeddings(weight: Tensor, ids: Tensor, *inputs: Any) -> Tensor:
    *lookups, _, dtype = inputs
    out = torch.empty((*ids.shape, weight.shape[1]), dtype=dtype, device=weight.device)
    mix_embeddings_out(weight, ids, *lookups, out)
    return out


def _sum_rows(grad: Tensor, token: Tensor, weight: Tensor, offsets: Tensor, out: Tensor) -> None:
    """out[r] = the sum of weight[k] * grad[token[k]] for k from offsets[r] to offsets[r + 1]."""
    rows, columns = out.shape
    if out.numel():
        block = _block(columns)
        sum_rows_kernel[(rows, triton.cdiv(columns, block))](
            grad, token, weight, offsets, out, columns, WIDE=_wide(weight.dtype), BLOCK=block
        )


def _entries(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, rows: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Row, token and weight of both lookups, sorted by row; those that get no gradient last, in row `rows`."""
    wide = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    weight = torch.cat([side.flatten() for side in token_weights(lam, mask, partner_mask, ids, wide)])
    row = torch.cat([ids.flatten(), partner_ids.flatten()])
    # What is out of range was flagged by the forward pass.
    row = torch.where((weight != 0) & (row != padding_idx) & (row >= 0) & (row < rows), row, rows)
    row, order = torch.sort(row, stable=True)
    return row, order % max(1, ids.numel()), weight[order]


def _starts(row: Tensor, rows: int) -> Tensor:
    """Where in the sorted `row` each of the rows from 0 on starts, and the last ends."""
    return torch.searchsorted(row, torch.arange(rows + 1, device=row.device))


def mix_embeddings_backward_out(*inputs: Any) -> None:
    grad, *lookups, padding_idx, out = inputs
    row, token, weight = _entries(grad, *lookups, padding_idx, out.shape[0], out.dtype)
    _sum_rows(grad, token, weight, _starts(row, out.shape[0]), out)


def mix_embeddings_backward(*inputs: Any) -> Tensor:
    grad, *lookups, padding_idx, rows, dtype = inputs
    out = torch.empty(rows, grad.shape[2], dtype=dtype, device=grad.device)
    mix_embeddings_backward_out(grad, *lookups, padding_idx, out)
    return out


def mix_embeddings_backward_rows(*inputs: Any) -> tuple[Tensor, Tensor]:
    grad, *_, rows, dtype = inputs
    row, token, weight = _entries(*inputs)
    found, counts = torch.unique_consecutive(row[row < rows], return_counts=True)
    values = torch.empty(found.shape[0], grad.shape[2], dtype=dtype, device=grad.device)
    _sum_rows(grad, token, weight, torch.nn.functional.pad(counts.cumsum(0), (1, 0)), values)
    return found, values


def _bert_inputs(
    weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, *rest: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What both kernels take of the tables and lookups, without LayerNorm's: the leading ones, and the constants."""
    ids, partner_ids, lam, mask, partner_mask, position_ids, token_type_ids = rest
    tables = (weight, weight.stride(0), weight.shape[0], position_weight, position_weight.shape[0], type_weight)
    types = 0 if type_weight is None else type_weight.shape[0]
    lookups = (ids, partner_ids, lam, _bytes(mask), _bytes(partner_mask), position_ids, token_type_ids)
    constants = dict(
        MASK=mask is not None, PARTNER_MASK=partner_mask is not None, TYPES=type_weight is not None,
        TYPE_IDS=token_type_ids is not None, WIDE=_wide(weight.dtype), BLOCK=triton.next_power_of_2(weight.shape[1]),
    )  # fmt: skip
    return (*tables, types, *lookups), constants


def mix_bert_embeddings(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tables, norm_weight, norm_bias = inputs[:5]
    *lookups, eps, _, dtype = inputs[5:]
    weight, ids = tables[0], lookups[0]
    (*found, a, b, lam, mask, partner_mask, positions, types), constants = _bert_inputs(*tables, *lookups)
    columns, wide = weight.shape[1], torch.promote_types(weight.dtype, torch.float32)
    out = torch.empty((*ids.shape, columns), dtype=dtype, device=weight.device)
    mean, rstd = (torch.empty(ids.shape, dtype=wide, device=weight.device) for _ in range(2))
    if ids.numel():
        bert_embeddings_kernel[(ids.numel(),)](
            *found, norm_weight, norm_bias, a, b, lam, mask, partner_mask, positions, types, eps, out, mean, rstd,
            ids.shape[1], columns, flag_of(weight.device), **constants,
        )  # fmt: skip
    _finish(weight.device, "mix_bert_embeddings")
    return out, mean, rstd


def _by_id(grad_mixed: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    """The gradient of a table whose rows `ids` were added to the tokens."""
    out = torch.empty_like(table, memory_format=torch.contiguous_format)
    row, token = torch.sort(ids.flatten(), stable=True)
    ones = torch.ones(token.shape[0], dtype=grad_mixed.dtype, device=grad_mixed.device)
    _sum_rows(grad_mixed, token, ones, _starts(row, table.shape[0]), out)
    return out


def mix_bert_embeddings_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad, *tables, norm_weight = inputs[:5]
    *lookups, mean, rstd = inputs[5:]
    weight, position_weight, type_weight = tables
    ids, position_ids, token_type_ids = lookups[0], lookups[5], lookups[6]
    (*found, a, b, lam, mask, partner_mask, positions, types), constants = _bert_inputs(*tables, *lookups)
    tokens, columns, wide = ids.numel(), weight.shape[1], mean.dtype
    grad_mixed = torch.empty(grad.shape, dtype=wide, device=grad.device)
    chunks = triton.cdiv(tokens, TOKEN_CHUNK)
    partial = torch.empty(chunks, 2, columns, dtype=wide, device=grad.device)
    if tokens:
        bert_backward_kernel[(chunks,)](
            grad, *found, norm_weight, a, b, lam, mask, partner_mask, positions, types, mean, rstd, grad_mixed, partial,
            tokens, ids.shape[1], columns, flag_of(grad.device), CHUNK=TOKEN_CHUNK,
            num_warps=8 if constants["BLOCK"] >= 1024 else 4, **constants,  # two sums of a block stay in registers
        )  # fmt: skip
    _finish(grad.device, "mix_bert_embeddings")
    norm_grads = partial.sum(0).to(norm_weight.dtype)
    grad_type = weight.new_empty(0, columns)
    if type_weight is not None:
        # Few rows share all the tokens: a product with their one-hot matrix, not a long sum for each.
        kind = torch.zeros_like(ids) if token_type_ids is None else token_type_ids
        one_hot = (kind.flatten() == torch.arange(type_weight.shape[0], device=kind.device)[:, None]).to(wide)
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
