"""Timing of training steps in turns, and parts that the steps of all models share."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from bench.gpu.record import device, dry, emit, short, time_left, wait
from bench.row import Row

STEP = "training"
Step = Callable[[], None]
Update = Callable[[Callable[[], Tensor]], None]


def _seconds(step: Step, count: int) -> float:
    """Return the mean seconds of a step, after one step that is not measured."""
    step()
    wait()
    began = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return (time.perf_counter() - began) / max(1, count)


def in_turns(case: str, steps: dict[str, Step], notes: dict[str, str], spare_s: float = 5.0) -> None:
    """Measure training steps in turns and emit a row for each. Ratios refer to the first one.

    There are at least two rounds, and more while time is left. A step that raises an error gets a row with the error
    and is not repeated.

    Args:
        case: Name of the case.
        steps: Steps by name. Names that start with "synthetic" are of kind "baseline", with "spurmix" of kind "ours".
        notes: Notes of rows by name.
        spare_s: Seconds of the time limit that are left for later cases.
    """
    rounds, count, warmup = (1, 1, 0) if dry() else (5, 9, 4)
    times: dict[str, list[float]] = {name: [] for name in steps}

    def attempt(name: str, count: int) -> list[float]:
        """Measure a step once, or record its error and remove it."""
        try:
            return [_seconds(steps[name], count) * 1e3]
        except Exception as error:  # the other steps are still measured
            emit(Row(case, name, step=STEP, error=short(error)))
            del steps[name]
            return []

    for name in list(steps):
        attempt(name, warmup)
    for n in range(rounds):
        began = time.perf_counter()
        for name in list(steps):
            times[name] += attempt(name, count)
        if n > 0 and time_left() < 2 * (time.perf_counter() - began) + spare_s:
            break
    base = float(np.median(times[next(iter(steps))]))
    for name in steps:
        low, middle, high = (float(q) for q in np.quantile(times[name], [0.25, 0.5, 0.75]))
        kind = "baseline" if name.startswith("synthetic") else "ours" if name.startswith("spurmix") else "peer"
        emit(Row(case, name, kind, middle, low, high, ratio=middle / base, note=notes.get(name, ""), step=STEP))


def sgd_update(model: nn.Module) -> Update:
    """Return a function that computes a loss in bfloat16 autocast, its gradient and an SGD step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)

    def update(loss: Callable[[], Tensor]) -> None:
        with torch.autocast(device().type, torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def dense_loss(logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor) -> Tensor:
    """Return the cross entropy with dense mixed targets, in plain PyTorch."""
    classes, weight = logits.shape[1], lam[:, None]
    hot, partner_hot = (nn.functional.one_hot(y, classes) for y in (label, partner_label))
    return nn.functional.cross_entropy(logits.float(), weight * hot + (1 - weight) * partner_hot)


class Stored(Dataset[tuple[Tensor, int]]):
    """Stored examples and labels for the workers of a DataLoader.

    Args:
        examples: Images or texts, `[N, ...]`.
        labels: Label of each example.
    """

    def __init__(self, examples: Tensor, labels: list[int]) -> None:
        self.examples, self.labels = examples, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.examples[i], self.labels[i]


def _workers(batch_bytes: int, most: int) -> tuple[int, int]:
    """Return the number of workers and the batches that each prefetches, as far as shared memory suffices."""
    if dry():
        return 0, 0
    slots = shutil.disk_usage("/dev/shm").free // 2 // batch_bytes if os.path.isdir("/dev/shm") else 0
    workers = max(0, min(most, (os.cpu_count() or 2) - 2, slots))
    return workers, max(1, min(4, slots // max(1, workers)))


def worker_batches(
    examples: Tensor, labels: list[int], batch: int, most: int = 12
) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
    """Load batches with a DataLoader.

    Args:
        examples: Examples in host memory, `[N, ...]`.
        labels: Label of each example.
        batch: Batch size.
        most: Maximum number of workers.

    Returns:
        Endless batches of examples and labels on the device, and the number of workers.
    """
    workers, depth = _workers(batch * examples[0].numel() * examples.element_size(), most)
    sampler = WeightedRandomSampler([1.0] * len(labels), 10**7 if not dry() else 40)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            loader = DataLoader(
                Stored(examples, labels), batch, sampler=sampler, num_workers=workers, pin_memory=not dry(),
                drop_last=True, prefetch_factor=depth if workers else None,
            )  # fmt: skip
            for x, y in loader:
                yield x.to(device(), non_blocking=True), y.to(device(), non_blocking=True)

    return batches(), workers
