"""Valid arguments of every operator, and invalid tensors to replace them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from spurmix import GroupIndex, policies
from spurmix.ops.tables import draw_tables

GROUPS = GroupIndex([0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 1, 0])
TABLES = draw_tables(GROUPS, policies.mixup())
IMAGES = torch.arange(6 * 4 * 5 * 3, dtype=torch.uint8).view(6, 4, 5, 3)
MEAN, STD = torch.zeros(3), torch.ones(3)
INDEX, PARTNER, LAM = torch.tensor([0, 5, 2]), torch.tensor([1, 5, 0]), torch.tensor([0.25, 1.0, 0.5])
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
BOXES = torch.tensor([[[0.5, 1.0, 3.0, 2.5], [0.0, 0.0, 4.0, 5.0]]]).expand(3, 2, 4).contiguous()
TABLE, NORM = torch.randn(6, 4), torch.rand(4)
IDS, MASKS = torch.tensor([[0, 5], [2, 2], [1, 4]]), torch.tensor([[True, True], [True, False], [False, True]])
LOOKUPS = (IDS, IDS.flip(1), LAM, MASKS, None)
UPSTREAM = torch.randn(3, 2, 4)
FLIPS = torch.tensor([[0, 1], [1, 1], [0, 0]], dtype=torch.uint8)


def integers(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def batch_arguments(crop: bool) -> tuple[Any, ...]:
    return (IMAGES, LABELS, TABLES.packed, TABLES.members, MEAN, STD, crop, 0.3, 1.0, 0.75, 4 / 3, True, 7, 100)


SAMPLES: list[tuple[str, tuple[Any, ...]]] = [
    ("draw", (TABLES.packed, TABLES.members, 3, 10, 5)),
    ("draw", (TABLES.packed, TABLES.members, 3, 10, 5, torch.tensor([4]))),
    ("draw_out", (TABLES.packed, TABLES.members, 3, 10, None, integers(5), integers(5), torch.zeros(5), integers(5))),
    ("mix_images", (IMAGES, INDEX, PARTNER, LAM, MEAN, STD, None, None, 4, 5, torch.float32, False)),
    ("mix_images", (IMAGES, INDEX, PARTNER, LAM, MEAN, STD, BOXES, FLIPS, 6, 7, torch.bfloat16, True)),
    ("mix_images_out", (IMAGES, INDEX, PARTNER, LAM, MEAN, STD, BOXES, None, torch.zeros(3, 3, 2, 9))),
    ("mix_image_batch", (*batch_arguments(True), 3, 8, 2, torch.float16, False)),
    ("mix_image_batch_out", (*batch_arguments(False), None, torch.zeros(3, 3, 4, 5), integers(3), integers(3),
                             torch.zeros(3), integers(3), integers(3), integers(3))),
    ("mix_rows", (torch.randn(6, 4, requires_grad=True), INDEX, PARTNER, LAM, torch.float32)),
    ("mix_rows", (torch.randn(6, 4), INDEX, PARTNER, LAM.clone().requires_grad_(), torch.float32)),
    ("mix_rows_out", (torch.randn(6, 4), INDEX, PARTNER, LAM, torch.zeros(3, 4))),
    ("mix_embeddings", (TABLE.clone().requires_grad_(), *LOOKUPS, 2, torch.float32)),
    ("mix_embeddings", (TABLE.bfloat16().requires_grad_(), *LOOKUPS[:3], None, MASKS, -1, torch.float32)),
    ("mix_embeddings_out", (TABLE, *LOOKUPS, torch.zeros(3, 2, 4))),
    ("mix_embeddings_backward", (UPSTREAM.clone().requires_grad_(), *LOOKUPS, 2, 6, torch.float32)),
    ("mix_embeddings_backward_out", (UPSTREAM, *LOOKUPS, -1, torch.zeros(6, 4))),
    ("mix_embeddings_backward_rows", (UPSTREAM, *LOOKUPS, -1, 6, torch.float16)),
    ("mix_bert_embeddings", (*(t.clone().requires_grad_() for t in (TABLE, TABLE, TABLE, NORM, NORM)), *LOOKUPS,
                             IDS, IDS, 1e-12, 0, torch.float32)),
    ("mix_bert_embeddings", (TABLE, TABLE, None, NORM, NORM, *LOOKUPS, IDS, None, 1e-5, -1, torch.bfloat16)),
    ("mix_bert_embeddings_backward", (UPSTREAM, TABLE, TABLE, TABLE, NORM, *LOOKUPS, IDS, None, torch.zeros(3, 2),
                                      torch.ones(3, 2))),
    ("mix_labels", (INDEX, PARTNER, LAM, 6, torch.float32)),
    ("mix_labels_out", (INDEX, PARTNER, LAM, torch.zeros(3, 6))),
    ("mixed_cross_entropy", (torch.randn(3, 6, requires_grad=True), INDEX, PARTNER, LAM, 1, 0.1)),
    ("mixed_cross_entropy", (torch.randn(3, 6, requires_grad=True), INDEX, PARTNER, LAM, 0, 0.0)),
    ("mixed_cross_entropy_with_grad", (torch.randn(3, 6), INDEX, PARTNER, LAM, 1, 0.1)),
    ("mixed_cross_entropy_with_grad", (torch.randn(3, 6), INDEX, PARTNER, LAM, 0, 0.0)),
    ("mixed_cross_entropy_backward", (torch.tensor(1.0), torch.randn(3, 6), torch.zeros(3), INDEX, PARTNER, LAM, 1, 0.0)),
    ("group_counts", (torch.randn(3, 6), INDEX, torch.tensor([0, -1, 1]), torch.zeros(2, 2, dtype=torch.int64))),
]  # fmt: skip


NAMES = [f"{k}-{name}" for k, (name, _) in enumerate(SAMPLES)]
"""Names of the samples, as ids of parametrized tests."""


def damages(value: torch.Tensor) -> Iterator[torch.Tensor]:
    """Invalid variants of a tensor: one element shorter in a dimension, not contiguous, another rank or dtype."""
    value = value.detach()
    for dim in range(value.dim()):
        yield value.narrow(dim, 0, value.shape[dim] - 1).clone()
    yield torch.stack([value, value], -1)[..., 0]
    yield value[None].clone()
    yield value.to(torch.float64 if value.dtype != torch.float64 else torch.float32)
    yield value.to(torch.int16)


def call_with_wrong_tensors(kernel: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Replace each tensor by each invalid variant. The kernel must raise an error or do no harm."""
    for place, value in enumerate(arguments):
        for damaged in damages(value) if isinstance(value, torch.Tensor) else ():
            given = [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in arguments]
            given[place] = damaged
            with contextlib.suppress(ValueError, IndexError, RuntimeError):
                kernel(*given)
