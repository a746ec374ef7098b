"""The loss whose forward pass makes the gradient too: for compiled CPU kernels, where the exponentials are taken once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spurmix.ops.library import differentiable_loss_gradient


class LossWithGrad(torch.autograd.Function):
    """mixed_cross_entropy whose forward pass makes the gradient too; the backward pass scales it."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        loss, grad = torch.ops.spurmix.mixed_cross_entropy_with_grad.default(*inputs)
        ctx.save_for_backward(grad, *inputs[:4])
        ctx.settings = inputs[4:]
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        grad, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            grad = differentiable_loss_gradient(upstream, *inputs, *ctx.settings)
        elif upstream.dim() == 1:
            grad = grad * upstream[:, None]
        elif not _is_one(upstream):
            grad = grad * upstream
        return grad, None, None, None, None, None


def _is_one(upstream: Tensor) -> bool:
    """Whether a scalar is known to be 1; of fake and batched tensors nothing is known."""
    try:
        return type(upstream) is Tensor and upstream.item() == 1.0
    except RuntimeError:
        return False
