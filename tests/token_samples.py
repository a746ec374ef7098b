"""Texts as token ids, a source and a loader of them, and their expected rows in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spurmix import GroupIndex, MixLoader, TokenSource, policies

RNG = np.random.default_rng(8)
CLS, SEP, PAD, VOCAB = 2, 3, 0, 50
N = 90
TEXTS = [[CLS, *RNG.integers(4, VOCAB, RNG.integers(0, 30)).tolist(), SEP] for _ in range(N)]
LABELS, ATTRIBUTES = RNG.integers(0, 3, N), RNG.integers(0, 2, N)
GROUPS = GroupIndex(LABELS, ATTRIBUTES)


def source(**options: Any) -> TokenSource:
    """A source of TEXTS."""
    return TokenSource.from_lists(TEXTS, **dict(vocab_size=VOCAB, sep_id=SEP) | options)


def loader(texts: TokenSource | None = None, batch: int = 12, **options: Any) -> MixLoader:
    """A loader of 10 batches of 12 pairs."""
    arguments: dict[str, Any] = dict(steps=10, seed=4)
    policy = options.pop("policy", policies.mixup())
    return MixLoader(texts if texts is not None else source(), GROUPS, policy, batch, **arguments | options)


def truncated(row: list[int], limit: int | None) -> list[int]:
    """A row after truncation to `limit` tokens, in plain Python."""
    if limit is None or len(row) <= limit:
        return row
    return [*row[: limit - 1], SEP] if row[-1] == SEP else row[:limit]


def check_rows(ids: torch.Tensor, mask: torch.Tensor, rows: list[list[int]], pad: int = PAD) -> None:
    """Check that ids and mask are `rows`, padded."""
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    for got, marks, row in zip(ids.tolist(), mask.tolist(), rows, strict=True):
        assert got == row + [pad] * (len(got) - len(row))
        assert marks == [True] * len(row) + [False] * (len(got) - len(row))
