"""Side streams and static batches, tested without a GPU: a model of CUDA streams, static batches on the CPU, errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_model import Stream, Streams
from torch._subclasses import FakeTensorMode

from spurmix import FeatureSource, GroupIndex, ImageSource, MixLoader, TokenSource, policies
from spurmix.data.loader import buffers as ring
from spurmix.data.loader import cuda_stream as gpu
from spurmix.data.sources import arrays as sources
from spurmix.ops import device_errors, validate
from spurmix.ops import functional as F
from spurmix.ops.augment import Augment

RNG = np.random.default_rng(3)
LABELS, ATTRIBUTES = RNG.integers(0, 2, 60), RNG.integers(0, 2, 60)
GROUPS = GroupIndex(LABELS, ATTRIBUTES)
IMAGES = RNG.integers(0, 256, (60, 10, 8, 3), dtype=np.uint8)
FEATURES = RNG.standard_normal((60, 5)).astype(np.float32)


@pytest.mark.parametrize("source", [IMAGES, FEATURES], ids=["images", "features"])
def test_a_static_batch_follows_the_sequence_in_one_set_of_buffers(source: Any) -> None:
    options: Any = dict(seed=4, steps=5, augment=Augment(size=6) if source is IMAGES else None)
    for rank in (0, 1):
        loader = MixLoader(source, GROUPS, policies.lisa(), 8, rank=rank, world_size=2, **options)
        expected = [batch.clone() for batch in loader]
        static = loader.static_batch()
        memory = [t.data_ptr() for t in static.batch.tensors()]
        for step in (0, 1, 2, 4, 3):
            if step > 2:
                static.set_step(step)
            made = static()
            assert [t.data_ptr() for t in made.tensors()] == memory
            assert all(torch.equal(a, b) for a, b in zip(made.tensors(), expected[step].tensors(), strict=True))
        loader.set_step(3)
        assert torch.equal(loader.static_batch()().index, expected[3].index)
    with pytest.raises(ValueError, match="step must be 0 or more"):
        static.set_step(-1)


def test_texts_have_no_static_batch() -> None:
    texts = TokenSource.from_lists([[1, 2]] * 60)
    with pytest.raises(ValueError, match="differ in length"):
        MixLoader(texts, GROUPS, policies.erm(), 8).static_batch()


class Slot:
    """A buffer that stores one number, and the streams that use it."""

    def __init__(self) -> None:
        self.value, self.streams = -1, set()

    def tensors(self) -> tuple[Slot]:
        return (self,)

    def record_stream(self, stream: Stream) -> None:
        self.streams.add(stream)


@pytest.mark.parametrize("side_first", [False, True])
@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("lifetime", [1, 2])
def test_batches_are_complete_when_read_and_used_before_they_are_rewritten(
    side_first: bool, ahead: int, lifetime: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = Streams()
    monkeypatch.setattr(gpu, "cuda", streams)
    buffers: Any = ring.BufferRing(Slot, lifetime + ahead, ahead=False)  # type: ignore[arg-type,return-value]
    buffers.restart(False)

    def produce() -> Any:
        for step in range(20):
            slot = buffers.reclaim()
            streams.current.queue(lambda slot=slot, step=step: setattr(slot, "value", step))
            buffers.deliver(slot)
            yield slot

    seen: list[tuple[int, int]] = []
    kept: list[Any] = []
    for step, slot in enumerate(gpu.SideStream(produce(), torch.device("cuda:0"), ahead)):
        kept.append(slot)
        for back in range(min(lifetime, step + 1)):  # this batch and the earlier ones that are still valid
            old = kept[step - back]
            streams.consumer.queue(lambda old=old, n=step - back: seen.append((n, old.value)))
        assert slot.streams == {streams.consumer}
    streams.run(side_first)
    assert len(seen) == (39 if lifetime == 2 else 20) and all(expected == value for expected, value in seen)
    assert len({id(s) for s in kept}) == lifetime + ahead


def test_data_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 80 << 30))
    large = SimpleNamespace(device=torch.device("cpu"), nbytes=45 << 30)
    with pytest.raises(MemoryError, match=r"take 45.0 GiB, but cuda:0 has 3.0 of 80.0 GiB free; keep them on the host"):
        sources.check_fits(large, torch.device("cuda:0"))  # type: ignore[arg-type]
    sources.check_fits(torch.zeros(4), torch.device("cuda:0"))

    def refused(device: torch.device) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fragmented = SimpleNamespace(device=torch.device("cpu"), nbytes=1 << 30, to=refused)
    with pytest.raises(MemoryError, match=r"take 1.0 GiB, but cuda:0 has 3.0 of 80.0 GiB free; .* source.pinned\(\)"):
        sources.move_to_device(fragmented, "cuda:0")  # type: ignore[arg-type]
    assert torch.equal(ImageSource(IMAGES).to("cpu").images, torch.from_numpy(IMAGES))
    assert FeatureSource(FEATURES).to("cpu").device.type == "cpu"


def test_debug_mode_does_not_synchronize_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Any] = []
    monkeypatch.setenv("SPURMIX_DEBUG", "1")
    monkeypatch.setattr(device_errors, "check", checked.append)
    with FakeTensorMode():
        there = torch.empty(2, device="cuda")
    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        device_errors.check_after_call((None, there))
        assert len(checked) == (0 if capturing else 1)


def test_tensors_on_different_devices_are_rejected() -> None:
    with pytest.raises(ValueError, match="CUDA is not available"):
        MixLoader(IMAGES, GROUPS, policies.erm(), 8, device="cuda")
    with pytest.raises(ValueError, match="needs CUDA"):
        ImageSource(IMAGES).pinned()
    with FakeTensorMode():
        images, other = torch.empty(2, 4, 4, 3, dtype=torch.uint8), torch.empty(2, dtype=torch.int64, device="cuda")
        with pytest.raises(ValueError, match=r"images must be on cuda.* or in pinned memory"):
            validate.images_device(images, other)
        with pytest.raises(ValueError, match=r"images must be on cuda.* got meta"):
            validate.images_device(images.to("meta"), other)
        with pytest.raises(ValueError, match="index must be on cpu"):
            F.mix_rows(torch.empty(2, 3), other, other, torch.empty(2, device="cuda"))
