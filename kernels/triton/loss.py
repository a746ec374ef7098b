"""Cross entropy of mixed samples and counts per group in Triton: one row of logits a program, BLOCK classes at a time."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _slope(x, logsumexp, column, own, other, weight, smoothing, classes):
    """softmax - target of a row at classes `column`."""
    target = tl.where(column == own, weight, 0.0) + tl.where(column == other, 1 - weight, 0.0)
    return tl.exp(x - logsumexp) - ((1 - smoothing) * target + smoothing / classes)


@triton.jit(do_not_specialize=["count"])
def cross_entropy_kernel(
    logits, stride: tl.int64, classes, label, partner_label, lam, smoothing: tl.float64, loss, logsumexp, grad, count, flag,
    WIDE: tl.constexpr, ALIGN: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and logsumexp of a row, relative to its maximum, in one pass; a class of weight 0 contributes nothing.

    Each lane keeps its maximum and the sum relative to it, for one exponential an element. GRAD: the gradient for an
    upstream gradient of 1 / `count` instead of logsumexp, in a second pass over the row, which is in the cache. ALIGN: a
    power of two that divides stride and classes.
    """
    stride, classes = stride // ALIGN * ALIGN, classes // ALIGN * ALIGN  # the compiler does not know
    sample = tl.program_id(0).to(tl.int64)
    row = logits + sample * stride
    column = tl.arange(0, BLOCK)
    own, other = tl.load(label + sample), tl.load(partner_label + sample)
    weight, smoothing = tl.load(lam + sample).to(WIDE), (tl.zeros([], WIDE) + smoothing).to(WIDE)
    known = (own >= 0) & (own < classes) & (other >= 0) & (other < classes)
    if not known:
        tl.store(flag, 1)
    a, b = tl.load(row + own, mask=known, other=0).to(WIDE), tl.load(row + other, mask=known, other=0).to(WIDE)
    pivot = tl.where((a > float("-inf")) & (a < float("inf")), a, 0.0)  # near the others: the sum keeps its digits
    tops = tl.full([BLOCK], float("-inf"), WIDE)
    sums, totals = tl.zeros([BLOCK], WIDE), tl.zeros([BLOCK], WIDE)
    start = 0
    while start < classes:
        inside = start + column < classes
        x = tl.load(row + start + column, mask=inside, other=float("-inf")).to(WIDE)
        smaller = tl.where(x == tops, 1.0, tl.exp(-tl.abs(x - tops)))  # equal infinities are 0 apart; NaN stays
        sums = tl.where(x > tops, sums * smaller + 1.0, sums + smaller)
        tops = tl.maximum(tops, x)
        totals += tl.where(inside, x - pivot, 0.0)
        start += BLOCK
    top = tl.max(tops, 0)
    finite = (top > float("-inf")) & (top < float("inf"))
    origin = tl.where(finite, top, 0.0)
    total = tl.sum(sums * tl.exp(tops - origin), 0)
    # An infinite maximum is its own logsumexp; NaN anywhere shows in the sum.
    relative = tl.where(total != total, total, tl.where(finite, tl.log(total), top))
    picked = tl.where(weight == 0, 0.0, weight * (a - origin)) + tl.where(weight == 1, 0.0, (1 - weight) * (b - origin))
    value = relative - (1 - smoothing) * picked
    spread = tl.sum(totals, 0) / classes - (origin - pivot)
    value = tl.where(smoothing == 0, value, value - smoothing * spread)
    tl.store(loss + sample, tl.where(known, value, float("nan")))
    if GRAD:
        scale = tl.where(known, tl.full([], 1.0, WIDE) / count, float("nan"))
        start = 0
        while start < classes:
            here = start + column
            x = tl.load(row + here, mask=here < classes, other=0).to(WIDE)
            slope = _slope(x, origin + relative, here, own, other, weight, smoothing, classes) * scale
            tl.store(grad + sample * classes + here, slope.to(grad.dtype.element_ty), mask=here < classes)
            start += BLOCK
    else:
        tl.store(logsumexp + sample, origin + relative)


@triton.jit(do_not_specialize=["count", "grad_stride"])
def cross_entropy_backward_kernel(
    grad, grad_stride, count, logits, stride: tl.int64, classes, logsumexp, label, partner_label, lam,
    smoothing: tl.float64, out, flag, WIDE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(softmax - target) * grad / count: BLOCK classes of a row."""
    stride, classes = stride // ALIGN * ALIGN, classes // ALIGN * ALIGN  # the compiler does not know
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < classes
    own, other = tl.load(label + sample), tl.load(partner_label + sample)
    weight, smoothing = tl.load(lam + sample).to(WIDE), (tl.zeros([], WIDE) + smoothing).to(WIDE)
    known = (own >= 0) & (own < classes) & (other >= 0) & (other < classes)
    if not known:
        tl.store(flag, 1)
    scale = tl.where(known, tl.load(grad + sample * grad_stride).to(WIDE) / count, float("nan"))
    x = tl.load(logits + sample * stride + column, mask=inside, other=0).to(WIDE)
    slope = _slope(x, tl.load(logsumexp + sample), column, own, other, weight, smoothing, classes) * scale
    tl.store(out + sample * classes + column, slope.to(out.dtype.element_ty), mask=inside)


@triton.jit
def group_counts_kernel(
    logits, stride: tl.int64, classes, label, group, counts, groups, flag, WIDE: tl.constexpr, ALIGN: tl.constexpr,
    MEMBERSHIP: tl.constexpr, BLOCK: tl.constexpr, GROUP_BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a row's (correct, 1) to its groups. The largest logit wins, the first among equals; NaN counts as largest."""
    stride, classes = stride // ALIGN * ALIGN, classes // ALIGN * ALIGN  # the compiler does not know
    sample = tl.program_id(0).to(tl.int64)
    row = logits + sample * stride
    column = tl.arange(0, BLOCK)
    best, at = tl.full([BLOCK], float("-inf"), WIDE), tl.zeros([BLOCK], tl.int32) + classes
    hole = tl.zeros([BLOCK], tl.int32) + classes  # the first NaN of each lane
    start = 0
    while start < classes:
        here = start + column
        inside = here < classes
        x = tl.load(row + here, mask=inside, other=float("-inf")).to(WIDE)
        hole = tl.where(inside & (x != x), tl.minimum(hole, here), hole)
        better = inside & ((x > best) | ((x == best) & (at == classes)))
        at = tl.where(better, here, at)
        best = tl.where(better, x, best)
        start += BLOCK
    first_hole = tl.min(hole, 0)
    top = tl.max(best, 0)
    predicted = tl.min(tl.where(best == top, at, classes), 0)
    predicted = tl.where(first_hole < classes, first_hole, predicted)
    correct = (predicted.to(tl.int64) == tl.load(label + sample)).to(tl.int64)
    if MEMBERSHIP:
        start = 0
        while start < groups:
            g = start + tl.arange(0, GROUP_BLOCK)
            member = tl.load(group + sample * groups + g, mask=g < groups, other=0) != 0
            tl.atomic_add(counts + 2 * g, correct, mask=member)
            tl.atomic_add(counts + 2 * g + 1, 1, mask=member)
            start += GROUP_BLOCK
    else:
        g = tl.load(group + sample)
        if (g < -1) | (g >= groups):
            tl.store(flag, 1)
        member = (g >= 0) & (g < groups)
        tl.atomic_add(counts + 2 * g, correct, mask=member)
        tl.atomic_add(counts + 2 * g + 1, 1, mask=member)
