"""Launches the Triton kernels on token embeddings, with the arguments of the schemas, as `launch.py` does the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import triton
from spurmix.kernels import inputs
from spurmix.kernels.launch import _COLUMNS, _bytes, _configs, _finish, _wide, flag_of
from spurmix.kernels.text import bert_backward_kernel, bert_embeddings_kernel, mix_embeddings_kernel, sum_rows_kernel
from spurmix.kernels.tuned import Tuned, size_class
from spurmix.ops.reference_text import token_weights

TOKEN_CHUNK = 16
_MIX, _SUM = Tuned(mix_embeddings_kernel, _COLUMNS), Tuned(sum_rows_kernel, _COLUMNS)
_BERT = Tuned(bert_embeddings_kernel, _configs("", (4,), (8,), (2,)))
_BERT_BACKWARD = {  # by whether a row is long: two sums of it stay in registers
    wide: Tuned(bert_backward_kernel, _configs("", (8,) if wide else (4,))) for wide in (True, False)
}


def mix_embeddings_out(
    weight: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    out: Tensor,
) -> None:  # fmt: skip
    inputs.rows("mix_embeddings", "weight", weight, weight)
    inputs.lookups("mix_embeddings", weight, ids, partner_ids, lam, mask, partner_mask)
    columns = weight.shape[1]
    inputs.check("mix_embeddings", "out", out, weight, inputs.FLOATS, *ids.shape, columns)
    if out.numel():
        tokens = ids.numel()
        _MIX(
            weight.device, (size_class(tokens), size_class(columns), weight.dtype, out.dtype),
            lambda c: (tokens, triton.cdiv(columns, c["BLOCK"])), weight, weight.stride(0), weight.shape[0], ids,
            partner_ids, lam, _bytes(mask), _bytes(partner_mask), out, ids.shape[1], columns, flag_of(weight.device),
            MASK=mask is not None, PARTNER_MASK=partner_mask is not None, WIDE=_wide(weight.dtype),
        )  # fmt: skip
    _finish(weight.device, "mix_embeddings")


def mix_embeddings(weight: Tensor, ids: Tensor, *given: Any) -> Tensor:
    *lookups, _, dtype = given
    inputs.rows("mix_embeddings", "weight", weight, weight)
    out = torch.empty((*ids.shape, weight.shape[1]), dtype=dtype, device=weight.device)
    mix_embeddings_out(weight, ids, *lookups, out)
    return out


def _sum_rows(grad: Tensor, token: Tensor, weight: Tensor, offsets: Tensor, out: Tensor) -> None:
    """out[r] = the sum of weight[k] * grad[token[k]] for k from offsets[r] to offsets[r + 1]."""
    rows, columns = out.shape
    if out.numel():
        _SUM(
            grad.device, (size_class(rows), size_class(columns), grad.dtype, out.dtype),
            lambda c: (rows, triton.cdiv(columns, c["BLOCK"])), grad, token, weight, offsets, out, columns,
            WIDE=_wide(weight.dtype),
        )  # fmt: skip


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


def _check_backward(grad: Tensor, ids: Tensor, *others: Any) -> None:
    inputs.lookups("mix_embeddings", grad, ids, *others)
    inputs.need(grad.dim() == 3, "mix_embeddings", "grad", "[B, S, D]")
    inputs.check("mix_embeddings", "grad", grad, grad, inputs.FLOATS, *ids.shape, grad.shape[2])


def mix_embeddings_backward_out(*given: Any) -> None:
    grad, *lookups, padding_idx, out = given
    _check_backward(grad, *lookups)
    inputs.check("mix_embeddings", "grad_weight", out, grad, inputs.FLOATS, out.shape[0], grad.shape[2])
    row, token, weight = _entries(grad, *lookups, padding_idx, out.shape[0], out.dtype)
    _sum_rows(grad, token, weight, _starts(row, out.shape[0]), out)


def mix_embeddings_backward(*given: Any) -> Tensor:
    grad, *lookups, padding_idx, rows, dtype = given
    _check_backward(grad, *lookups)
    out = torch.empty(rows, grad.shape[2], dtype=dtype, device=grad.device)
    mix_embeddings_backward_out(grad, *lookups, padding_idx, out)
    return out


def mix_embeddings_backward_rows(*given: Any) -> tuple[Tensor, Tensor]:
    grad, *lookups, _, rows, dtype = given
    _check_backward(grad, *lookups)
    row, token, weight = _entries(*given)
    found, counts = torch.unique_consecutive(row[row < rows], return_counts=True)
    values = torch.empty(found.shape[0], grad.shape[2], dtype=dtype, device=grad.device)
    _sum_rows(grad, token, weight, torch.nn.functional.pad(counts.cumsum(0), (1, 0)), values)
    return found, values


def _bert_inputs(
    weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, *rest: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What both kernels take of the tables and lookups, without LayerNorm's: the leading ones, and the constants."""
    norm_weight, *lookups, position_ids, token_type_ids = rest
    ids, partner_ids, lam, mask, partner_mask = lookups
    inputs.lookups("mix_bert_embeddings", weight, *lookups)
    inputs.bert(
        "mix_bert_embeddings", weight, position_weight, type_weight, norm_weight, ids, position_ids, token_type_ids
    )
    tables = (weight, weight.stride(0), weight.shape[0], position_weight, position_weight.shape[0], type_weight)
    types = 0 if type_weight is None else type_weight.shape[0]
    lookups = (ids, partner_ids, lam, _bytes(mask), _bytes(partner_mask), position_ids, token_type_ids)
    constants = dict(
        MASK=mask is not None, PARTNER_MASK=partner_mask is not None, TYPES=type_weight is not None,
        TYPE_IDS=token_type_ids is not None, WIDE=_wide(weight.dtype), BLOCK=triton.next_power_of_2(weight.shape[1]),
    )  # fmt: skip
    return (*tables, types, *lookups), constants


def mix_bert_embeddings(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tables, norm_weight, norm_bias = given[:5]
    *lookups, eps, _, dtype = given[5:]
    weight, ids = tables[0], lookups[0]
    (*found, a, b, lam, mask, partner_mask, positions, types), constants = _bert_inputs(*tables, norm_weight, *lookups)
    columns, wide = weight.shape[1], torch.promote_types(weight.dtype, torch.float32)
    inputs.check("mix_bert_embeddings", "norm_bias", norm_bias, weight, weight.dtype, columns)
    out = torch.empty((*ids.shape, columns), dtype=dtype, device=weight.device)
    mean, rstd = (torch.empty(ids.shape, dtype=wide, device=weight.device) for _ in range(2))
    if ids.numel():
        _BERT(
            weight.device, (size_class(ids.numel()), size_class(columns), weight.dtype, dtype), lambda c: (ids.numel(),),
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


def mix_bert_embeddings_backward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad, *tables, norm_weight = given[:5]
    *lookups, mean, rstd = given[5:]
    weight, position_weight, type_weight = tables
    ids, position_ids, token_type_ids = lookups[0], lookups[5], lookups[6]
    (*found, a, b, lam, mask, partner_mask, positions, types), constants = _bert_inputs(*tables, norm_weight, *lookups)
    tokens, columns, wide = ids.numel(), weight.shape[1], torch.promote_types(weight.dtype, torch.float32)
    inputs.check("mix_bert_embeddings", "grad", grad, weight, inputs.FLOATS, *ids.shape, columns)
    for name, value in (("mean", mean), ("rstd", rstd)):
        inputs.check("mix_bert_embeddings", name, value, weight, wide, *ids.shape)
    grad_mixed = torch.empty(grad.shape, dtype=wide, device=grad.device)
    chunks = triton.cdiv(tokens, TOKEN_CHUNK)
    partial = torch.empty(chunks, 2, columns, dtype=wide, device=grad.device)
    if tokens:
        _BERT_BACKWARD[constants["BLOCK"] >= 1024](
            grad.device, (), lambda c: (chunks,), grad, *found, norm_weight, a, b, lam, mask, partner_mask, positions,
            types, mean, rstd, grad_mixed, partial, tokens, ids.shape[1], columns, flag_of(grad.device),
            CHUNK=TOKEN_CHUNK, **constants,
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
