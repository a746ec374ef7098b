"""Mixed labels and their loss."""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.core import checks
from spurmix.ops import backends, validate
from spurmix.ops.calls import call, is_transformed, write
from spurmix.ops.gradients.cross_entropy import LossWithGrad
from spurmix.ops.reference.cross_entropy import MEAN, NONE, SUM

_REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}


def mix_labels(
    label: Tensor,
    partner_label: Tensor,
    lam: Tensor,
    num_classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Dense targets of mixed samples, for losses that require them. `mixed_cross_entropy` does not.

    Equivalent PyTorch::

        w = lam[:, None]
        w * F.one_hot(label, num_classes) + (1 - w) * F.one_hot(partner_label, num_classes)

    Args:
        label: Classes of the first examples, int64 `[B]` in [0, num_classes).
        partner_label: Classes of the second examples, int64 `[B]` in [0, num_classes).
        lam: Weights of `label`, float32 `[B]` in [0, 1].
        num_classes: Number of classes.
        dtype: Data type of the result: float32, float16, bfloat16 or float64.
        out: Contiguous tensor `[B, num_classes]` to write to.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Targets, `[B, num_classes]`. Each row sums to 1.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has a wrong shape, value or device. On a GPU, `check` raises it later for `lam`.
        IndexError: If a class is outside [0, num_classes). On a GPU, `check` raises it later.
        RuntimeError: If the backend is not available.

    Example:
        >>> mix_labels(torch.tensor([0]), torch.tensor([2]), torch.tensor([0.75]), 3)
        tensor([[0.7500, 0.0000, 0.2500]])

    Source:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, equation (1).
    """
    label, partner_label, lam = _check_labels(label, partner_label, lam, "B")
    batch = label.shape[0]
    validate.no_grad_input(lam=lam)
    num_classes = validate.size(num_classes, "num_classes", 1)
    if out is not None:
        validate.output(out, (batch, num_classes), validate.FLOATS_AND_DOUBLE, label.device)
        validate.no_overlap(out, label=label, partner_label=partner_label, lam=lam)
        return write(out, backends.implementation("mix_labels_out", backend, label.device), label, partner_label, lam)
    kind = validate.float_dtype(dtype, allowed=validate.FLOATS_AND_DOUBLE)
    function = backends.implementation("mix_labels", backend, label.device)
    return call(function, label, partner_label, lam, num_classes, kind)


def _check_labels(label: object, partner_label: object, lam: object, batch: int | str) -> tuple[Tensor, Tensor, Tensor]:
    """Check the labels and weights, `[B]` each, and return them contiguous."""
    label = validate.tensor(label, "label", (torch.int64,), (batch,))
    size = label.shape[0]
    partner_label = validate.tensor(partner_label, "partner_label", (torch.int64,), (size,))
    lam = validate.tensor(lam, "lam", (torch.float32,), (size,))
    validate.same_device(label.device, partner_label=partner_label, lam=lam)
    return label.contiguous(), partner_label.contiguous(), lam.contiguous()


def mixed_cross_entropy(
    logits: Tensor,
    label: Tensor,
    partner_label: Tensor | None = None,
    lam: Tensor | None = None,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Cross entropy of mixed samples without dense targets. It is differentiable in `logits`, any number of times.

    Equivalent PyTorch::

        target = mix_labels(label, partner_label, lam, logits.shape[1])
        F.cross_entropy(logits, target, reduction=reduction, label_smoothing=label_smoothing)

    Args:
        logits: Logits, float32, float16, bfloat16 or float64 `[B, C]`. Computed in float32 (float64 for float64).
        label: Classes of the first examples, int64 `[B]` in [0, C).
        partner_label: Classes of the second examples, int64 `[B]` in [0, C). Default: not mixed.
        lam: Weights of `label`, float32 `[B]` in [0, 1]. Given if and only if `partner_label` is.
        reduction: "mean", "sum" or "none".
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        The loss, a scalar, or `[B]` if `reduction` is "none". float32 (float64 for float64 logits).

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has a wrong shape, value or device. On a GPU, `check` raises it later for `lam`.
        IndexError: If a class is outside [0, C). On a GPU, `check` raises it later.
        RuntimeError: If the backend is not available.

    Example:
        >>> logits = torch.zeros(1, 2)
        >>> mixed_cross_entropy(logits, torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]))
        tensor(0.6931)

    Source:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018. Label smoothing: Szegedy et al., Rethinking the
        Inception Architecture for Computer Vision, CVPR 2016, section 7.
    """
    if type(reduction) is not str or reduction not in _REDUCTIONS:
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if type(label_smoothing) is not float or not 0.0 <= label_smoothing <= 1.0:
        label_smoothing = checks.number(label_smoothing, "label_smoothing", 0, 1)
    settings = (_REDUCTIONS[reduction], label_smoothing)
    if _computes_grad_with_loss(logits, label, partner_label, lam, backend):
        try:
            return LossWithGrad.apply(logits, label, partner_label, lam, *settings)
        except RuntimeError:
            # The kernel rejected an argument, or a transform wraps it. The path below raises a better error or corrects it.
            pass
    inputs = _check_loss_inputs(logits, label, partner_label, lam)
    if is_transformed(inputs[0], inputs[3]):
        backend = "reference"
    elif _computes_grad_with_loss(*inputs, backend):
        return call(LossWithGrad.apply, *inputs, *settings)
    return call(backends.implementation("mixed_cross_entropy", backend, inputs[0].device), *inputs, *settings)[0]


def _computes_grad_with_loss(logits: object, label: object, partner_label: object, lam: object, backend: str) -> bool:
    """Whether the forward pass computes the gradient, too.

    Compiled CPU kernels do, outside torch.compile. Half types are excluded, because their gradient would be rounded before
    the loss scale is applied.
    """
    return (
        isinstance(logits, Tensor)
        and isinstance(label, Tensor)
        and isinstance(partner_label, Tensor)
        and isinstance(lam, Tensor)
        and logits.requires_grad
        and not lam.requires_grad
        and (logits.dtype is torch.float32 or logits.dtype is torch.float64)
        and logits.is_cpu
        and label.is_cpu
        and partner_label.is_cpu
        and lam.is_cpu
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and backends.serving("cpu", backend) == "cpu"
    )


def _check_loss_inputs(
    logits: object, label: object, partner_label: object, lam: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the arguments, fill in a missing partner, and return them contiguous."""
    logits = validate.tensor(logits, "logits", validate.FLOATS_AND_DOUBLE, ("B", "C"))
    if logits.shape[1] < 1:
        raise ValueError(f"logits must have at least one class, got shape {list(logits.shape)}")
    if (partner_label is None) != (lam is None):
        raise ValueError("partner_label and lam must be given together, or neither of them")
    if partner_label is None or lam is None:
        partner_label, lam = label, torch.ones(logits.shape[0], dtype=torch.float32, device=logits.device)
    label, partner_label, lam = _check_labels(label, partner_label, lam, logits.shape[0])
    validate.same_device(logits.device, label=label)
    validate.no_grad_input(lam=lam)
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    return logits, label, partner_label, lam
