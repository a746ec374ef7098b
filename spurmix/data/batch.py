"""Batch: one mixed batch, as the loader yields it; Tokens and TokenPairs: what text models take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts as they are, padded together: what evaluation and exported models read.

    Attributes:
        ids: token numbers, int64 `[B, S]`, the padding token where mask is False.
        mask: bool `[B, S]`, True at tokens.
    """

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors, in the order of the fields."""
        return self.ids, self.mask

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Tokens:
        """The same on `device`."""
        return Tokens(*(t.to(device, non_blocking=non_blocking) for t in self.tensors()))

    def clone(self) -> Tokens:
        """A copy in memory of its own."""
        return Tokens(*(t.clone() for t in self.tensors()))


@dataclass(frozen=True, slots=True)
class TokenPairs:
    """Pairs of texts whose embeddings E are to be mixed: `lam * E[ids] + (1 - lam) * E[partner_ids]`.

    Attributes:
        ids, partner_ids: token numbers of index and partner, int64 `[B, S]`, padded together.
        mask, partner_mask: bool `[B, S]`, True at tokens.
        lam: float32 `[B]`, weight of ids; in a batch the same tensor as the batch's.
    """

    ids: Tensor
    partner_ids: Tensor
    mask: Tensor
    partner_mask: Tensor
    lam: Tensor

    @property
    def union_mask(self) -> Tensor:
        """bool `[B, S]`: positions where either text has a token, the attention mask of the mixed input."""
        return self.mask | self.partner_mask

    def __len__(self) -> int:
        return self.ids.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors, in the order of the fields."""
        return self.ids, self.partner_ids, self.mask, self.partner_mask, self.lam

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenPairs:
        """The same on `device`."""
        return TokenPairs(*(t.to(device, non_blocking=non_blocking) for t in self.tensors()))

    def clone(self) -> TokenPairs:
        """A copy in memory of its own."""
        return TokenPairs(*(t.clone() for t in self.tensors()))


@dataclass(frozen=True, slots=True)
class Batch:
    """A mixed batch: ``input = lam * x[index] + (1 - lam) * x[partner]``; of texts, the pairs that a model mixes itself.

    Attributes:
        input: `[B, C, h, w]` images, `[B, D]` features, or `TokenPairs`.
        label, partner_label: classes of index and partner, int64 `[B]`; equal where the policy keeps labels.
        lam: float32 `[B]`, weight of index.
        index, partner: example numbers, int64 `[B]`.
        group: group of index, int64 `[B]`.
    """

    input: Tensor | TokenPairs
    label: Tensor
    partner_label: Tensor
    lam: Tensor
    index: Tensor
    partner: Tensor
    group: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, each once, in the order of the fields: those of the input, then the six others."""
        own = (self.input,) if isinstance(self.input, Tensor) else self.input.tensors()[:4]
        return *own, self.label, self.partner_label, self.lam, self.index, self.partner, self.group

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """A batch of what `change` makes of every tensor; the pairs share its lam."""
        changed = tuple(map(change, self.tensors()))
        label, partner_label, lam, index, partner, group = changed[-6:]
        if isinstance(self.input, Tensor):
            return Batch(changed[0], label, partner_label, lam, index, partner, group)
        ids, partner_ids, mask, partner_mask = changed[:-6]
        pairs = TokenPairs(ids, partner_ids, mask, partner_mask, lam)
        return Batch(pairs, label, partner_label, lam, index, partner, group)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on `device`."""
        return self.each(lambda t: t.to(device, non_blocking=non_blocking))

    def detached(self) -> Batch:
        """Other tensors on the same memory: what a consumer asks of them (`requires_grad_`, `.grad`) stays with them."""
        return self.each(Tensor.detach)

    def clone(self) -> Batch:
        """A copy in memory of its own, which the loader will not reuse."""
        return self.each(Tensor.clone)
