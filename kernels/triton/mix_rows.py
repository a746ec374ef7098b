"""Mixing kernels for feature rows (`mix_rows`) and dense targets (`mix_labels`).

An index out of range is not read. The output row becomes NaN and the error flag is set, also if lam is not in [0, 1].
"""

from __future__ import annotations

import triton
import triton.language as tl
from spurmix.kernels.errors import is_weight, report


@triton.jit(do_not_specialize=["total"])
def mix_rows_kernel(  # noqa: DOC107
    rows_ptr, row_stride: tl.int64, total: tl.int64, index_ptr, partner_ptr, lam_ptr, out_ptr, columns, error_ptr,
    COMPUTE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute out[b] = lam[b] * rows[index[b]] + (1 - lam[b]) * rows[partner[b]]. Grid: (B, cdiv(columns, BLOCK)).

    Args:
        rows_ptr: feature rows, float `[total, columns]`, contiguous along columns.
        row_stride: elements between two rows.
        total: number of rows.
        index_ptr: int64 `[B]`.
        partner_ptr: int64 `[B]`.
        lam_ptr: float32 `[B]`.
        out_ptr: output, float `[B, columns]`.
        columns: number of columns.
        error_ptr: error flag of the device, int32 `[1]`.
        COMPUTE: dtype of the arithmetic: float64 for float64 rows, else float32.
        ALIGN: power of two that divides `row_stride` and `columns`.
        BLOCK: columns per program.
    """
    # Makes the alignment visible to the compiler, which allows vectorized loads.
    row_stride, columns = row_stride // ALIGN * ALIGN, columns // ALIGN * ALIGN
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    index, partner = tl.load(index_ptr + sample), tl.load(partner_ptr + sample)
    lam = tl.load(lam_ptr + sample).to(COMPUTE)
    in_range = (index >= 0) & (index < total) & (partner >= 0) & (partner < total)
    report(error_ptr, in_range, is_weight(lam))
    valid = in_range & is_weight(lam)
    mask = column < columns
    a = tl.load(rows_ptr + index * row_stride + column, mask=mask & valid, other=0).to(COMPUTE)
    b = tl.load(rows_ptr + partner * row_stride + column, mask=mask & valid, other=0).to(COMPUTE)
    mixed = tl.where(valid, lam * a + (1 - lam) * b, float("nan"))
    tl.store(out_ptr + sample * columns + column, mixed.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def mix_labels_kernel(  # noqa: DOC107
    label_ptr, partner_label_ptr, lam_ptr, out_ptr, classes, error_ptr, COMPUTE: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the mixed one-hot targets of a batch. Grid: (B, cdiv(classes, BLOCK)).

    Args:
        label_ptr: int64 `[B]`.
        partner_label_ptr: int64 `[B]`.
        lam_ptr: float32 `[B]`: weight of `label`; `partner_label` has weight 1 - lam.
        out_ptr: output, float `[B, classes]`.
        classes: number of classes.
        error_ptr: error flag of the device, int32 `[1]`.
        COMPUTE: dtype of the arithmetic: float64 for a float64 output, else float32.
        ALIGN: power of two that divides `classes`.
        BLOCK: classes per program.
    """
    classes = classes // ALIGN * ALIGN  # makes the alignment visible to the compiler
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    label, partner_label = tl.load(label_ptr + sample), tl.load(partner_label_ptr + sample)
    lam = tl.load(lam_ptr + sample).to(COMPUTE)
    in_range = (label >= 0) & (label < classes) & (partner_label >= 0) & (partner_label < classes)
    report(error_ptr, in_range, is_weight(lam))
    valid = in_range & is_weight(lam)
    target = tl.where(column == label, lam, 0.0) + tl.where(column == partner_label, 1 - lam, 0.0)
    target = tl.where(valid, target, float("nan"))
    tl.store(out_ptr + sample * classes + column, target.to(out_ptr.dtype.element_ty), mask=column < classes)
