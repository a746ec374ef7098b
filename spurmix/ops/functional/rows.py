"""Mixing of feature rows."""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.ops import backends, validate
from spurmix.ops.calls import call, is_transformed, write


def check_pairs(index: object, partner: object, lam: object, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Check index, partner and lam, `[B]` each, and return them contiguous.

    Raises TypeError if one is not a tensor of the right dtype, and ValueError if the shapes or devices do not fit.
    """
    index = validate.tensor(index, "index", (torch.int64,), ("B",))
    batch = index.shape[0]
    partner = validate.tensor(partner, "partner", (torch.int64,), (batch,))
    lam = validate.tensor(lam, "lam", (torch.float32,), (batch,))
    validate.same_device(device, index=index, partner=partner, lam=lam)
    return index.contiguous(), partner.contiguous(), lam.contiguous()


def mix_rows(
    rows: Tensor,
    index: Tensor,
    partner: Tensor,
    lam: Tensor,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mix pairs of rows of a feature table. It is differentiable in `rows` and `lam`.

    Equivalent PyTorch, in float32 (float64 for float64 rows)::

        w = lam[:, None]
        w * rows[index] + (1 - w) * rows[partner]

    Args:
        rows: Features, float32, float16, bfloat16 or float64 `[N, D]`. Each row is contiguous.
        index: Rows of the first examples, int64 `[B]` in [0, N).
        partner: Rows of the second examples, int64 `[B]` in [0, N).
        lam: Weights of `index`, float32 `[B]` in [0, 1].
        dtype: Data type of the result: float32, float16, bfloat16 or float64. Default: that of `rows`.
        out: Contiguous tensor `[B, D]` to write to. Then no argument may require grad.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Mixed rows, `[B, D]`.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has a wrong shape, layout, value or device. On a GPU, `check` raises it later for `lam`.
        IndexError: If an index is outside [0, N). On a GPU, `check` raises it later.
        RuntimeError: If the backend is not available.

    Example:
        >>> rows = torch.tensor([[0.0, 4.0], [8.0, 0.0]])
        >>> mix_rows(rows, torch.tensor([0]), torch.tensor([1]), torch.tensor([0.75]))
        tensor([[2., 3.]])

    Source:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, equation (1).
    """
    validate.tensor(rows, "rows", validate.FLOATS_AND_DOUBLE, ("N", "D"))
    if rows.shape[1] > 1 and rows.stride(1) != 1:
        raise ValueError("rows must have contiguous rows; call .contiguous()")
    index, partner, lam = check_pairs(index, partner, lam, rows.device)
    batch = index.shape[0]
    if out is not None:
        validate.output(out, (batch, rows.shape[1]), validate.FLOATS_AND_DOUBLE, rows.device)
        validate.no_grad_input(rows=rows, lam=lam)
        validate.no_overlap(out, rows=rows, index=index, partner=partner, lam=lam)
        return write(out, backends.implementation("mix_rows_out", backend, rows.device), rows, index, partner, lam)
    kind = validate.float_dtype(dtype if dtype is not None else rows.dtype, allowed=validate.FLOATS_AND_DOUBLE)
    if is_transformed(rows, lam):
        backend = "reference"
    return call(backends.implementation("mix_rows", backend, rows.device), rows, index, partner, lam, kind)
