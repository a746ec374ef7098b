"""How iteration over a MixLoader ends: errors, break, garbage collection, Ctrl-C, exit, fork; and the ring's debug mode."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spurmix import GroupIndex, MixLoader, policies
from spurmix.core import memory
from spurmix.data.batch import Batch
from spurmix.data.memory import host_tensor

RNG = np.random.default_rng(5)
GROUPS = GroupIndex(RNG.integers(0, 3, 60), RNG.integers(0, 2, 60))
FEATURES = RNG.standard_normal((60, 4)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)


def loader(source: Any = FEATURES, **options: Any) -> MixLoader:
    return MixLoader(source, GROUPS, policies.mixup(), 12, **dict(steps=20, seed=1) | options)


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "spurmix-prefetch"]


def before_each_batch(monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
    """Have `before(step)` run before every batch is made."""
    real = MixLoader._new_maker

    def new_maker(self: MixLoader) -> Any:
        make_batch = real(self)

        def checked(step: int, buffers: Any) -> Any:
            before(step)
            return make_batch(step, buffers)

        return checked

    monkeypatch.setattr(MixLoader, "_new_maker", new_maker)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    yield
    gc.collect()
    assert prefetch_threads() == []


# ---- within the process


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_an_exception_or_break_in_the_loop_ends_the_thread_and_the_loader_goes_on(prefetch: int) -> None:
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


def test_iterators_that_are_dropped_end_their_thread_begun_or_not() -> None:
    batches = loader()
    begun = iter(batches)
    next(begun)
    del begun
    assert prefetch_threads() == []
    not_begun = iter(batches)
    assert len(prefetch_threads()) == 1
    del not_begun
    assert prefetch_threads() == []
    kept = iter(loader())  # the loader itself is dropped
    assert len(list(kept)) == 20


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_exception_while_filling_is_raised_in_its_turn(prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fail = [True]

    def before(step: int) -> None:
        if step == 3 and fail[0]:
            raise OSError("disk gone")

    before_each_batch(monkeypatch, before)
    whole = [b.clone() for b in loader(copy=True, steps=3)]
    batches = loader(prefetch=prefetch)
    seen = []
    with pytest.raises(OSError, match="disk gone"):
        for batch in batches:
            seen.append(batch.clone())
    assert [torch.equal(a.input, b.input) for a, b in zip(seen, whole, strict=True)] == [True] * 3
    assert prefetch_threads() == []
    fail[0] = False
    assert sum(1 for _ in batches) == 17


def test_a_second_iterator_replaces_the_first_which_says_so() -> None:
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
def test_the_thread_computes_with_the_consumers_number_of_threads(
    prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# ---- SPURMIX_DEBUG_RING


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
@pytest.mark.parametrize("source", [FEATURES, IMAGES], ids=["features", "images"])
def test_debug_ring_poisons_a_batch_when_its_lifetime_ends_and_not_before(
    source: Any, prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [b.clone() for b in loader(source)]
    batches = loader(source, prefetch=prefetch)
    for debug in ("0", "1", "0", "1"):  # read where iteration starts
        monkeypatch.setenv("SPURMIX_DEBUG_RING", debug)
        taken: list[Batch] = []
        for step, batch in enumerate(batches):
            taken.append(batch)
            for held in range(max(0, step - max(1, prefetch) + 1), step + 1):
                for a, b in zip(taken[held].tensors(), whole[held].tensors(), strict=True):
                    assert torch.equal(a, b)
            expired = step - max(1, prefetch)
            if debug == "1" and expired >= 0:
                for tensor in taken[expired].tensors():
                    if tensor.is_floating_point():
                        assert tensor.isnan().all()
                    else:
                        assert (tensor == torch.iinfo(tensor.dtype).min).all()
        assert len({b.input.data_ptr() for b in taken}) <= 2 * prefetch + 2


@pytest.mark.parametrize("prefetch", [0, 2])
def test_debug_ring_spares_batches_held_from_an_earlier_iteration_until_their_time(
    prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPURMIX_DEBUG_RING", "1")
    batches = loader(prefetch=prefetch)
    kept = [b for _, b in zip(range(5), batches, strict=False)][-max(1, prefetch) :]
    copies = [b.clone() for b in kept]
    again = iter(batches)
    for k in range(len(kept)):
        for held, copy in list(zip(kept, copies, strict=True))[k:]:
            assert torch.equal(held.input, copy.input)
        next(again)
        assert kept[k].input.isnan().all()


def test_debug_ring_leaves_copies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPURMIX_DEBUG_RING", "1")
    assert not any(b.input.isnan().any() for b in list(loader(copy=True)))


def test_buffers_beyond_memory_are_refused_before_any_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 5 * 12 * 4 * 4)
    with pytest.raises(MemoryError, match=r"batch_size, prefetch: 5 batches of 0\.0 GiB are held at a time"):
        next(iter(loader()))
    assert next(iter(loader(prefetch=0))).input.shape == (12, 4)
    with pytest.raises(MemoryError, match="no room for"):
        host_tensor((1 << 62,), torch.uint8)


# ---- pinned memory


def test_pinned_memory_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="pin_memory=True needs CUDA"):
        loader(pin_memory=True)
    with pytest.raises(ValueError, match="pin_memory=True needs CUDA"):
        host_tensor((3,), torch.float32, pin_memory=True)


def test_pinned_buffers_are_registered_on_pages_of_their_own_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[int, int] = {}
    error = [0]

    def register(address: int, size: int, flags: int) -> int:
        assert address % 4096 == 0
        registered[address] = size
        return error[0]

    cudart = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=lambda address: registered.pop(address))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    plain = loader(IMAGES)
    pinned = loader(IMAGES, pin_memory=True)
    for a, b in zip(plain, pinned, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
    assert len(registered) == 5 * 2
    last = b.input.data_ptr()
    assert registered[last] == b.input.nbytes
    del pinned
    assert len(registered) == 2  # those of the batch that is still held
    del b
    assert not registered
    error[0] = 2
    with pytest.raises(ValueError, match=r"could not pin 4,194,304 bytes \(error 2"):
        host_tensor((1 << 20,), torch.float32, pin_memory=True)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("debug", ["0", "1"])
def test_what_a_consumer_does_to_a_batch_stays_with_it(
    prefetch: int, debug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPURMIX_DEBUG_RING", debug)
    batches = loader(IMAGES, prefetch=prefetch)
    with torch.inference_mode():
        next(iter(batches))
    batches.set_step(0)
    weight = torch.ones(3 * 6 * 5, requires_grad=True)
    for batch in batches:
        assert not batch.input.requires_grad and batch.input.grad is None
        batch.input.requires_grad_()
        (batch.input.flatten(1) @ weight).sum().backward()
        assert batch.input.grad is not None and bool((batch.input.grad == 1).all())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_iterates_with_the_debug_ring() -> None:
    code = """
import os, numpy as np, torch
from spurmix import GroupIndex, MixLoader, policies
images = np.zeros((60, 64, 64, 3), dtype=np.uint8)
torch.randn(1 << 20).exp()  # torch's threads are running
loader = MixLoader(images, GroupIndex(np.arange(60) % 2), policies.erm(), 32, steps=9)
batches = iter(loader)
next(batches)
child = os.fork()
if child == 0:
    os._exit(0 if sum(1 for _ in loader) == 8 else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    environment = {**os.environ, "SPURMIX_DEBUG_RING": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, timeout=60)
    assert done.returncode == 0
