"""Accuracy counts by group."""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.ops import backends, validate
from spurmix.ops.calls import write


def group_counts(
    logits: Tensor,
    label: Tensor,
    group: Tensor,
    num_groups: int | None = None,
    *,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Count the correct predictions and all predictions of each group, on the device and without synchronization.

    Equivalent PyTorch::

        correct = (logits.argmax(1) == label).double()
        torch.stack([torch.bincount(group, correct, num_groups), torch.bincount(group, None, num_groups)], 1)

    Args:
        logits: Logits, float32, float16, bfloat16 or float64 `[B, C]`. The prediction is the largest logit, the first of
            equal ones. NaN counts as the largest.
        label: Classes, int64 `[B]`.
        group: Group of each example, int64 `[B]` in [-1, G), where -1 is not counted. Or the membership in groups that may
            overlap, bool `[B, G]`.
        num_groups: Number of groups, G. Required if `group` is int64 and `out` is not given.
        out: Counts to add to, int64 `[G, 2]`.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Correct and total predictions of each group, int64 `[G, 2]`.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has a wrong shape, value or device, or the number of groups is missing.
        IndexError: If a group is outside [-1, G). On a GPU, `check` raises it later.
        RuntimeError: If the backend is not available.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> group_counts(logits, torch.tensor([1, 1]), torch.tensor([0, 1]), 2).tolist()
        [[1, 1], [0, 1]]

    Source:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020, for the accuracy by group.
    """
    batch = validate.tensor(logits, "logits", validate.FLOATS_AND_DOUBLE, ("B", "C")).shape[0]
    if logits.shape[1] < 1:
        raise ValueError(f"logits must have at least one class, got shape {list(logits.shape)}")
    validate.tensor(label, "label", (torch.int64,), (batch,))
    is_membership = isinstance(group, Tensor) and group.dtype == torch.bool
    validate.tensor(group, "group", (torch.int64, torch.bool), (batch, "G") if is_membership else (batch,))
    validate.same_device(logits.device, label=label, group=group)
    if out is not None:
        validate.tensor(out, "out", (torch.int64,), ("G", 2))
    if is_membership:
        count = group.shape[1]
    elif out is not None:
        count = out.shape[0]
    elif num_groups is None:
        raise ValueError("num_groups is required if group is int64 and out is not given, got None")
    else:
        count = validate.size(num_groups, "num_groups", 0)
    if out is None:
        out = torch.zeros(count, 2, dtype=torch.int64, device=logits.device)
    validate.output(out, (count, 2), (torch.int64,), logits.device)
    logits = logits.detach()
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    label, group = label.contiguous(), group.contiguous()
    validate.no_overlap(out, logits=logits, label=label, group=group)
    return write(out, backends.implementation("group_counts", backend, logits.device), logits, label, group)
