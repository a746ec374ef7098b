"""Values that CUDA kernels report without waiting for the device: weights, boxes, and the normalization of images."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from comparison import calls_with_weights, invalid_weights

from spurmix import GroupIndex, MixPolicy
from spurmix.ops import device_errors
from spurmix.ops import functional as F
from spurmix.ops.tables import draw_tables


def test_weights_outside_0_and_1_are_reported(cuda: ModuleType) -> None:
    for call, lam in itertools.product(calls_with_weights("cuda"), invalid_weights()):
        out = call(lam).flatten(1) if call(torch.ones(2)).dim() > 1 else call(lam)[:, None]
        assert out[0].isfinite().all() and out[1].isnan().all()
        assert cuda.take_flag(0) == device_errors.BAD_VALUE
    with pytest.raises(ValueError, match=r"lam outside \[0, 1\]"):
        device_errors.raise_errors(device_errors.BAD_VALUE)


def test_gradients_report_weights_outside_0_and_1(cuda: ModuleType, built: Any) -> None:
    index, logits, ids = torch.tensor([0, 1]), torch.zeros(2, 3), torch.tensor([[0], [1]])
    for lam in invalid_weights():
        grad = built[1]["mixed_cross_entropy_backward"](torch.ones(2), logits, torch.ones(2), index, index, lam, 0, 0.0)
        assert grad[0].isfinite().all() and grad[1].isnan().all()
        assert cuda.take_flag(0) == device_errors.BAD_VALUE
        rows = built[1]["mix_embeddings_backward"](torch.ones(2, 1, 3), ids, ids, lam, None, None, -1, 3, torch.float32)
        assert rows[0].eq(1).all() and rows[1:].eq(0).all() and cuda.take_flag(0) == device_errors.BAD_VALUE


@pytest.mark.parametrize("side", [8, 7])
def test_boxes_with_nan_are_reported(cuda: ModuleType, side: int) -> None:
    store, index = torch.zeros(4, side, side, 3, dtype=torch.uint8), torch.tensor([0, 1])
    for field, at in itertools.product(range(4), range(2)):
        boxes = torch.full((2, 2, 4), 3.0)
        boxes[1, at, field] = torch.nan
        out = F.mix_images(store, index, index, torch.ones(2), boxes=boxes, backend="cuda")
        assert out[0].isfinite().all() and out[1].isnan().all()
        assert cuda.take_flag(0) == device_errors.BAD_VALUE
    for value in (2.0**30, -(2.0**30), torch.inf, -torch.inf):  # outside of the image: the edge is repeated
        boxes = torch.full((2, 2, 4), value)
        assert F.mix_images(store, index, index, torch.ones(2), boxes=boxes, backend="cuda").isfinite().all()


def test_invalid_normalization_is_reported(cuda: ModuleType, built: Any) -> None:
    tables, labels = draw_tables(GroupIndex([0, 1]), MixPolicy()), torch.zeros(2, dtype=torch.int64)
    index = torch.tensor([0, 1])
    for channels, value in itertools.product((1, 3), (torch.nan, torch.inf, -0.1, 123.0)):
        store = torch.zeros(2, 4, 4, channels, dtype=torch.uint8)
        for name in ("mean", "std"):
            norm = {"mean": torch.zeros(channels), "std": torch.ones(channels)}
            norm[name][-1] = value
            F.mix_images(store, index, index, torch.ones(2), **norm, backend="cuda")
            assert cuda.take_flag(0) == device_errors.BAD_VALUE
            built[1]["mix_image_batch"](
                store, labels, tables.packed, tables.members, norm["mean"], norm["std"], False, 0.1, 1.0, 0.7, 1.3, False,
                0, 0, 4, 4, 4, torch.float32, False,
            )  # fmt: skip
            assert cuda.take_flag(0) == device_errors.BAD_VALUE
    limits = {"mean": torch.tensor([0.0, 1.0, 0.5]), "std": torch.tensor([0.001, 2.0, 1.0])}
    F.mix_images(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), index, index, torch.ones(2), **limits, backend="cuda")
