"""Counts of correct predictions and of samples per group."""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.kernels.errors import report


@triton.jit
def group_counts_kernel(  # noqa: DOC107
    logits_ptr, row_stride: tl.int64, classes, label_ptr, group_ptr, counts_ptr, groups, error_ptr,
    COMPUTE: tl.constexpr, ALIGN: tl.constexpr, MEMBERSHIP: tl.constexpr, BLOCK: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
):  # fmt: skip
    """Count samples and correct predictions per group. Grid: (B,).

    For each group g of a sample, adds 1 to counts[g, 1], and 1 to counts[g, 0] if the prediction is correct.

    The prediction is the class of the largest logit: the first one among equals, and the first NaN if there is one.

    Args:
        logits_ptr: float `[B, classes]`, contiguous along classes.
        row_stride: elements between two rows.
        classes: number of classes.
        label_ptr: int64 `[B]`.
        group_ptr: int64 `[B]` in [-1, groups), where -1 is no group; or, if MEMBERSHIP, uint8 `[B, groups]`.
        counts_ptr: int64 `[groups, 2]`, which is added to.
        groups: number of groups.
        error_ptr: error flag of the device, int32 `[1]`.
        COMPUTE: dtype of the comparison: float64 for float64 logits, else float32.
        ALIGN: power of two that divides `row_stride` and `classes`.
        MEMBERSHIP: whether `group_ptr` is a membership matrix.
        BLOCK: classes per iteration.
        GROUP_BLOCK: groups per iteration.
    """
    # Makes the alignment visible to the compiler, which allows vectorized loads.
    row_stride, classes = row_stride // ALIGN * ALIGN, classes // ALIGN * ALIGN
    sample = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + sample * row_stride
    column = tl.arange(0, BLOCK)
    lane_max, lane_argmax = tl.full([BLOCK], float("-inf"), COMPUTE), tl.zeros([BLOCK], tl.int32) + classes
    lane_nan = tl.zeros([BLOCK], tl.int32) + classes  # position of the first NaN of each lane
    start = 0
    while start < classes:
        c = start + column
        mask = c < classes
        x = tl.load(row_ptr + c, mask=mask, other=float("-inf")).to(COMPUTE)
        lane_nan = tl.where(mask & (x != x), tl.minimum(lane_nan, c), lane_nan)
        better = mask & ((x > lane_max) | ((x == lane_max) & (lane_argmax == classes)))
        lane_argmax = tl.where(better, c, lane_argmax)
        lane_max = tl.where(better, x, lane_max)
        start += BLOCK
    first_nan = tl.min(lane_nan, 0)
    row_max = tl.max(lane_max, 0)
    prediction = tl.min(tl.where(lane_max == row_max, lane_argmax, classes), 0)
    prediction = tl.where(first_nan < classes, first_nan, prediction)
    correct = (prediction.to(tl.int64) == tl.load(label_ptr + sample)).to(tl.int64)
    if MEMBERSHIP:
        start = 0
        while start < groups:
            g = start + tl.arange(0, GROUP_BLOCK)
            is_member = tl.load(group_ptr + sample * groups + g, mask=g < groups, other=0) != 0
            tl.atomic_add(counts_ptr + 2 * g, correct, mask=is_member)
            tl.atomic_add(counts_ptr + 2 * g + 1, 1, mask=is_member)
            start += GROUP_BLOCK
    else:
        g = tl.load(group_ptr + sample)
        report(error_ptr, (g >= -1) & (g < groups), True)
        is_member = (g >= 0) & (g < groups)
        tl.atomic_add(counts_ptr + 2 * g, correct, mask=is_member)
        tl.atomic_add(counts_ptr + 2 * g + 1, 1, mask=is_member)
