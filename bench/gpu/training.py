"""Step `training`: steps of ResNet50 and BERT-base in bfloat16, fed in several ways, against one resident batch."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from bench.gpu import data
from bench.gpu.models import Bert, ResNet
from bench.gpu.record import Row, device, dry, emit, short, survived, time_left
from spurmix import ImageSource, MixLoader, TokenSource
from spurmix.ops import functional as F

STEP = "training"
Step = Callable[[], None]


def in_turns(case: str, steps: dict[str, Step], notes: dict[str, str], spare_s: float = 5.0) -> None:
    """Rounds of steps of each way in turns; microseconds a step, and the ratio to the first way's.

    Two rounds at least, more as long as there is time; a way that fails is left out, its rows say why.
    """
    rounds, count, warm = (1, 1, 0) if dry() else (5, 9, 4)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for name in list(steps):
        try:
            for _ in range(warm + 1):
                steps[name]()
        except Exception as error:
            emit(Row(STEP, case, name, error=short(error)))
            del steps[name]
    for n in range(rounds):
        round_began = time.perf_counter()
        for name, step in list(steps.items()):
            try:
                step()
                _wait()
                began = time.perf_counter()
                for _ in range(count):
                    step()
                _wait()
            except Exception as error:
                emit(Row(STEP, case, name, error=short(error)))
                del steps[name]
                continue
            times[name].append((time.perf_counter() - began) / count * 1e6)
        if n > 0 and time_left() < 2 * (time.perf_counter() - round_began) + spare_s:
            break
    base = float(np.median(times[next(iter(steps))]))
    for name in steps:
        low, middle, high = (float(q) for q in np.quantile(times[name], [0.25, 0.5, 0.75]))
        kind = "limit" if name.startswith("synthetic") else "ours" if name.startswith("spurmix") else "peer"
        emit(Row(STEP, case, name, kind, middle, low, high, ratio=middle / base, note=notes.get(name, "")))


def _wait() -> None:
    if not dry():
        torch.cuda.synchronize()


def _update(model: torch.nn.Module) -> Callable[[Callable[[], Tensor]], None]:
    """Forward, backward and SGD step of a loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)

    def update(loss: Callable[[], Tensor]) -> None:
        with torch.autocast(device().type, torch.bfloat16):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


class Stored(Dataset[tuple[Tensor, int]]):
    """Stored images or texts and labels, one by one, as a DataLoader's workers read them."""

    def __init__(self, examples: Tensor, labels: list[int]) -> None:
        self.examples, self.labels = examples, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.examples[i], self.labels[i]


def _workers(batch_bytes: int) -> tuple[int, int]:
    """Workers of a DataLoader, and batches each makes ahead, as far as shared memory has room for them."""
    if dry():
        return 0, 0
    room = shutil.disk_usage("/dev/shm").free // 2 // batch_bytes if os.path.isdir("/dev/shm") else 0
    workers = max(0, min(12, (os.cpu_count() or 2) - 2, room))
    return workers, max(1, min(4, room // max(1, workers)))


def forever(make: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield from make()


def resnet() -> None:
    """Batch 256 of 224 x 224, channels last."""
    side, batch, classes = (32, 4, 2) if dry() else (224, 256, 2)
    pictures = data.Pictures(64 if dry() else 8192, side, batch)
    model = ResNet((1, 1), 8, classes) if dry() else ResNet(classes=classes)
    model = model.to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    update = _update(model)
    fixed = data.lean(pictures.images, *pictures.drawn, torch.bfloat16, True)
    labels, drawn = pictures.labels, pictures.drawn
    ends = labels[drawn.index], labels[drawn.partner]

    def synthetic() -> None:
        update(lambda: F.mixed_cross_entropy(model(fixed), *ends, drawn.lam))

    def loaded(source: ImageSource, dtype: torch.dtype) -> Step:
        loader = MixLoader(
            source, pictures.groups, pictures.policy, batch, steps=10**6, device=device(), dtype=dtype,
            channels_last=True,
        )  # fmt: skip
        batches = iter(loader)

        def step() -> None:
            b = next(batches)
            update(lambda: F.mixed_cross_entropy(model(b.input), b.label, b.partner_label, b.lam))

        return step

    def dense(x: Tensor, own: Tensor, other: Tensor, lam: Tensor) -> Tensor:
        weight = lam[:, None]
        target = weight * nn.one_hot(own, classes) + (1 - weight) * nn.one_hot(other, classes)
        return nn.cross_entropy(model(x).float(), target)

    chances = torch.ones(pictures.stored, device=device())

    def eager() -> None:
        index, partner = torch.multinomial(chances, 2 * batch, replacement=True).view(2, batch)
        lam = torch.rand(batch, device=device())
        x = data.eager(pictures.images, index, partner, lam, torch.bfloat16, True)
        update(lambda: dense(x, labels[index], labels[partner], lam))

    workers, depth = _workers(batch * side * side * 3)
    sampler = WeightedRandomSampler(torch.ones(pictures.stored), 10**7 if not dry() else 40)  # type: ignore[arg-type]
    batches = forever(lambda: DataLoader(
        Stored(pictures.cpu, pictures.groups.labels.tolist()), batch, sampler=sampler, num_workers=workers,
        pin_memory=not dry(), drop_last=True, prefetch_factor=depth if workers else None,
    ))  # fmt: skip
    everyone = torch.arange(batch, device=device())

    def from_workers() -> None:
        images, own = (t.to(device(), non_blocking=True) for t in next(batches))
        lam, partner = torch.rand(batch, device=device()), everyone.roll(1)
        x = data.lean(images, everyone, partner, lam, torch.bfloat16, True)
        update(lambda: dense(x, own, own[partner], lam))

    steps: dict[str, Step] = {"synthetic, one resident batch": synthetic}
    ways: dict[str, Callable[[], ImageSource]] = {
        "spurmix loader, resident": lambda: ImageSource(pictures.images),
        "spurmix loader, pinned": lambda: ImageSource(pictures.cpu).pinned(),
        "spurmix loader, from the host": lambda: ImageSource(pictures.cpu),
        "spurmix loader, gathered": lambda: ImageSource(pictures.cpu),
    }
    for name, source in ways.items():
        if dry() and "pinned" in name:
            continue
        with survived(STEP, "resnet50_256", name):
            # The host's images are gathered for float32, of which they are half the bytes; bfloat16 is mixed there.
            steps[name] = loaded(source(), torch.float32 if "gathered" in name else torch.bfloat16)
    steps |= {"eager mixing, dense targets": eager, "DataLoader, eager mixing": from_workers}
    in_turns("resnet50_256", steps, {"DataLoader, eager mixing": f"{workers} workers, uint8"}, 25.0)


def bert() -> None:
    """Batch 64 of 128 tokens; the word embeddings of two examples are mixed."""
    batch, length, stored, words = (2, 8, 32, 90) if dry() else (64, 128, 20000, 30522)
    model = Bert(1, 64, words, length) if dry() else Bert(words=words)
    model = model.to(device())
    update = _update(model)
    tokens = torch.randint(0, words, (stored, length), device=device())
    pictures = data.Pictures(stored, 1, batch)
    labels, chances = pictures.labels, torch.ones(stored, device=device())
    embedded = model.words.weight.detach()[tokens[:batch]].clone()
    first = pictures.drawn
    ends = labels[first.index], labels[first.partner]

    def synthetic() -> None:
        update(lambda: F.mixed_cross_entropy(model(embedded + model.words.weight[:1]), *ends, first.lam))

    source = TokenSource.from_lists(list(tokens.cpu().numpy()))
    mixed_batches = iter(MixLoader(source, pictures.groups, pictures.policy, batch, steps=10**6, device=device()))

    def loaded() -> None:
        b = next(mixed_batches)
        pairs: Any = b.input

        def loss() -> Tensor:
            mixed = F.mix_embeddings(
                model.words.weight, pairs.ids, pairs.partner_ids, pairs.lam, pairs.mask, pairs.partner_mask
            )
            return F.mixed_cross_entropy(model(mixed), b.label, b.partner_label, b.lam)

        update(loss)

    position = [0]

    def ours() -> None:
        index, partner, lam = F.draw(pictures.tables, seed=0, start=position[0], count=batch)
        position[0] += batch
        own, other = tokens[index], tokens[partner]

        def loss() -> Tensor:
            mixed = F.mix_embeddings(model.words.weight, own, other, lam)
            return F.mixed_cross_entropy(model(mixed), labels[index], labels[partner], lam)

        update(loss)

    def eager() -> None:
        index, partner = torch.multinomial(chances, 2 * batch, replacement=True).view(2, batch)
        dense(tokens[index], tokens[partner], labels[index], labels[partner])

    def dense(own: Tensor, other: Tensor, label: Tensor, partner_label: Tensor) -> None:
        """A step on mixed embeddings and dense targets, without an op of ours."""
        lam = torch.rand(batch, device=device())

        def loss() -> Tensor:
            weight = lam[:, None, None]
            mixed = weight * model.words(own) + (1 - weight) * model.words(other)
            target = lam[:, None] * nn.one_hot(label, 2) + (1 - lam[:, None]) * nn.one_hot(partner_label, 2)
            return nn.cross_entropy(model(mixed).float(), target)

        update(loss)

    workers, depth = _workers(batch * length * 8)
    sampler = WeightedRandomSampler(torch.ones(stored), 10**7 if not dry() else 40)  # type: ignore[arg-type]
    batches = forever(lambda: DataLoader(
        Stored(tokens.cpu(), pictures.groups.labels.tolist()), batch, sampler=sampler, num_workers=min(workers, 4),
        pin_memory=not dry(), drop_last=True, prefetch_factor=depth if workers else None,
    ))  # fmt: skip

    def from_workers() -> None:
        ids, own = (t.to(device(), non_blocking=True) for t in next(batches))
        dense(ids, ids.roll(1, 0), own, own.roll(1))

    steps: dict[str, Step] = {
        "synthetic, one resident batch": synthetic,
        "spurmix loader": loaded,
        "spurmix draw and mix_embeddings": ours,
        "eager mixing, dense targets": eager,
        "DataLoader, eager mixing": from_workers,
    }
    notes = {"synthetic, one resident batch": "embeddings made before; no gradient of the table",
             "spurmix loader": "token pairs packed on the host", "spurmix draw and mix_embeddings": "tokens on the GPU",
             "DataLoader, eager mixing": f"{min(workers, 4)} workers"}  # fmt: skip
    in_turns("bert_64_128", steps, notes)


def main() -> None:
    torch.manual_seed(0)
    if not dry():
        torch.backends.cudnn.benchmark = True
    with survived(STEP, "resnet50_256"):
        resnet()
    with survived(STEP, "bert_64_128"):
        bert()
    F.check(device())


if __name__ == "__main__":
    main()
