"""Gradients of mix_embeddings and mix_bert_embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from spurmix.ops.gradients.gradient_context import GradientContext
from spurmix.ops.reference.embeddings import mix_bert_embeddings

Lookups: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""ids, partner_ids, lam, mask, partner_mask."""
MixInputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, int, torch.dtype]
"""Arguments of mix_embeddings."""
BackwardInputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, int, int, torch.dtype]
"""Arguments of mix_embeddings_backward."""
BertInputs: TypeAlias = tuple[
    Tensor, Tensor, Tensor | None, Tensor, Tensor,
    Tensor, Tensor, Tensor, Tensor | None, Tensor | None,
    Tensor, Tensor | None, float, int, torch.dtype,
]  # fmt: skip
"""Arguments of mix_bert_embeddings: five tables, the lookups, position_ids, token_type_ids, eps, padding_idx, dtype."""
Gradients: TypeAlias = tuple[Tensor | None, ...]
"""A gradient for each argument, None if it has none."""


class TableContext(GradientContext, Protocol):
    """Context of a lookup: the shape and dtype of the table."""

    rows: int
    dtype: torch.dtype
    padding_idx: int


class BertContext(TableContext, Protocol):
    """Context of BERT's embedding block."""

    eps: float


def mix_setup_context(ctx: TableContext, inputs: MixInputs, output: Tensor) -> None:
    """Keep the lookups. The backward pass needs only the shape and dtype of the table."""
    weight, *lookups, padding_idx, _ = inputs
    ctx.rows, ctx.dtype, ctx.padding_idx = weight.shape[0], weight.dtype, padding_idx
    ctx.save_for_backward(*lookups)


def mix_backward(ctx: TableContext, grad: Tensor) -> Gradients:
    """Gradient of the table."""
    op = torch.ops.spurmix.mix_embeddings_backward
    return op(grad.contiguous(), *ctx.saved_tensors, ctx.padding_idx, ctx.rows, ctx.dtype), *[None] * 7


# mix_embeddings is linear in the table, and its backward pass is the transposed map. Each is the derivative of the other.
def transpose_setup_context(ctx: TableContext, inputs: BackwardInputs, output: Tensor) -> None:
    """Keep the lookups."""
    grad, *lookups, padding_idx, _, _ = inputs
    ctx.dtype, ctx.padding_idx = grad.dtype, padding_idx
    ctx.save_for_backward(*lookups)


def transpose_backward(ctx: TableContext, grad: Tensor) -> Gradients:
    """Gradient of the gradient that mix_embeddings_backward received."""
    if ctx.padding_idx >= 0:
        is_used = torch.arange(grad.shape[0], device=grad.device) != ctx.padding_idx
        grad = torch.where(is_used[:, None], grad, torch.zeros_like(grad))
    op = torch.ops.spurmix.mix_embeddings
    return op(grad.contiguous(), *ctx.saved_tensors, -1, ctx.dtype), *[None] * 8


def bert_setup_context(ctx: BertContext, inputs: BertInputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep the tables, the lookups, the mean and the reciprocal deviation. The backward pass sums the tables again."""
    *tensors, eps, padding_idx, dtype = inputs
    ctx.eps, ctx.padding_idx, ctx.dtype = eps, padding_idx, dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def bert_backward(ctx: BertContext, grad: Tensor, *_: Tensor) -> Gradients:
    """Gradients of the five tables."""
    *tensors, mean, rstd = ctx.saved_tensors
    needed = ctx.needs_input_grad[:5]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return *differentiable_bert_gradients(ctx, grad, needed), *[None] * 10
    ops = torch.ops.spurmix
    grad_mixed, *others = ops.mix_bert_embeddings_backward(grad.contiguous(), *tensors[:4], *tensors[5:], mean, rstd)
    word = None
    if needed[0]:
        weight = tensors[0]
        word = ops.mix_embeddings_backward(grad_mixed, *tensors[5:10], ctx.padding_idx, weight.shape[0], weight.dtype)
    return bert_gradients(word, others, needed)


def differentiable_bert_gradients(ctx: BertContext, grad: Tensor, needed: Sequence[bool]) -> Gradients:
    """Gradients of the five tables by the reference. They can be differentiated again."""
    # mypy does not know the length of a slice.
    inputs: BertInputs = (*ctx.saved_tensors[:12], ctx.eps, ctx.padding_idx, ctx.dtype)  # type: ignore[assignment]
    tables = [table for table, is_needed in zip(ctx.saved_tensors[:5], needed, strict=True) if is_needed]
    output = mix_bert_embeddings(*inputs)[0]
    gradients = iter(torch.autograd.grad(output, tables, grad, create_graph=True))
    return tuple(next(gradients) if is_needed else None for is_needed in needed)


def bert_gradients(word: Tensor | None, others: Sequence[Tensor], needed: Sequence[bool]) -> Gradients:
    """Gradients of all arguments of mix_bert_embeddings, None for those that need none."""
    return word, *(g if is_needed else None for g, is_needed in zip(others, needed[1:], strict=True)), *[None] * 10
