"""Recycled buffers: their lifetime, the debug mode, limits of memory and pinned memory."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import forked_python
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


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
@pytest.mark.parametrize("source", [FEATURES, IMAGES], ids=["features", "images"])
def test_debug_mode_overwrites_batches_when_they_expire(
    source: Any, prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [b.clone() for b in loader(source)]
    batches = loader(source, prefetch=prefetch)
    for debug in ("0", "1", "0", "1"):  # the variable is read when an iteration starts
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
def test_debug_mode_keeps_valid_batches_of_an_earlier_iteration(prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_debug_mode_does_not_overwrite_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPURMIX_DEBUG_RING", "1")
    assert not any(b.input.isnan().any() for b in list(loader(copy=True)))


def test_buffers_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 5 * 12 * 4 * 4)
    with pytest.raises(MemoryError, match=r"batch_size, prefetch: 5 batches of 0\.0 GiB are in memory at a time"):
        next(iter(loader()))
    assert next(iter(loader(prefetch=0))).input.shape == (12, 4)
    with pytest.raises(MemoryError, match="cannot allocate"):
        host_tensor((1 << 62,), torch.uint8)


def test_pinned_memory_requires_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="pin_memory=True needs CUDA"):
        loader(pin_memory=True)
    with pytest.raises(ValueError, match="pin_memory=True needs CUDA"):
        host_tensor((3,), torch.float32, pin_memory=True)


def test_pinned_buffers_are_registered_page_by_page_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(registered) == 2  # the batch that still exists
    del b
    assert not registered
    error[0] = 2
    with pytest.raises(ValueError, match=r"could not pin 4,194,304 bytes \(error 2"):
        host_tensor((1 << 20,), torch.float32, pin_memory=True)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("debug", ["0", "1"])
def test_requires_grad_of_a_batch_does_not_affect_later_batches(
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
def test_a_forked_process_iterates_in_debug_mode() -> None:
    code = """
import os, numpy as np, torch
from spurmix import GroupIndex, MixLoader, policies
images = np.zeros((60, 64, 64, 3), dtype=np.uint8)
torch.randn(1 << 20).exp()  # starts torch's threads
loader = MixLoader(images, GroupIndex(np.arange(60) % 2), policies.erm(), 32, steps=9)
batches = iter(loader)
next(batches)
child = os.fork()
if child == 0:
    os._exit(0 if sum(1 for _ in loader) == 8 else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    done = forked_python.run(code, env={"SPURMIX_DEBUG_RING": "1"})
    assert done.returncode == 0
