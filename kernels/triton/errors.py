"""Bits of the error flag, as in `kernels/cuda/launch.h`, and checks that kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

BAD_INDEX = tl.constexpr(1)
"""An index, a class id or the draw tables are invalid."""
BAD_VALUE = tl.constexpr(4)
"""lam, a box, mean or std is invalid."""


@triton.jit
def is_weight(lam):
    """Return whether a weight is in [0, 1]. NaN is not."""
    return (lam >= 0) & (lam <= 1)


@triton.jit
def report(error_ptr, indices_valid, values_valid):
    """Set a bit of the error flag if the indices or the values of a sample are invalid."""
    if not indices_valid:
        tl.atomic_or(error_ptr, BAD_INDEX)
    elif not values_valid:
        tl.atomic_or(error_ptr, BAD_VALUE)
