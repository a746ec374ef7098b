"""Reference of mix_labels and of the loss on mixed labels, mixed_cross_entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.ops.reference.checks import check_index, check_lam

NONE, MEAN, SUM = 0, 1, 2
"""Reductions of the loss."""


def mix_labels(label: Tensor, partner_label: Tensor, lam: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Dense targets lam * one_hot(label) + (1 - lam) * one_hot(partner_label), `[B, num_classes]`."""
    check_index(label, num_classes, "label")
    check_index(partner_label, num_classes, "partner_label")
    check_lam(lam)
    wide = torch.promote_types(dtype, torch.float32)
    target = torch.zeros(label.shape[0], num_classes, dtype=wide, device=label.device)
    weight = lam.to(wide)[:, None]
    target.scatter_add_(1, label[:, None], weight)
    target.scatter_add_(1, partner_label[:, None], 1 - weight)
    return target.to(dtype)


def mix_labels_out(label: Tensor, partner_label: Tensor, lam: Tensor, out: Tensor) -> None:
    """Write the result of `mix_labels` to `out`."""
    out.copy_(mix_labels(label, partner_label, lam, out.shape[1], out.dtype))


def _soft_target(
    shape: torch.Size, dtype: torch.dtype, label: Tensor, partner_label: Tensor, lam: Tensor, label_smoothing: float
) -> Tensor:
    target = mix_labels(label, partner_label, lam, shape[1], dtype)
    return (1 - label_smoothing) * target + label_smoothing / shape[1]


def mixed_cross_entropy(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross entropy with the mixed and smoothed target: the loss, `[B]` or a scalar, and logsumexp `[B]`."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    check_index(label, x.shape[1], "label")
    check_index(partner_label, x.shape[1], "partner_label")
    check_lam(lam)
    # Subtract the maximum, so that large logits do not lose digits.
    top = x.detach().amax(dim=1)
    origin = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    shifted = x - origin[:, None]
    relative = torch.logsumexp(shifted, dim=1)
    weight = lam.to(x.dtype)
    # A class of weight 0 contributes nothing, even if its logit is infinite.
    first, second = shifted.gather(1, label[:, None])[:, 0], shifted.gather(1, partner_label[:, None])[:, 0]
    first = torch.where(weight == 0, torch.zeros_like(first), weight * first)
    second = torch.where(weight == 1, torch.zeros_like(second), (1 - weight) * second)
    loss = relative - (1 - label_smoothing) * (first + second)
    if label_smoothing:
        loss = loss - label_smoothing * shifted.mean(dim=1)
    logsumexp = origin + relative
    if reduction == MEAN:
        return loss.mean(), logsumexp
    return (loss.sum() if reduction == SUM else loss), logsumexp


def mixed_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    logsumexp: Tensor,
    label: Tensor,
    partner_label: Tensor,
    lam: Tensor,
    reduction: int,
    label_smoothing: float,
) -> Tensor:
    """(softmax - target) * grad, `[B, C]` in the dtype of `logits`."""
    x = logits.to(logsumexp.dtype)
    target = _soft_target(x.shape, x.dtype, label, partner_label, lam, label_smoothing)
    scale = grad.to(x.dtype) / max(1, x.shape[0]) if reduction == MEAN else grad.to(x.dtype)
    scale = scale[:, None] if reduction == NONE else scale
    return ((torch.exp(x - logsumexp[:, None]) - target) * scale).to(logits.dtype)


def mixed_cross_entropy_with_grad(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient for an upstream gradient of 1. `logits` is float32 or float64 `[B, C]`."""
    arguments = (label, partner_label, lam, reduction, label_smoothing)
    loss, logsumexp = mixed_cross_entropy(logits, *arguments)
    return loss, mixed_cross_entropy_backward(torch.ones_like(loss), logits, logsumexp, *arguments)
