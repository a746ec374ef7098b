"""Gradient of mixed_cross_entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from spurmix.ops.gradients.gradient_context import GradientContext
from spurmix.ops.reference.cross_entropy import mixed_cross_entropy

LossInputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, int, float]
"""Arguments of mixed_cross_entropy."""
LossGradients: TypeAlias = tuple[Tensor, None, None, None, None, None]


class LossContext(GradientContext, Protocol):
    """Context of the loss."""

    reduction: int
    label_smoothing: float


class LossOnBackendContext(LossContext, Protocol):
    """Context of the loss by given kernels."""

    kernels: Mapping[str, Callable[..., Tensor]]


def setup_context(ctx: LossContext, inputs: LossInputs, output: tuple[Tensor, Tensor]) -> None:
    """Keep the inputs and logsumexp for the backward pass."""
    logits, label, partner_label, lam, ctx.reduction, ctx.label_smoothing = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, output[1], label, partner_label, lam)


def backward(ctx: LossContext, grad: Tensor, _: Tensor) -> LossGradients:
    """Gradient of the logits."""
    logits, logsumexp, label, partner_label, lam = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiable(ctx, grad)
    grad_logits = torch.ops.spurmix.mixed_cross_entropy_backward(
        grad, logits, logsumexp, label, partner_label, lam, ctx.reduction, ctx.label_smoothing
    )
    return grad_logits, None, None, None, None, None


def _differentiable(ctx: LossContext, grad: Tensor) -> LossGradients:
    logits, _, label, partner_label, lam = ctx.saved_tensors
    inputs = (logits, label, partner_label, lam, ctx.reduction, ctx.label_smoothing)
    return _differentiable_gradient(grad, inputs), None, None, None, None, None


def _differentiable_gradient(grad: Tensor, inputs: LossInputs) -> Tensor:
    """Gradient of the logits by the reference. It can be differentiated again."""
    loss = mixed_cross_entropy(*inputs)[0]
    return torch.autograd.grad(loss, inputs[0], grad, create_graph=True)[0]


class LossOnBackend(torch.autograd.Function):
    """mixed_cross_entropy by given kernels outside the dispatcher."""

    @staticmethod
    def forward(
        ctx: LossOnBackendContext,
        kernels: Mapping[str, Callable[..., tuple[Tensor, Tensor]]],
        logits: Tensor,
        label: Tensor,
        partner_label: Tensor,
        lam: Tensor,
        reduction: int,
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        """Call the kernel of the forward pass."""
        inputs = (logits, label, partner_label, lam, reduction, label_smoothing)
        output = kernels["mixed_cross_entropy"](*inputs)
        ctx.kernels = kernels  # type: ignore[assignment]  # the backward kernel returns one tensor
        setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: LossOnBackendContext, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Call the kernel of the backward pass, or the reference if a graph of the gradient is required."""
        if torch.is_grad_enabled():
            return None, *_differentiable(ctx, grad)
        kernel = ctx.kernels["mixed_cross_entropy_backward"]
        logits, logsumexp, *rest = ctx.saved_tensors
        grad_logits = kernel(grad, logits, logsumexp, *rest, ctx.reduction, ctx.label_smoothing)
        return None, grad_logits, None, None, None, None, None


class LossWithGrad(torch.autograd.Function):
    """mixed_cross_entropy by the compiled CPU kernel that computes loss and gradient in one pass.

    The exponentials are computed once. The backward pass scales the gradient.
    """

    @staticmethod
    def forward(
        ctx: LossContext,
        logits: Tensor,
        label: Tensor,
        partner_label: Tensor,
        lam: Tensor,
        reduction: int,
        label_smoothing: float,
    ) -> Tensor:
        """Compute loss and gradient."""
        loss, grad = torch.ops.spurmix.mixed_cross_entropy_with_grad.default(
            logits, label, partner_label, lam, reduction, label_smoothing
        )
        ctx.save_for_backward(logits, grad, label, partner_label, lam)
        ctx.reduction, ctx.label_smoothing = reduction, label_smoothing
        return loss

    @staticmethod
    def backward(ctx: LossContext, upstream: Tensor) -> LossGradients:
        """Scale the gradient, or compute it by the reference if a graph of the gradient is required."""
        if torch.is_grad_enabled():
            return _differentiable(ctx, upstream)
        grad = ctx.saved_tensors[1]
        if upstream.dim() == 1:
            grad = grad * upstream[:, None]
        elif not _is_one(upstream):
            grad = grad * upstream
        return grad, None, None, None, None, None


def _is_one(upstream: Tensor) -> bool:
    """Whether a scalar is 1. The values of fake and batched tensors are not known."""
    try:
        return type(upstream) is Tensor and upstream.item() == 1.0
    except RuntimeError:
        return False
