"""Reference of mix_rows."""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.ops.reference.checks import check_index, check_lam


def mix_rows(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute lam * rows[index] + (1 - lam) * rows[partner], `[B, D]`, in float32 (float64 for float64 rows)."""
    check_index(index, rows.shape[0], "index")
    check_index(partner, rows.shape[0], "partner")
    check_lam(lam)
    wide = torch.promote_types(rows.dtype, torch.float32)
    weight = lam.to(wide)[:, None]
    return (weight * rows[index].to(wide) + (1 - weight) * rows[partner].to(wide)).to(dtype)


def mix_rows_out(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> None:
    """Write the result of `mix_rows` to `out`."""
    out.copy_(mix_rows(rows, index, partner, lam, out.dtype))
