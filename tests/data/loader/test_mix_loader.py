"""MixLoader: ranks, resuming, lifetime of batches, copies of a loader, errors and memory use."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from small_loader import FEATURES, GROUPS, IMAGES, LABELS, loader

from spurmix import FeatureSource, ImageSource, TokenSource, policies
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops import functional as F


def collect(batches: Any) -> list[torch.Tensor]:
    made = [b.clone() for b in batches]
    return [torch.cat(parts) for parts in zip(*(b.tensors() for b in made), strict=True)]


def test_deprecated_name_of_detached_still_works() -> None:
    batch = loader().batch(0)
    with pytest.deprecated_call(match="Batch: handles is deprecated, use detached"):
        views = batch.handles()
    assert views.label is not batch.label and views.label.data_ptr() == batch.label.data_ptr()


@pytest.mark.parametrize("source", [IMAGES, FEATURES], ids=["images", "features"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_ranks_concatenate_to_one_sequence(source: Any, world_size: int, prefetch: int) -> None:
    whole = [b.clone() for b in loader(source)]
    ranks = [
        [b.clone() for b in loader(source, rank=r, world_size=world_size, prefetch=prefetch)] for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        joined = [torch.cat(parts) for parts in zip(*(r[step].tensors() for r in ranks), strict=True)]
        for a, b in zip(batch.tensors(), joined, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("source", [IMAGES, FEATURES], ids=["images", "features"])
def test_batches_equal_draw_and_mix(source: Any) -> None:
    index, partner, lam = F.draw(GROUPS, policies.mixup(), seed=4, start=0, count=6 * 24)
    got = collect(loader(source))
    assert torch.equal(got[4], index)
    assert torch.equal(got[5], partner)
    assert torch.equal(got[3], lam)
    assert got[1].tolist() == LABELS[index].tolist()
    assert got[2].tolist() == LABELS[partner].tolist()
    assert got[6].tolist() == GROUPS.group_ids()[index].tolist()
    made = ImageSource(source) if source.ndim == 4 else FeatureSource(source)
    weight = lam.view(-1, *[1] * (got[0].dim() - 1))
    expected = weight * made.gather(index) + (1 - weight) * made.gather(partner)
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at", range(7))
def test_resume_at_any_step(at: int) -> None:
    whole = [b.clone() for b in loader()]
    first = loader()
    for k, _ in enumerate(iter(first)):
        if k + 1 == at:
            break
    state = first.state_dict() if at else loader().state_dict()
    assert state["step"] == at
    second = loader()
    second.load_state_dict(state)
    rest = [b.clone() for b in second] if at < 6 else []
    assert len(rest) == 6 - at
    for a, b in zip(whole[at:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_buffers_stay_valid_for_prefetch_further_batches_and_are_reused(prefetch: int) -> None:
    held: list[tuple[Any, Any]] = []
    pointers = set()
    for batch in loader(steps=40, prefetch=prefetch):
        held = [*held, (batch, batch.clone())][-max(1, prefetch) :]
        pointers.add(batch.input.data_ptr())
        for kept, taken in held:
            assert all(torch.equal(a, b) for a, b in zip(kept.tensors(), taken.tensors(), strict=True))
    assert len(pointers) == 2 * prefetch + 1


@pytest.mark.parametrize("source", [IMAGES, FEATURES], ids=["images", "features"])
def test_any_batch_can_be_requested(source: Any) -> None:
    batches = loader(source)
    whole = [b.clone() for b in loader(source)]
    iterator = iter(batches)
    next(iterator)
    for step in (5, 0, 3, 3):
        made = batches.batch(step)
        assert all(torch.equal(a, b) for a, b in zip(made.tensors(), whole[step].tensors(), strict=True))
    assert torch.equal(next(iterator).input, whole[1].input)
    with pytest.raises(IndexError, match=r"step must be in \[0, 6\), got 6"):
        batches.batch(6)


def test_restarting_keeps_held_batches_valid() -> None:
    batches = loader(prefetch=2)
    first = next(iter(batches))
    copy = first.clone()
    for _ in range(3):
        batches.set_step(0)
        next(iter(batches))
        assert torch.equal(first.input, copy.input)
        first, copy = (b := next(iter(batches))), b.clone()


def test_autograd_detects_a_recycled_image_buffer() -> None:
    weight = torch.ones(1, requires_grad=True)
    batches = iter(loader(prefetch=0))
    loss = (next(batches).input * weight).sum()
    next(batches)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copied_batches_are_in_fresh_memory() -> None:
    batches = list(loader(copy=True))
    assert len({b.input.data_ptr() for b in batches}) == 6


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["deep", "pickled"]
)
@pytest.mark.parametrize("kind", ["images", "features", "window", "texts"])
def test_a_copy_of_a_loader_starts_at_the_same_step(kind: str, copied: Any, tmp_path: Any) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    window = WindowedImages(tmp_path / "images.npy", 0, 90, 2)
    assert window.images.shape == (90, 8, 7, 3)  # maps the file
    lengths = np.arange(91)
    source = {
        "images": IMAGES,
        "features": FEATURES,
        "window": window,
        "texts": TokenSource(np.arange(90) % 7, lengths),
    }[kind]
    image = kind in ("images", "window")
    options = dict(augment=F.Augment(size=5), channels_last=True, dtype=torch.float16) if image else {}
    made = loader(source, policy=policies.lisa(), rank=1, world_size=2, prefetch=3, **options)
    batches = iter(made)
    for _ in range(2):
        next(batches)
    other = copied(made)
    assert (other.step, other.source is made.source) == (2, False)
    if kind == "window":
        assert "images" in vars(window) and "images" not in vars(other.source)
    assert other.fingerprint() == made.fingerprint() and repr(other) == repr(made)
    ahead = collect(other)
    for ours, theirs in zip(ahead, collect(batches), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert ahead[-1].shape == (4 * 12,) and made.step == other.step == 6


def test_length_step_and_restart() -> None:
    batches = loader(steps=None, epochs=2)
    assert len(batches) == 8  # 180 samples, rounded up
    assert len(loader(steps=None)) == 4
    seen = sum(1 for _ in batches)
    assert (seen, batches.step) == (8, 8)
    assert sum(1 for _ in batches) == 8
    batches.set_step(6)
    assert sum(1 for _ in batches) == 2


def test_half_precision_channels_last_and_augmentation() -> None:
    batch = next(iter(loader(dtype=torch.bfloat16, channels_last=True, augment=F.Augment(size=5))))
    assert batch.input.shape == (24, 3, 5, 5)
    assert batch.input.dtype == torch.bfloat16
    assert batch.input.is_contiguous(memory_format=torch.channels_last)


def test_memory_maps(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for a, b in zip(loader(mapped), loader(), strict=True):
        assert torch.equal(a.input, b.input)


def test_errors_of_the_thread_are_raised_and_threads_end() -> None:
    broken = loader(steps=50)
    batches = iter(broken)
    next(batches)
    broken.tables.packed[0] += 1
    try:
        with pytest.raises(RuntimeError, match="tables"):
            list(batches)
    finally:
        broken.tables.packed[0] -= 1
    abandoned = iter(loader(steps=50))
    next(abandoned)
    del abandoned
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "spurmix-prefetch":
            thread.join(timeout=5)
            assert not thread.is_alive()


def test_memory_does_not_grow() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    batches = loader(steps=2200)
    before = 0
    for k, _ in enumerate(batches):
        if k == 200:
            before = resident()
    assert resident() - before < 2_000_000
