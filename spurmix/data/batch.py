"""Batch: one mixed batch, as the loader yields it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """A mixed batch: ``input = lam * x[index] + (1 - lam) * x[partner]``.

    Attributes:
        input: `[B, C, h, w]` images or `[B, D]` features.
        label, partner_label: classes of index and partner, int64 `[B]`; equal where the policy keeps labels.
        lam: float32 `[B]`, weight of index.
        index, partner: example numbers, int64 `[B]`.
        group: group of index, int64 `[B]`.
    """

    input: Tensor
    label: Tensor
    partner_label: Tensor
    lam: Tensor
    index: Tensor
    partner: Tensor
    group: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """The seven tensors, in the order of the fields."""
        return self.input, self.label, self.partner_label, self.lam, self.index, self.partner, self.group

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on `device`."""
        return Batch(*(t.to(device, non_blocking=non_blocking) for t in self.tensors()))

    def handles(self) -> Batch:
        """Other tensors on the same memory: what a consumer asks of them (`requires_grad_`, `.grad`) stays with them."""
        return Batch(*(t.detach() for t in self.tensors()))

    def clone(self) -> Batch:
        """A copy in memory of its own, which the loader will not reuse."""
        return Batch(*(t.clone() for t in self.tensors()))
