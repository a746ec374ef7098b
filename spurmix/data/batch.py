"""Batch, the mixed batch that the loader yields, and Tokens and TokenPairs, the inputs of text models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spurmix.core.deprecation import renamed_attribute


@dataclass(frozen=True, slots=True)
class Tokens:
    """Unmixed texts, padded to the same length: the input of evaluation and of exported models.

    Attributes:
        ids: Token ids, int64 `[B, S]`. The padding id where `mask` is False.
        mask: Attention mask, bool `[B, S]`. True at tokens.
        padding_side: Side on which texts are padded, "right" or "left".

    Example:
        >>> tokens = source.gather(torch.arange(8))  # doctest: +SKIP
        >>> logits = model(input_ids=tokens.ids, attention_mask=tokens.mask).logits  # doctest: +SKIP
    """

    ids: Tensor
    mask: Tensor
    padding_side: str = "right"

    def __len__(self) -> int:
        return self.ids.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors in the order of the fields."""
        return self.ids, self.mask

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Tokens:
        """Copy to `device`."""
        ids, mask = (t.to(device, non_blocking=non_blocking) for t in self.tensors())
        return Tokens(ids, mask, self.padding_side)

    def clone(self) -> Tokens:
        """Copy to new memory."""
        return Tokens(self.ids.clone(), self.mask.clone(), self.padding_side)


@dataclass(frozen=True, slots=True)
class TokenPairs:
    """Pairs of texts. The model mixes their embeddings E: `lam * E[ids] + (1 - lam) * E[partner_ids]`.

    Attributes:
        ids: Token ids of index, int64 `[B, S]`.
        partner_ids: Token ids of partner, int64 `[B, S]`, padded to the same length.
        mask: Attention mask of `ids`, bool `[B, S]`. True at tokens.
        partner_mask: Attention mask of `partner_ids`, bool `[B, S]`.
        lam: Weight of `ids`, float32 `[B]`, in [0, 1]. The same tensor as the `lam` of the batch.
        padding_side: Side on which both texts are padded, "right" or "left".

    Example:
        >>> pairs = next(iter(loader)).input  # doctest: +SKIP
        >>> embeddings = functional.mix_embeddings(weight, pairs.ids, pairs.partner_ids, pairs.lam)  # doctest: +SKIP
    """

    ids: Tensor
    partner_ids: Tensor
    mask: Tensor
    partner_mask: Tensor
    lam: Tensor
    padding_side: str = "right"

    @property
    def union_mask(self) -> Tensor:
        """Attention mask of the mixed input, bool `[B, S]`. True where either text has a token."""
        return self.mask | self.partner_mask

    def __len__(self) -> int:
        return self.ids.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors in the order of the fields."""
        return self.ids, self.partner_ids, self.mask, self.partner_mask, self.lam

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenPairs:
        """Copy to `device`."""
        ids, partner_ids, mask, partner_mask, lam = (t.to(device, non_blocking=non_blocking) for t in self.tensors())
        return TokenPairs(ids, partner_ids, mask, partner_mask, lam, self.padding_side)

    def clone(self) -> TokenPairs:
        """Copy to new memory."""
        ids, partner_ids, mask, partner_mask, lam = (t.clone() for t in self.tensors())
        return TokenPairs(ids, partner_ids, mask, partner_mask, lam, self.padding_side)


@dataclass(frozen=True, slots=True)
class Batch:
    """A mixed batch: ``input = lam * x[index] + (1 - lam) * x[partner]``.

    For texts, `input` contains the pairs of texts, and the model mixes their embeddings.

    Attributes:
        input: `[B, C, h, w]` images, `[B, D]` features, or `TokenPairs`.
        label: Class of index, int64 `[B]`.
        partner_label: Class of partner, int64 `[B]`. Equal to `label` if the policy keeps labels.
        lam: Weight of index, float32 `[B]`, in [0, 1].
        index: Number of the first example of each sample, int64 `[B]`, in [0, N).
        partner: Number of the second example of each sample, int64 `[B]`, in [0, N).
        group: Group of index, int64 `[B]`.

    Example:
        >>> for batch in loader:  # doctest: +SKIP
        ...     loss = functional.mixed_cross_entropy(
        ...         model(batch.input), batch.label, batch.partner_label, batch.lam
        ...     )
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
        """Return all tensors, each once: those of the input, then the six others, in the order of the fields."""
        values = (self.input,) if isinstance(self.input, Tensor) else self.input.tensors()[:4]
        return *values, self.label, self.partner_label, self.lam, self.index, self.partner, self.group

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `change` to every tensor and return the results as a batch. Token pairs share its `lam`."""
        changed = tuple(map(change, self.tensors()))
        label, partner_label, lam, index, partner, group = changed[-6:]
        if isinstance(self.input, Tensor):
            return Batch(changed[0], label, partner_label, lam, index, partner, group)
        ids, partner_ids, mask, partner_mask = changed[:-6]
        pairs = TokenPairs(ids, partner_ids, mask, partner_mask, lam, self.input.padding_side)
        return Batch(pairs, label, partner_label, lam, index, partner, group)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy the batch to `device`."""
        return self.each(lambda t: t.to(device, non_blocking=non_blocking))

    def detached(self) -> Batch:
        """Return new tensors on the same memory. `requires_grad_` and `.grad` then do not affect the buffers."""
        return self.each(Tensor.detach)

    handles = renamed_attribute("detached")

    def clone(self) -> Batch:
        """Copy the batch to new memory, which the loader does not reuse."""
        return self.each(Tensor.clone)
