"""Autograd functions of the embedding operators for gradients that the dispatcher cannot select.

These are sparse gradients, gradients in a `GradientBuffer`, and gradients by a kernel outside the dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from spurmix.ops import backends
from spurmix.ops.gradients.embeddings import (
    BertContext,
    Gradients,
    TableContext,
    bert_gradients,
    bert_setup_context,
    differentiable_bert_gradients,
    mix_backward,
    mix_setup_context,
)
from spurmix.ops.gradients.grad_buffer import GradientBuffer


class GradientOptions(NamedTuple):
    """How the gradient of the word table is made.

    Attributes:
        backend: Backend of both passes.
        sparse: Whether it is a sparse tensor.
        buffer: Memory of a dense gradient on the CPU.
    """

    backend: str
    sparse: bool = False
    buffer: GradientBuffer | None = None


class MixContext(TableContext, Protocol):
    """Context of `MixEmbeddings`."""

    options: GradientOptions


class MixBertContext(BertContext, Protocol):
    """Context of `MixBertEmbeddings`."""

    options: GradientOptions


class MixEmbeddings(torch.autograd.Function):
    """mix_embeddings with gradient options."""

    @staticmethod
    def forward(ctx: MixContext, options: GradientOptions, *inputs: object) -> Tensor:
        """Call the kernel of the forward pass."""
        weight = inputs[0]
        assert isinstance(weight, Tensor)
        ctx.options = options
        mix_setup_context(ctx, inputs, weight)  # type: ignore[arg-type]  # the output is not used
        return backends.implementation("mix_embeddings", options.backend, weight.device)(*inputs)

    @staticmethod
    def backward(ctx: MixContext, grad: Tensor) -> Gradients:
        """Gradient of the table. If a graph of it is required, the operator computes it."""
        if torch.is_grad_enabled():
            return None, *mix_backward(ctx, grad)
        return None, _table_gradient(ctx, grad, ctx.saved_tensors, ctx.dtype), *[None] * 7


class MixBertEmbeddings(torch.autograd.Function):
    """mix_bert_embeddings with gradient options for the word table."""

    @staticmethod
    def forward(ctx: MixBertContext, options: GradientOptions, *inputs: object) -> tuple[Tensor, Tensor, Tensor]:
        """Call the kernel of the forward pass."""
        weight = inputs[0]
        assert isinstance(weight, Tensor)
        ctx.options, ctx.rows = options, weight.shape[0]
        output = backends.implementation("mix_bert_embeddings", options.backend, weight.device)(*inputs)
        bert_setup_context(ctx, inputs, output)  # type: ignore[arg-type]  # `inputs` is a tuple of the kernel's arguments
        return output

    @staticmethod
    def backward(ctx: MixBertContext, grad: Tensor, *_: Tensor) -> Gradients:
        """Gradients of the five tables. If a graph of them is required, the reference computes them."""
        *tensors, mean, rstd = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:6]
        if torch.is_grad_enabled():
            return None, *differentiable_bert_gradients(ctx, grad, needed), *[None] * 10
        backward = backends.implementation("mix_bert_embeddings_backward", ctx.options.backend, grad.device)
        grad_mixed, *others = backward(grad.contiguous(), *tensors[:4], *tensors[5:], mean, rstd)
        word = _table_gradient(ctx, grad_mixed, tensors[5:10], tensors[0].dtype) if needed[0] else None
        return None, *bert_gradients(word, others, needed)


def _table_gradient(
    ctx: MixContext | MixBertContext, grad: Tensor, lookups: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    grad = grad.contiguous()
    device, rows, columns, options = grad.device, ctx.rows, grad.shape[2], ctx.options
    if options.sparse:
        backward = backends.implementation("mix_embeddings_backward_rows", options.backend, device)
        row, values = backward(grad, *lookups, ctx.padding_idx, rows, dtype)
        return torch.sparse_coo_tensor(row[None], values, (rows, columns), is_coalesced=True, check_invariants=False)
    if options.buffer is not None and device.type == "cpu":
        out = options.buffer.take(rows, columns, dtype)
        backward_out = backends.implementation("mix_embeddings_backward_out", options.backend, device)
        backward_out(grad, *lookups, ctx.padding_idx, out)
        return out
    backward = backends.implementation("mix_embeddings_backward", options.backend, device)
    return backward(grad, *lookups, ctx.padding_idx, rows, dtype)
