"""Inputs of the GPU cases, and the same work written in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu.record import device
from spurmix import GroupIndex, MixPolicy, Uniform, policies
from spurmix.ops import functional
from spurmix.ops.tables import DrawTables

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@cache
def constants() -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation on the device, float32 `[3]` each."""
    return torch.tensor(MEAN, device=device()), torch.tensor(STD, device=device())


@dataclass
class Pictures:
    """Random images of two classes and two attributes, and a mixing policy that does not need SciPy.

    Attributes:
        stored: Number of images.
        side: Height and width in pixels.
        batch: Batch size.
    """

    stored: int
    side: int
    batch: int

    @cached_property
    def cpu(self) -> Tensor:
        """Copy of the images in host memory."""
        return self.images.cpu()

    @cached_property
    def images(self) -> Tensor:
        """Images, uint8 `[stored, side, side, 3]`. A GPU generates a gigabyte of random bytes faster than a CPU."""
        return torch.randint(0, 256, (self.stored, self.side, self.side, 3), dtype=torch.uint8, device=device())

    @cached_property
    def groups(self) -> GroupIndex:
        """Random groups of the images."""
        rng = np.random.default_rng(0)
        return GroupIndex(rng.integers(0, 2, self.stored), rng.integers(0, 2, self.stored))

    @cached_property
    def policy(self) -> MixPolicy:
        """Policy of all cases."""
        return policies.balance_attributes(lam=Uniform(0.0, 0.5))

    @cached_property
    def labels(self) -> Tensor:
        """Labels on the device, int64 `[stored]`."""
        return torch.from_numpy(self.groups.labels.astype(np.int64)).to(device())

    @cached_property
    def tables(self) -> DrawTables:
        """Draw tables on the device."""
        return functional.draw_tables(self.groups, self.policy).to(device())

    @cached_property
    def drawn(self) -> functional.Draw:
        """Samples of batch 0."""
        return functional.draw(self.tables, seed=0, start=0, count=self.batch, backend="reference")

    def out(self, side: int, dtype: torch.dtype, last: bool) -> list[Tensor]:
        """Return output buffers of `mix_image_batch_out`."""
        layout = torch.channels_last if last else torch.contiguous_format
        shape = (self.batch, 3, side, side)
        kinds = (torch.int64, torch.int64, torch.float32, torch.int64, torch.int64, torch.int64)
        first = torch.empty(shape, dtype=dtype, device=device(), memory_format=layout)
        return [first, *(torch.empty(self.batch, dtype=kind, device=device()) for kind in kinds)]

    def fixed(self, augment: functional.Augment | None) -> tuple[Any, ...]:
        """Return the arguments of `mix_image_batch_out` before `start`."""
        crop, flip = (augment.crop, augment.flip) if augment else (False, False)
        scale, ratio = (augment.scale, augment.ratio) if augment else ((0.08, 1.0), (0.75, 4 / 3))
        return (
            self.images, self.labels, self.tables.packed, self.tables.members, *constants(), crop, *scale, *ratio, flip, 0
        )  # fmt: skip


def eager(images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype, last: bool) -> Tensor:
    """Mix and normalize images in plain PyTorch, by the equivalent code in the documentation of `mix_images`."""
    mean, std = constants()
    weight = lam[:, None, None, None]
    mixed = weight * images[index] + (1 - weight) * images[partner]
    normalized = ((mixed / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)
    return normalized.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def lean(images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype, last: bool) -> Tensor:
    """Mix and normalize images in PyTorch code optimized by hand: few passes, with lerp, multiply and add in place."""
    mean, std = constants()
    mixed = images[partner].float().lerp_(images[index].float(), lam[:, None, None, None])
    normalized = mixed.mul_(1 / (255 * std)).add_(-mean / std).permute(0, 3, 1, 2).to(dtype)
    return normalized.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def compilable(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, mean: Tensor, std: Tensor, out: Tensor
) -> Tensor:
    """Mix and normalize images `[N, h, w, 3]` into `out` `[B, 3, h, w]`. torch.compile fuses this code into one pass."""
    weight = lam[:, None, None, None]
    mixed = weight * images[index].float() + (1 - weight) * images[partner].float()
    return out.copy_((mixed * (1 / (255 * std)) - mean / std).permute(0, 3, 1, 2))


def compilable_planes(
    planes: Tensor, index: Tensor, partner: Tensor, lam: Tensor, mean: Tensor, std: Tensor, out: Tensor
) -> Tensor:
    """Do the same as `compilable` for images stored as planes `[N, 3, h, w]`."""
    weight = lam[:, None, None, None]
    mixed = weight * planes[index].float() + (1 - weight) * planes[partner].float()
    return out.copy_(mixed * (1 / (255 * std))[:, None, None] - (mean / std)[:, None, None])


def sampled_crops(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, boxes: Tensor, flips: Tensor, mean: Tensor, std: Tensor,
    out: Tensor,
) -> Tensor:  # fmt: skip
    """Crop, flip and mix images by gathers that torch.compile can fuse. boxes `[B, 2, 4]`, flips `[B, 2]`."""
    height, width = images.shape[1:3]
    rows, columns = out.shape[2:]
    steps_y, steps_x = torch.arange(rows, device=out.device), torch.arange(columns, device=out.device)

    def one(n: Tensor, s: int) -> Tensor:
        top, left, tall, wide = boxes[:, s].unbind(1)
        along = torch.where(flips[:, s, None] > 0, columns - 1 - steps_x, steps_x)
        ys = (top[:, None] + (steps_y + 0.5) * (tall[:, None] / rows) - 0.5).clamp(0, height - 1)
        xs = (left[:, None] + (along + 0.5) * (wide[:, None] / columns) - 0.5).clamp(0, width - 1)
        y, x = ys.long().clamp(max=height - 2)[:, :, None], xs.long().clamp(max=width - 2)[:, None, :]
        fy, fx = (ys[:, :, None] - y)[..., None], (xs[:, None, :] - x)[..., None]
        of = n[:, None, None]
        p, q, r, t = (images[of, y + i, x + j].float() for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
        upper, lower = p + (q - p) * fx, r + (t - r) * fx
        return upper + (lower - upper) * fy

    weight = lam[:, None, None, None]
    mixed = weight * one(index, 0) + (1 - weight) * one(partner, 1)
    return out.copy_((mixed * (1 / (255 * std)) - mean / std).permute(0, 3, 1, 2))
