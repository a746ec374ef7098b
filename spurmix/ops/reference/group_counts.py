"""Reference of group_counts."""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.ops.reference.checks import check_index


def group_counts(logits: Tensor, label: Tensor, group: Tensor, counts: Tensor) -> None:
    """Add the correct and total predictions of each group to `counts`, int64 `[G, 2]`.

    `group` is int64 `[B]`, in which -1 is not counted, or bool `[B, G]`.
    """
    correct = (logits.argmax(dim=1) == label).to(torch.int64)
    both = torch.stack([correct, torch.ones_like(correct)], dim=1)
    if group.dtype == torch.bool:
        counts += group.to(torch.int64).T @ both
        return
    check_index(group + 1, counts.shape[0] + 1, "group + 1")
    counted = group >= 0
    counts.index_add_(0, group[counted], both[counted])
