"""Cross entropy of mixed samples and counts per group in Triton: one row of logits a program, in STEPS of BLOCK."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cross_entropy_kernel(
    logits, stride, classes, label, partner_label, lam, smoothing, loss, logsumexp, flag,
    WIDE: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and logsumexp of a row, relative to its maximum. A class of weight 0 contributes nothing."""
    sample = tl.program_id(0).to(tl.int64)
    row = logits + sample * stride
    column = tl.arange(0, BLOCK)
    own, other = tl.load(label + sample), tl.load(partner_label + sample)
    weight = tl.load(lam + sample).to(WIDE)
    known = (own >= 0) & (own < classes) & (other >= 0) & (other < classes)
    if not known:
        tl.store(flag, 1)
    tops = tl.full([BLOCK], float("-inf"), WIDE)
    for start in range(0, STEPS * BLOCK, BLOCK):
        x = tl.load(row + start + column, mask=start + column < classes, other=float("-inf")).to(WIDE)
        tops = tl.maximum(tops, x)
    top = tl.max(tops, 0)
    finite = (top > float("-inf")) & (top < float("inf"))
    origin = tl.where(finite, top, 0.0)
    sums, totals = tl.zeros([BLOCK], WIDE), tl.zeros([BLOCK], WIDE)
    for start in range(0, STEPS * BLOCK, BLOCK):
        inside = start + column < classes
        x = tl.load(row + start + column, mask=inside, other=0).to(WIDE) - origin
        sums += tl.where(inside, tl.exp(x), 0.0)
        totals += tl.where(inside, x, 0.0)
    total = tl.sum(sums, 0)
    # An infinite maximum is its own logsumexp; NaN anywhere shows in the sum.
    relative = tl.where(total != total, total, tl.where(finite, tl.log(total), top))
    a = tl.load(row + own, mask=known, other=0).to(WIDE) - origin
    b = tl.load(row + other, mask=known, other=0).to(WIDE) - origin
    picked = tl.where(weight == 0, 0.0, weight * a) + tl.where(weight == 1, 0.0, (1 - weight) * b)
    value = relative - (1 - smoothing) * picked
    value = tl.where(smoothing == 0, value, value - smoothing * tl.sum(totals, 0) / classes)
    tl.store(loss + sample, tl.where(known, value, float("nan")))
    tl.store(logsumexp + sample, origin + relative)


@triton.jit
def cross_entropy_backward_kernel(
    grad, grad_stride, factor, logits, stride, classes, logsumexp, label, partner_label, lam, smoothing, out, flag,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(softmax - target) * grad * factor: BLOCK classes of a row."""
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < classes
    own, other = tl.load(label + sample), tl.load(partner_label + sample)
    weight = tl.load(lam + sample).to(WIDE)
    known = (own >= 0) & (own < classes) & (other >= 0) & (other < classes)
    if not known:
        tl.store(flag, 1)
    scale = tl.load(grad + sample * grad_stride).to(WIDE) * factor
    x = tl.load(logits + sample * stride + column, mask=inside, other=0).to(WIDE)
    target = tl.where(column == own, weight, 0.0) + tl.where(column == other, 1 - weight, 0.0)
    target = (1 - smoothing) * target + smoothing / classes
    slope = (tl.exp(x - tl.load(logsumexp + sample)) - target) * scale
    slope = tl.where(known, slope, float("nan"))
    tl.store(out + sample * classes + column, slope.to(out.dtype.element_ty), mask=inside)


@triton.jit
def group_counts_kernel(
    logits, stride, classes, label, group, counts, groups, flag,
    WIDE: tl.constexpr, MEMBERSHIP: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
    GROUP_STEPS: tl.constexpr, GROUP_BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a row's (correct, 1) to its groups. The largest logit wins, the first among equals; NaN counts as largest."""
    sample = tl.program_id(0).to(tl.int64)
    row = logits + sample * stride
    column = tl.arange(0, BLOCK)
    best, at = tl.full([BLOCK], float("-inf"), WIDE), tl.zeros([BLOCK], tl.int32) + classes
    hole = tl.zeros([BLOCK], tl.int32) + classes  # the first NaN of each lane
    for start in range(0, STEPS * BLOCK, BLOCK):
        here = start + column
        inside = here < classes
        x = tl.load(row + here, mask=inside, other=float("-inf")).to(WIDE)
        hole = tl.where(inside & (x != x), tl.minimum(hole, here), hole)
        better = inside & ((x > best) | ((x == best) & (at == classes)))
        at = tl.where(better, here, at)
        best = tl.where(better, x, best)
    first_hole = tl.min(hole, 0)
    top = tl.max(best, 0)
    predicted = tl.min(tl.where(best == top, at, classes), 0)
    predicted = tl.where(first_hole < classes, first_hole, predicted)
    correct = (predicted.to(tl.int64) == tl.load(label + sample)).to(tl.int64)
    if MEMBERSHIP:
        for start in range(0, GROUP_STEPS * GROUP_BLOCK, GROUP_BLOCK):
            g = start + tl.arange(0, GROUP_BLOCK)
            member = tl.load(group + sample * groups + g, mask=g < groups, other=0) != 0
            tl.atomic_add(counts + 2 * g, correct, mask=member)
            tl.atomic_add(counts + 2 * g + 1, 1, mask=member)
    else:
        g = tl.load(group + sample)
        if (g < -1) | (g >= groups):
            tl.store(flag, 1)
        member = (g >= 0) & (g < groups)
        tl.atomic_add(counts + 2 * g, correct, mask=member)
        tl.atomic_add(counts + 2 * g + 1, 1, mask=member)
