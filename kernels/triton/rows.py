"""Feature rows and dense targets in Triton. An index out of range is not followed: NaN is written and a flag set."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total"])
def mix_rows_kernel(
    rows, stride: tl.int64, total: tl.int64, index, partner, lam, out, columns, flag,
    WIDE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample and BLOCK columns a program; arithmetic in WIDE (float32, or float64 for float64 rows).

    ALIGN: a power of two that divides stride and columns.
    """
    stride, columns = stride // ALIGN * ALIGN, columns // ALIGN * ALIGN  # the compiler does not know
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own, other = tl.load(index + sample), tl.load(partner + sample)
    weight = tl.load(lam + sample).to(WIDE)
    known = (own >= 0) & (own < total) & (other >= 0) & (other < total)
    if not known:
        tl.store(flag, 1)
    inside = column < columns
    a = tl.load(rows + own * stride + column, mask=inside & known, other=0).to(WIDE)
    b = tl.load(rows + other * stride + column, mask=inside & known, other=0).to(WIDE)
    mixed = tl.where(known, weight * a + (1 - weight) * b, float("nan"))
    tl.store(out + sample * columns + column, mixed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def mix_labels_kernel(
    label, partner_label, lam, out, classes, flag, WIDE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr
):
    """One sample and BLOCK classes a program."""
    classes = classes // ALIGN * ALIGN  # the compiler does not know
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own, other = tl.load(label + sample), tl.load(partner_label + sample)
    weight = tl.load(lam + sample).to(WIDE)
    known = (own >= 0) & (own < classes) & (other >= 0) & (other < classes)
    if not known:
        tl.store(flag, 1)
    target = tl.where(column == own, weight, 0.0) + tl.where(column == other, 1 - weight, 0.0)
    target = tl.where(known, target, float("nan"))
    tl.store(out + sample * classes + column, target.to(out.dtype.element_ty), mask=column < classes)
