"""The prefetch thread: how an iteration ends, errors, and the number of threads."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch

from spurmix import GroupIndex, MixLoader, policies
from spurmix.data.loader.strategy import BatchStrategy

RNG = np.random.default_rng(5)
GROUPS = GroupIndex(RNG.integers(0, 3, 60), RNG.integers(0, 2, 60))
FEATURES = RNG.standard_normal((60, 4)).astype(np.float32)


def loader(source: Any = FEATURES, **options: Any) -> MixLoader:
    return MixLoader(source, GROUPS, policies.mixup(), 12, **dict(steps=20, seed=1) | options)


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "spurmix-prefetch"]


def before_each_batch(monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
    """Call `before(step)` before each batch is made."""
    real = BatchStrategy.batch_maker

    def new_maker(self: BatchStrategy, sequence: Any) -> Any:
        make_batch = real(self, sequence)

        def checked(step: int, buffers: Any) -> Any:
            before(step)
            return make_batch(step, buffers)

        return checked

    monkeypatch.setattr(BatchStrategy, "batch_maker", new_maker)


@pytest.fixture(autouse=True)
def no_remaining_thread() -> Any:
    yield
    gc.collect()
    assert prefetch_threads() == []


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_a_loader_continues_after_an_exception_or_break(prefetch: int) -> None:
    whole = [b.clone() for b in loader()]
    batches = loader(prefetch=prefetch)
    with pytest.raises(KeyError):
        for k, _ in enumerate(batches):
            if k == 3:
                raise KeyError
    assert prefetch_threads() == []
    assert batches.step == 4
    for _ in batches:
        break
    assert prefetch_threads() == []
    for step, batch in enumerate(batches, 5):
        assert torch.equal(batch.input, whole[step].input)


def test_deleted_iterators_end_their_thread() -> None:
    batches = loader()
    started = iter(batches)
    next(started)
    del started
    assert prefetch_threads() == []
    not_started = iter(batches)
    assert len(prefetch_threads()) == 1
    del not_started
    assert prefetch_threads() == []
    kept = iter(loader())  # nothing refers to the loader
    assert len(list(kept)) == 20


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_exception_is_raised_for_its_batch(prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fail = [True]

    def before(step: int) -> None:
        if step == 3 and fail[0]:
            raise OSError("disk failed")

    before_each_batch(monkeypatch, before)
    whole = [b.clone() for b in loader(copy=True, steps=3)]
    batches = loader(prefetch=prefetch)
    seen = []
    with pytest.raises(OSError, match="disk failed"):
        for batch in batches:
            seen.append(batch.clone())
    assert [torch.equal(a.input, b.input) for a, b in zip(seen, whole, strict=True)] == [True] * 3
    assert prefetch_threads() == []
    fail[0] = False
    assert sum(1 for _ in batches) == 17


def test_a_second_iterator_ends_the_first() -> None:
    batches = loader()
    first = iter(batches)
    next(first)
    second = iter(batches)
    with pytest.raises(RuntimeError, match="another iterator of the same loader"):
        next(first)
    assert len(list(second)) == 19
    third = iter(batches)
    next(third)
    batches.set_step(0)
    with pytest.raises(RuntimeError, match="set to another step"):
        next(third)


@pytest.mark.parametrize("prefetch", [1, 2])
def test_the_thread_uses_the_number_of_threads_of_the_consumer(prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before_each_batch(monkeypatch, lambda step: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            list(loader(prefetch=prefetch, steps=2))
            assert seen == [threads] * 2
            seen.clear()
    finally:
        torch.set_num_threads(before)
