"""Cross entropy of mixed labels, forward and backward. A program processes BLOCK classes of a row at a time."""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.kernels.errors import is_weight, report


@triton.jit
def _logit_gradient(x, logsumexp, column, label, partner_label, lam, smoothing, classes):
    """softmax(x) - target, for the classes `column`."""
    target = tl.where(column == label, lam, 0.0) + tl.where(column == partner_label, 1 - lam, 0.0)
    return tl.exp(x - logsumexp) - ((1 - smoothing) * target + smoothing / classes)


@triton.jit(do_not_specialize=["count"])
def cross_entropy_kernel(  # noqa: DOC107
    logits_ptr, row_stride: tl.int64, classes, label_ptr, partner_label_ptr, lam_ptr, smoothing: tl.float64, loss_ptr,
    logsumexp_ptr, grad_ptr, count, error_ptr, COMPUTE: tl.constexpr, ALIGN: tl.constexpr, GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the loss of each row, and its logsumexp or its gradient. Grid: (B,).

    One pass over the row: each lane keeps a running maximum and the sum of exponentials relative to it, which takes one
    exponential per element. For label smoothing, it also keeps the sum of the logits relative to the logit of `label`, so
    that large logits do not lose digits. A class of weight 0 contributes nothing, even if its logit is infinite.

    Args:
        logits_ptr: float `[B, classes]`, contiguous along classes.
        row_stride: elements between two rows.
        classes: number of classes.
        label_ptr: int64 `[B]`.
        partner_label_ptr: int64 `[B]`.
        lam_ptr: float32 `[B]`: weight of `label`; `partner_label` has weight 1 - lam.
        smoothing: label smoothing, in [0, 1].
        loss_ptr: output, COMPUTE `[B]`.
        logsumexp_ptr: output, COMPUTE `[B]`. Not written if GRAD.
        grad_ptr: output, `[B, classes]` like the logits: the gradient for an upstream gradient of 1 / `count`. Written
            only if GRAD, in a second pass over the row, which is still in the cache.
        count: divisor of the gradient.
        error_ptr: error flag of the device, int32 `[1]`.
        COMPUTE: dtype of the arithmetic: float64 for float64 logits, else float32.
        ALIGN: power of two that divides `row_stride` and `classes`.
        GRAD: whether to write the gradient instead of logsumexp.
        BLOCK: classes per iteration.
    """
    # Makes the alignment visible to the compiler, which allows vectorized loads.
    row_stride, classes = row_stride // ALIGN * ALIGN, classes // ALIGN * ALIGN
    sample = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + sample * row_stride
    column = tl.arange(0, BLOCK)
    label, partner_label = tl.load(label_ptr + sample), tl.load(partner_label_ptr + sample)
    lam, smoothing = tl.load(lam_ptr + sample).to(COMPUTE), (tl.zeros([], COMPUTE) + smoothing).to(COMPUTE)
    in_range = (label >= 0) & (label < classes) & (partner_label >= 0) & (partner_label < classes)
    report(error_ptr, in_range, is_weight(lam))
    valid = in_range & is_weight(lam)
    a = tl.load(row_ptr + label, mask=valid, other=0).to(COMPUTE)
    b = tl.load(row_ptr + partner_label, mask=valid, other=0).to(COMPUTE)
    # The logits are summed relative to that of `label`, or to 0 if it is not finite.
    pivot = tl.where((a > float("-inf")) & (a < float("inf")), a, 0.0)
    lane_max = tl.full([BLOCK], float("-inf"), COMPUTE)
    lane_exp_sum, lane_sum = tl.zeros([BLOCK], COMPUTE), tl.zeros([BLOCK], COMPUTE)
    start = 0
    while start < classes:
        mask = start + column < classes
        x = tl.load(row_ptr + start + column, mask=mask, other=float("-inf")).to(COMPUTE)
        # Two equal infinities have distance 0, not NaN. A NaN logit stays NaN.
        scale = tl.where(x == lane_max, 1.0, tl.exp(-tl.abs(x - lane_max)))
        lane_exp_sum = tl.where(x > lane_max, lane_exp_sum * scale + 1.0, lane_exp_sum + scale)
        lane_max = tl.maximum(lane_max, x)
        lane_sum += tl.where(mask, x - pivot, 0.0)
        start += BLOCK
    row_max = tl.max(lane_max, 0)
    finite = (row_max > float("-inf")) & (row_max < float("inf"))
    origin = tl.where(finite, row_max, 0.0)
    exp_sum = tl.sum(lane_exp_sum * tl.exp(lane_max - origin), 0)
    # An infinite maximum is its own logsumexp. NaN anywhere in the row makes the sum NaN.
    log_exp_sum = tl.where(exp_sum != exp_sum, exp_sum, tl.where(finite, tl.log(exp_sum), row_max))
    picked = tl.where(lam == 0, 0.0, lam * (a - origin)) + tl.where(lam == 1, 0.0, (1 - lam) * (b - origin))
    loss = log_exp_sum - (1 - smoothing) * picked
    mean = tl.sum(lane_sum, 0) / classes - (origin - pivot)
    loss = tl.where(smoothing == 0, loss, loss - smoothing * mean)
    tl.store(loss_ptr + sample, tl.where(valid, loss, float("nan")))
    if GRAD:
        scale = tl.where(valid, tl.full([], 1.0, COMPUTE) / count, float("nan"))
        start = 0
        while start < classes:
            c = start + column
            x = tl.load(row_ptr + c, mask=c < classes, other=0).to(COMPUTE)
            grad = _logit_gradient(x, origin + log_exp_sum, c, label, partner_label, lam, smoothing, classes) * scale
            tl.store(grad_ptr + sample * classes + c, grad.to(grad_ptr.dtype.element_ty), mask=c < classes)
            start += BLOCK
    else:
        tl.store(logsumexp_ptr + sample, origin + log_exp_sum)


@triton.jit(do_not_specialize=["count", "grad_stride"])
def cross_entropy_backward_kernel(  # noqa: DOC107
    grad_ptr, grad_stride, count, logits_ptr, row_stride: tl.int64, classes, logsumexp_ptr, label_ptr,
    partner_label_ptr, lam_ptr, smoothing: tl.float64, out_ptr, error_ptr, COMPUTE: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute out = (softmax(logits) - target) * grad / count. Grid: (B, cdiv(classes, BLOCK)).

    Args:
        grad_ptr: upstream gradient, COMPUTE `[B]`, or `[1]` with a `grad_stride` of 0.
        grad_stride: elements between the gradients of two samples.
        count: divisor of the gradient.
        logits_ptr: float `[B, classes]`, contiguous along classes.
        row_stride: elements between two rows.
        classes: number of classes.
        logsumexp_ptr: COMPUTE `[B]`, from the forward pass.
        label_ptr: int64 `[B]`.
        partner_label_ptr: int64 `[B]`.
        lam_ptr: float32 `[B]`: weight of `label`; `partner_label` has weight 1 - lam.
        smoothing: label smoothing, in [0, 1].
        out_ptr: output, `[B, classes]` like the logits.
        error_ptr: error flag of the device, int32 `[1]`.
        COMPUTE: dtype of the arithmetic: float64 for float64 logits, else float32.
        ALIGN: power of two that divides `row_stride` and `classes`.
        BLOCK: classes per program.
    """
    # Makes the alignment visible to the compiler, which allows vectorized loads.
    row_stride, classes = row_stride // ALIGN * ALIGN, classes // ALIGN * ALIGN
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < classes
    label, partner_label = tl.load(label_ptr + sample), tl.load(partner_label_ptr + sample)
    lam, smoothing = tl.load(lam_ptr + sample).to(COMPUTE), (tl.zeros([], COMPUTE) + smoothing).to(COMPUTE)
    in_range = (label >= 0) & (label < classes) & (partner_label >= 0) & (partner_label < classes)
    report(error_ptr, in_range, is_weight(lam))
    valid = in_range & is_weight(lam)
    scale = tl.where(valid, tl.load(grad_ptr + sample * grad_stride).to(COMPUTE) / count, float("nan"))
    x = tl.load(logits_ptr + sample * row_stride + column, mask=mask, other=0).to(COMPUTE)
    logsumexp = tl.load(logsumexp_ptr + sample)
    grad = _logit_gradient(x, logsumexp, column, label, partner_label, lam, smoothing, classes) * scale
    tl.store(out_ptr + sample * classes + column, grad.to(out_ptr.dtype.element_ty), mask=mask)
