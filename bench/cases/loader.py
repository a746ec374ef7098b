"""The loader including Python, compared with its operator alone and with DataLoader."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from bench.cases.images import BIAS, MEAN, SCALE, STD
from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import GroupIndex, ImageSource, MixLoader, functional, policies
from spurmix.data.loader.buffers import batch_buffers

BATCH, STORE, BATCHES = 256, 2048, 24


class _ImageItems(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i], self.labels[i]


class _NormalizedItems(_ImageItems):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.images[i].float() * SCALE[:, None, None] + BIAS[:, None, None]
        return image, self.labels[i]


def _mixed(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself, rotated by one, as other libraries do."""
    lam = float(torch.rand(()))
    hot = torch.nn.functional.one_hot(labels, classes).float()
    return images.mul(lam).add_(images.roll(1, 0), alpha=1 - lam), hot.mul(lam).add_(hot.roll(1, 0), alpha=1 - lam)


def _case(dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (STORE, 224, 224, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (STORE,), generator=generator)
    attributes = torch.randint(0, 2, (STORE,), generator=generator)
    groups, policy = GroupIndex(labels.numpy(), attributes.numpy()), policies.balance_attributes()
    source = ImageSource(images, mean=MEAN, std=STD)
    loader = MixLoader(source, groups, policy, BATCH, steps=10**6, dtype=dtype)
    stream: list[Iterator[Any]] = []
    tables = functional.draw_tables(groups, policy)
    ring = [batch_buffers(BATCH, (3, 224, 224), dtype, False, True).tensors() for _ in range(5)]
    position = [0]

    def ours() -> None:
        if not stream:
            stream.append(iter(loader))
        for _ in range(BATCHES):
            next(stream[0])

    def op() -> None:
        for _ in range(BATCHES):
            functional.mix_image_batch(
                images, labels, tables, seed=0, start=position[0] * BATCH, count=BATCH, mean=MEAN, std=STD,
                out=ring[position[0] % 5],
            )  # fmt: skip
            position[0] += 1

    contenders = [Contender("spurmix MixLoader", ours, "ours"), Contender("spurmix, operator alone", op, "variant")]
    planar = images.permute(0, 3, 1, 2).contiguous().share_memory_()

    alternatives = [
        ("DataLoader, 2 workers, uint8, mix in main", _ImageItems(planar, labels.tolist()), True),
        ("DataLoader, 2 workers, normalized items, mix in main", _NormalizedItems(planar, labels.tolist()), False),
    ]
    contenders += [_data_loader(*alternative) for alternative in alternatives]
    return Case(contenders, items=BATCH * BATCHES, repeats=7)


def _data_loader(name: str, data: Dataset[Any], normalize: bool) -> Contender:
    """Return a contender that runs epochs of 8 batches on one DataLoader with persistent workers."""
    count = 8
    sampler = WeightedRandomSampler([1.0] * STORE, BATCH * count)
    batches = DataLoader(data, BATCH, sampler=sampler, num_workers=2, persistent_workers=True)

    def run() -> None:
        for x, y in batches:
            _mixed(x.float().mul_(SCALE[:, None, None]).add_(BIAS[:, None, None]) if normalize else x, y, 2)

    def seconds() -> float:
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * BATCHES / count

    return Contender(name, run, note=f"measured on {count} batches", seconds=seconds)


@case("loader_256")
def loader_256(context: Context) -> Case:
    """24 batches of 256 images, float32: loader, operator alone, DataLoader."""
    return _case(torch.float32)
