"""The loader end to end, Python included, against the rate of its op and against DataLoader routes."""

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


class _Bytes(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i], self.labels[i]


class _Normalised(_Bytes):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.images[i].float() * SCALE[:, None, None] + BIAS[:, None, None]
        return image, self.labels[i]


def _mixed(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mixup with the batch turned by one, as the libraries do it."""
    lam = float(torch.rand(()))
    hot = torch.nn.functional.one_hot(labels, classes).float()
    return images.mul(lam).add_(images.roll(1, 0), alpha=1 - lam), hot.mul(lam).add_(hot.roll(1, 0), alpha=1 - lam)


def _case(context: Context, dtype: torch.dtype) -> Case:
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

    contenders = [Contender("spurmix MixLoader", ours, "ours"), Contender("spurmix, its op alone", op, "own")]
    planar = images.permute(0, 3, 1, 2).contiguous().share_memory_()

    routes = [
        ("DataLoader, 2 workers, uint8, mix in main", _Bytes(planar, labels.tolist()), True),
        ("DataLoader, 2 workers, normalised items, mix in main", _Normalised(planar, labels.tolist()), False),
    ]
    contenders += [_route(*r) for r in routes]
    return Case(contenders, items=BATCH * BATCHES, repeats=7)


def _route(name: str, data: Dataset[Any], normalise: bool) -> Contender:
    """Epochs of 8 batches through one DataLoader with persistent workers, timed from the first batch asked for."""
    count = 8
    sampler = WeightedRandomSampler(torch.ones(STORE), BATCH * count)  # type: ignore[arg-type]
    batches = DataLoader(data, BATCH, sampler=sampler, num_workers=2, persistent_workers=True)

    def run() -> None:
        for x, y in batches:
            _mixed(x.float().mul_(SCALE[:, None, None]).add_(BIAS[:, None, None]) if normalise else x, y, 2)

    def seconds() -> float:
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * BATCHES / count

    return Contender(name, run, note=f"timed on {count} batches", seconds=seconds)


@case("loader_256")
def loader_256(context: Context) -> Case:
    """24 batches of 256 images, float32: loader, its op, DataLoader routes."""
    return _case(context, torch.float32)
