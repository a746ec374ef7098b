"""Images on the host for a GPU. Their bytes are gathered into pinned memory, copied, and mixed on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spurmix.data.batch import Batch
from spurmix.data.loader.buffers import FIELD_BYTES, BufferRing, PackedBatch, allocate, batch_fields, views
from spurmix.data.loader.sequence import SampleSequence, crops_and_flips
from spurmix.data.loader.window_plan import PlannedBatch, PlannedImages, plan_images
from spurmix.data.sources.arrays import ImageSource
from spurmix.ops.augment import Augment
from spurmix.ops.backends import implementation


@dataclass(frozen=True, slots=True)
class GatheredBatch(PackedBatch):
    """A batch and the inputs of mixing its images on a GPU. All tensors except the input are views of `packed`.

    Attributes:
        input: Before mixing, the images that the samples need, each once, uint8 `[K, H, W, C]` with K <= 2 B.
            On the GPU, the mixed images `[B, C, h, w]`.
        place: Rows of the gathered images that hold index and partner of each sample, int64 `[2, B]`.
        boxes: Crop boxes of both images, float32 `[B, 2, 4]`, or None.
        flips: Flips of both images, uint8 `[B, 2]`, or None.
    """

    place: Tensor
    boxes: Tensor | None
    flips: Tensor | None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors: the input, the inputs of mixing, then the six others of a batch."""
        values, *others = Batch.tensors(self)
        return values, *(t for t in (self.place, self.boxes, self.flips) if t is not None), *others


def gathering_is_cheaper(source: ImageSource, item_bytes: int, augment: Augment) -> bool:
    """Decide whether to copy the two images of a sample to the GPU instead of the `item_bytes` mixed from them.

    Gathering is cheaper if it copies fewer bytes. With crops it may copy up to half as many bytes more, because crops take
    the CPU longer than copying. Images are slow to gather if their size is not a multiple of 4 bytes.
    """
    height, width, channels = source.shape
    row_bytes = height * width * channels
    return row_bytes % 4 == 0 and 2 * row_bytes < item_bytes * (1.5 if augment.crop else 1.0)


def gathered_buffers(
    count: int, source: ImageSource, augment: Augment, reusable: bool, pin_memory: bool
) -> GatheredBatch:
    """Allocate a batch of `count` samples for gathered images on the host."""
    with torch.inference_mode(False):
        images = allocate((2 * count, *source.shape), torch.uint8, reusable, pin_memory)
        packed = allocate((packed_bytes(count, augment),), torch.uint8, reusable, pin_memory)
        return unpack(images, packed, count, augment)


def packed_bytes(count: int, augment: Augment) -> int:
    """Return the size of the packed tensors of a gathered batch of `count` samples."""
    return count * (FIELD_BYTES + 2 * 8 + 32 * augment.crop + 2 * augment.flip) + 4 * (count % 2)


def unpack(values: Tensor, packed: Tensor, count: int, augment: Augment) -> GatheredBatch:
    """Build a gathered batch from its input and its packed tensors, in order of decreasing alignment."""
    fields = batch_fields(packed, count)
    offset = count * FIELD_BYTES + 4 * (count % 2)  # int64 after float32: align to 8 bytes
    (place,) = views(packed, [(torch.int64, (2, count))], offset)
    offset += place.nbytes
    boxes = views(packed, [(torch.float32, (count, 2, 4))], offset)[0] if augment.crop else None
    offset += boxes.nbytes if boxes is not None else 0
    flips = views(packed, [(torch.uint8, (count, 2))], offset)[0] if augment.flip else None
    return GatheredBatch(values, *fields, packed, place, boxes, flips)


class GatherPlanner:
    """Images of the host, gathered and not yet mixed."""

    def __init__(
        self,
        source: ImageSource,
        sequence: SampleSequence,
        augment: Augment,
        steps: int,
        new_batch: Callable[[], GatheredBatch],
    ) -> None:
        self._source, self._sequence, self._augment, self.new_batch = source, sequence, augment, new_batch
        self._plan = plan_images(source, sequence, steps)

    def __call__(self, step: int) -> PlannedBatch:
        """Draw the samples of batch `step` and read their images where necessary."""
        return PlannedBatch(self._plan(step), step, self.new_batch, self.gather)

    def gather(self, planned: PlannedImages, step: int, batch: Batch) -> GatheredBatch:
        """Write each required image once, and the positions, crops and flips of the samples."""
        assert isinstance(batch, GatheredBatch) and isinstance(batch.input, Tensor)
        rows, place = np.unique(torch.stack(planned.place).numpy(), return_inverse=True)
        images = batch.input[: rows.size]
        gather(planned.images, torch.from_numpy(rows), images)
        batch.place.copy_(torch.from_numpy(place.reshape(2, len(batch))))
        drawn = crops_and_flips(self._source, self._sequence, self._augment, step)
        for field, values in zip((batch.boxes, batch.flips), drawn, strict=True):
            if field is not None and values is not None:
                field.copy_(values)
        return replace(batch, input=images)


def gather(images: Tensor, rows: Tensor, out: Tensor) -> None:
    """Write ``images[rows]`` into `out`, by the widest words that rows consist of. Torch copies single bytes slowly.

    Args:
        images: uint8 `[N, H, W, C]`, each image contiguous.
        rows: int64 `[K]`, in [0, N).
        out: uint8 `[K, H, W, C]`, each image contiguous.

    Raises:
        IndexError: If a row is out of range.
    """
    flat, to = images.flatten(1), out.view(len(out), -1)
    divisors = (flat.shape[1], flat.stride(0), flat.storage_offset())
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8)
    word = next(kind for kind in kinds if not any(n % kind.itemsize for n in divisors))
    torch.index_select(flat.view(word), 0, rows, out=to.view(word))


class DeviceMixer:
    """Copies gathered batches to a GPU, in two transfers each, and mixes them on its current stream.

    Args:
        source: Source of the images.
        augment: Augmentation of the batches.
        count: Samples of a batch.
        new_input: Allocates the mixed input of a batch on the GPU.
        device: The GPU.

    Attributes:
        ring: Recycles the mixed batches. Replace it to reuse memory.
    """

    def __init__(
        self,
        source: ImageSource,
        augment: Augment,
        count: int,
        new_input: Callable[[], Tensor],
        device: torch.device,
    ) -> None:
        self._augment, self._count, self._new_input, self._device = augment, count, new_input, device
        with torch.inference_mode(False):
            self._images = torch.empty(2 * count, *source.shape, dtype=torch.uint8, device=device)
        device = self._images.device
        self._mix = implementation("mix_images_out", "auto", device)
        self._normalization = source.mean.to(device), source.std.to(device)
        self.ring = BufferRing(lambda: None, 1, ahead=False)

    def new_batch(self) -> GatheredBatch:
        """Allocate a mixed batch on the GPU."""
        with torch.inference_mode(False):
            size = packed_bytes(self._count, self._augment)
            packed = torch.empty(size, dtype=torch.uint8, device=self._device)
            return unpack(self._new_input(), packed, self._count, self._augment)

    def __call__(self, gathered: Batch) -> Batch:
        """Copy and mix a batch."""
        assert isinstance(gathered, GatheredBatch) and isinstance(gathered.input, Tensor)
        buffers = self.ring.reclaim()
        batch = buffers if buffers is not None else self.new_batch()
        assert isinstance(batch, GatheredBatch)
        self._images[: len(gathered.input)].copy_(gathered.input, non_blocking=True)
        batch.packed.copy_(gathered.packed, non_blocking=True)
        self._mix(self._images, *batch.place, batch.lam, *self._normalization, batch.boxes, batch.flips, batch.input)
        torch.autograd.graph.increment_version(batch.tensors())
        self.ring.deliver(buffers)
        return batch
