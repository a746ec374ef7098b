"""torch.compile, whole, of the public calls while the batch size changes: one graph for all sizes, the values of eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spurmix import GroupIndex, policies
from spurmix.ops import functional as F

IMAGES = torch.arange(9 * 4 * 5 * 3, dtype=torch.uint8).view(9, 4, 5, 3)
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
TABLES = F.draw_tables(GroupIndex(LABELS, LABELS.flip(0)), policies.mixup())
ROWS, LOGITS, LAM = torch.randn(9, 6), torch.randn(40, 5), torch.rand(40)
INDEX, PARTNER, CLASS, GROUP = (torch.randint(0, n, (40,)) for n in (9, 9, 5, 3))
BOXES, FLIPS = torch.tensor([0.5, 1.0, 2.5, 3.0]).expand(40, 2, 4), torch.randint(0, 2, (40, 2), dtype=torch.uint8)
TABLE, POSITIONS, NORM = torch.randn(30, 8), torch.randn(12, 8), torch.rand(8)
IDS, MASK = torch.randint(0, 30, (40, 7)), torch.rand(40, 7) < 0.7

CALLS: dict[str, Callable[[int], Any]] = {
    "draw": lambda n: F.draw(TABLES, seed=3, start=n, count=n),
    "mix_images": lambda n: F.mix_images(IMAGES, INDEX[:n], PARTNER[:n], LAM[:n], mean=(0.5, 0.4, 0.3), std=0.5),
    "crops": lambda n: F.mix_images(IMAGES, INDEX[:n], PARTNER[:n], LAM[:n], boxes=BOXES[:n], flips=FLIPS[:n], size=(3, 2)),
    "mix_image_batch": lambda n: F.mix_image_batch(IMAGES, LABELS, TABLES, seed=3, start=0, count=n),
    "mix_rows": lambda n: F.mix_rows(ROWS, INDEX[:n], PARTNER[:n], LAM[:n]),
    "mix_labels": lambda n: F.mix_labels(CLASS[:n], CLASS[-n:], LAM[:n], 5),
    "classes": lambda n: F.mix_labels(CLASS[:20], CLASS[20:], LAM[:20], n + 5),
    "loss": lambda n: F.mixed_cross_entropy(LOGITS[:n], CLASS[:n], CLASS[-n:], LAM[:n], label_smoothing=0.1),
    "alone": lambda n: F.mixed_cross_entropy(LOGITS[:n], CLASS[:n], reduction="none"),
    "group_counts": lambda n: F.group_counts(LOGITS[:n], CLASS[:n], GROUP[:n], 3),
    "cells": lambda n: F.group_counts(LOGITS[:n], CLASS[:n], GROUP[:n, None] == torch.arange(3)),
    "mix_embeddings": lambda n: F.mix_embeddings(TABLE, IDS[:n], IDS[-n:], LAM[:n], MASK[:n], MASK[-n:], padding_idx=0),
    "mix_bert_embeddings": lambda n: F.mix_bert_embeddings(
        TABLE, POSITIONS, None, NORM, NORM, IDS[:n], IDS[-n:], LAM[:n], MASK[:n]
    ),
}  # fmt: skip


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, check_stride=True)


@pytest.mark.parametrize("name", CALLS)
def test_one_graph_serves_all_batch_sizes(name: str) -> None:
    torch._dynamo.reset()
    call = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (24, 7, 31):
            same(compiled(size), call(size))


@pytest.mark.parametrize("name", ["mix_rows", "loss", "mix_embeddings", "mix_bert_embeddings"])
def test_gradients_too_and_sizes_that_were_not_announced(name: str) -> None:
    """The size of a tensor changes, as that of an epoch's last batch: the second size makes the graph a general one."""
    torch._dynamo.reset()
    wrt = {"mix_rows": ROWS, "loss": LOGITS}.get(name, TABLE)

    def call(lam: Tensor, leaf: Tensor) -> Tensor:
        n = lam.shape[0]
        if name == "mix_rows":
            made = F.mix_rows(leaf, INDEX[:n], PARTNER[:n], lam)
        elif name == "loss":
            made = F.mixed_cross_entropy(leaf[:n], CLASS[:n], CLASS[-n:], lam)
        elif name == "mix_embeddings":
            made = F.mix_embeddings(leaf, IDS[:n], IDS[-n:], lam, MASK[:n])
        else:
            made = F.mix_bert_embeddings(leaf, POSITIONS, None, NORM, NORM, IDS[:n], IDS[-n:], lam, MASK[:n])
        return (made * made).sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for size in (24, 7, 31, 12):
        gradients = []
        for function in (compiled, call):
            leaf = wrt.clone().requires_grad_()
            function(LAM[:size], leaf).backward()
            gradients.append(leaf.grad)
        same(*gradients)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_a_wrong_shape_is_told_while_compiling() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda lam: F.mix_rows(ROWS, INDEX[:4], PARTNER[:4], lam), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match="lam must have shape"):
        compiled(LAM[:3])
