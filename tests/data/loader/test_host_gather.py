"""Images that are gathered on the host and mixed on a GPU. A model of a GPU runs queued work early or late."""

from __future__ import annotations

import gc
import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_model import Device, model_of_a_gpu

from spurmix import GroupIndex, ImageSource, MixLoader, TokenSource, policies
from spurmix.data.loader import host_gather as gather
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops.augment import NO_AUGMENT, Augment

RNG = np.random.default_rng(5)
GROUPS = GroupIndex(RNG.integers(0, 2, 60), RNG.integers(0, 2, 60))
IMAGES = RNG.integers(0, 256, (60, 10, 8, 3), dtype=np.uint8)
FEATURES = RNG.standard_normal((60, 5)).astype(np.float32)
CUDA = "cuda:0"


@pytest.fixture(params=["early", "late"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    with model_of_a_gpu(monkeypatch, request.param == "early") as device:
        yield device


def loader(source: Any = IMAGES, **options: Any) -> MixLoader:
    arguments: dict[str, Any] = dict(seed=4, steps=9)
    return MixLoader(
        source, GROUPS, options.pop("policy", policies.lisa()), options.pop("batch", 8), **arguments | options
    )


class Reader:
    """A consumer that queues a read of each valid batch. The reads compare the batch with the expected one."""

    def __init__(self, gpu: Device, expected: list[Any], valid: int) -> None:
        self.gpu, self.expected, self.valid = gpu, expected, valid
        self.taken: list[tuple[int, Any]] = []
        self.read: list[tuple[int, int]] = []
        self.wrong: list[tuple[int, int]] = []

    def take(self, step: int, batch: Any) -> None:
        self.taken = [*self.taken, (step, batch)][-self.valid :]
        for old, kept in self.taken:
            self.gpu.streams.consumer.queue(lambda old=old, kept=kept: self._compare(step, old, kept))

    def _compare(self, now: int, step: int, batch: Any) -> None:
        self.read.append((now, step))
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            pairs = zip(batch.tensors(), self.expected[step].tensors(), strict=True)
            if not all(torch.equal(a, b) for a, b in pairs):
                self.wrong.append((now, step))


def check(gpu: Device, source: Any, expected: list[Any], **options: Any) -> MixLoader:
    here = loader(source, device=CUDA, **options)
    reader = Reader(gpu, expected, max(1, here.prefetch))
    for step, batch in enumerate(here):
        assert all(map(gpu.here, batch.tensors()))
        reader.take(step, batch)
    gpu.streams.run(side_first=True)
    assert len(reader.read) >= len(here) and reader.wrong == []
    return here


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(augment=Augment(size=(9, 10)), channels_last=True),
        dict(augment=Augment(crop=False), copy=True),
        dict(policy=policies.erm(), rank=1, world_size=2),
        dict(policy=policies.mixup(), dtype=torch.bfloat16, augment=Augment(size=12, scale=(0.5, 1))),
    ],
    ids=["plain", "crops", "flips", "ranks", "half"],
)
def test_batches_equal_those_of_the_cpu(gpu: Device, prefetch: int, options: Any) -> None:
    expected = [b.clone() for b in loader(**options)]
    here = check(gpu, IMAGES, expected, prefetch=prefetch, **options)
    assert here._strategy.gathers
    single = here.batch(5)
    gpu.streams.run(side_first=False)
    assert all(torch.equal(a, b) for a, b in zip(single.tensors(), expected[5].tensors(), strict=True))


@pytest.mark.parametrize(
    "source", [FEATURES, TokenSource.from_lists([[1, 2, 3]] * 30 + [[4]] * 30)], ids=["rows", "texts"]
)
def test_other_sources_are_mixed_on_the_host_and_copied(gpu: Device, source: Any) -> None:
    expected = [b.clone() for b in loader(source)]
    assert not check(gpu, source, expected, prefetch=2)._strategy.gathers


def test_each_image_is_transferred_once(gpu: Device) -> None:
    expected = [b.clone() for b in loader()]
    check(gpu, IMAGES, expected)
    images = sum(np.union1d(b.index, b.partner).size for b in expected) * IMAGES[0].nbytes
    small = sum(sum(t.nbytes for t in b.tensors()[1:]) + 2 * 8 * 8 for b in expected)
    assert gpu.copied == images + small
    assert gpu.copies == 2 * len(expected)  # the images, and one buffer with everything else


@pytest.mark.parametrize("count", [7, 8])
def test_packed_tensors_are_aligned_and_disjoint(count: int) -> None:
    augment = Augment(size=8)
    size = gather.packed_bytes(count, augment)
    batch = gather.unpack(torch.empty(1), torch.zeros(size, dtype=torch.uint8), count, augment)
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in batch.tensors()[1:])
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert spans[-1][1] - spans[0][0] == size
    assert all(t.storage_offset() * t.itemsize % t.itemsize == 0 for t in batch.tensors())
    version = batch.lam._version
    batch.group.zero_()
    assert batch.lam._version == version  # autograd treats the tensors as independent


def test_copied_batches_need_one_transfer_besides_the_input(gpu: Device) -> None:
    expected = [b.clone() for b in loader(FEATURES)]
    check(gpu, FEATURES, expected)
    assert gpu.copies == 2 * len(expected)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_memory_maps_and_windows(gpu: Device, prefetch: int, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    options: Any = dict(augment=Augment(size=10, scale=(0.3, 1)), prefetch=prefetch)
    expected = [b.clone() for b in loader(**options)]
    for source in (
        ImageSource(np.load(tmp_path / "images.npy", mmap_mode="r")),
        WindowedImages(tmp_path / "images.npy", 0, 60, 4),
    ):
        assert check(gpu, source, expected, **options)._strategy.gathers


@pytest.mark.parametrize("debug", ["0", "1"])
def test_resuming_and_iterating_again(debug: str, gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPURMIX_DEBUG_RING", debug)
    expected = [b.clone() for b in loader()]
    here = loader(device=CUDA, prefetch=2)
    reader = Reader(gpu, expected, 2)
    first = iter(here)
    for step in range(4):
        reader.take(step, next(first))
    for step, batch in enumerate(here, start=4):  # the last batches of `first` stay valid
        reader.take(step, batch)
    assert step == 8
    with pytest.raises(RuntimeError, match="another iterator"):
        next(first)
    for step, batch in zip(range(3), here, strict=False):
        reader.take(step, batch)
    here.load_state_dict(loader().state_dict() | {"step": 7})
    for step, batch in enumerate(here, start=7):
        reader.take(step, batch)
    gpu.streams.run(side_first=False)
    assert len(reader.read) > 20 and reader.wrong == []


def test_closing_midway_ends_the_thread(gpu: Device) -> None:
    before = threading.active_count()
    for _ in range(3):
        batches = iter(loader(device=CUDA, prefetch=2))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before
    batches = iter(loader(device=CUDA, prefetch=2))
    next(batches)
    del batches
    gc.collect()
    assert threading.active_count() == before
    gpu.streams.run(side_first=True)


def test_an_error_of_the_thread_is_raised(gpu: Device, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    here = loader(WindowedImages(tmp_path / "images.npy", 0, 60, 1), device=CUDA)
    with (tmp_path / "images.npy").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(OSError):
        list(here)
    gpu.streams.run(side_first=True)


def test_rows_of_any_word_size_are_gathered() -> None:
    for shape in ((9, 4, 2, 3), (9, 2, 2, 3), (9, 1, 2, 3), (9, 3, 1, 1)):
        whole = torch.from_numpy(RNG.integers(0, 256, (12, *shape[1:]), dtype=np.uint8))
        rows = torch.tensor([0, 3, 2, 3])
        for images in (whole[:9], whole[1:10], whole[::3][:4], whole.flatten()[1:][: whole[:9].numel()].view(shape)):
            out = torch.empty(4, *shape[1:], dtype=torch.uint8)
            gather.gather(images, rows, out)
            assert torch.equal(out, images[rows])
            with pytest.raises(IndexError, match="out of range"):
                gather.gather(images, rows + len(images) - 3, out)
            with pytest.raises(IndexError, match="out of range"):
                gather.gather(images, rows - 1, out)


def test_images_are_gathered_if_that_is_cheaper() -> None:
    crop, large = Augment(size=224), ImageSource(np.zeros((1, 256, 256, 3), dtype=np.uint8))
    mixed = 224 * 224 * 3
    assert gather.gathering_is_cheaper(large, 256 * 256 * 3 * 4, NO_AUGMENT)
    assert not gather.gathering_is_cheaper(large, 256 * 256 * 3 * 2, NO_AUGMENT)  # the same number of bytes
    assert gather.gathering_is_cheaper(large, mixed * 4, crop) and gather.gathering_is_cheaper(large, mixed * 2, crop)
    assert not gather.gathering_is_cheaper(large, 64 * 64 * 3 * 4, Augment(size=64))
    assert not gather.gathering_is_cheaper(ImageSource(np.zeros((1, 5, 5, 3), dtype=np.uint8)), 300, NO_AUGMENT)
