"""Gradient of mix_rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from spurmix.ops.gradients.gradient_context import GradientContext

RowsInputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, torch.dtype]
"""Arguments of mix_rows."""
RowsGradients: TypeAlias = tuple[Tensor | None, None, None, Tensor | None, None]


def setup_context(ctx: GradientContext, inputs: RowsInputs, output: Tensor) -> None:
    """Keep the inputs for the backward pass."""
    ctx.save_for_backward(*inputs[:4])


def backward(ctx: GradientContext, grad: Tensor) -> RowsGradients:
    """Gradients of the inputs."""
    return _gradients(ctx, grad, ctx.needs_input_grad)


def _gradients(ctx: GradientContext, grad: Tensor, needed: tuple[bool, ...]) -> RowsGradients:
    rows, index, partner, lam = ctx.saved_tensors
    wide = torch.promote_types(rows.dtype, torch.float32)
    grad, weight = grad.to(wide), lam.to(wide)[:, None]
    grad_rows = grad_lam = None
    if needed[0]:
        grad_rows = torch.zeros(rows.shape, dtype=wide, device=rows.device)
        grad_rows = grad_rows.index_add(0, index, weight * grad).index_add(0, partner, (1 - weight) * grad)
        grad_rows = grad_rows.to(rows.dtype)
    if needed[3]:
        grad_lam = (grad * (rows[index].to(wide) - rows[partner].to(wide))).sum(dim=1).to(lam.dtype)
    return grad_rows, None, None, grad_lam, None


class MixRowsOnBackend(torch.autograd.Function):
    """mix_rows by a given kernel outside the dispatcher."""

    @staticmethod
    def forward(
        ctx: GradientContext,
        kernel: Callable[..., Tensor],
        rows: Tensor,
        index: Tensor,
        partner: Tensor,
        lam: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Call the kernel."""
        ctx.save_for_backward(rows, index, partner, lam)
        return kernel(rows, index, partner, lam, dtype)

    @staticmethod
    def backward(ctx: GradientContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs."""
        return None, *_gradients(ctx, grad, ctx.needs_input_grad[1:])
