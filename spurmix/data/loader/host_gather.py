"""Images of the host for a GPU: their bytes are gathered into pinned memory, copied as they are, and mixed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spurmix.data.batch import Batch
from spurmix.data.loader.batch_maker import Stream
from spurmix.data.loader.buffers import Ring, buffer
from spurmix.data.loader.prefetch import Fill
from spurmix.data.sources.arrays import ImageSource
from spurmix.data.sources.windowed import Pick, Picked, WindowedImages, augmented, pick_windows
from spurmix.ops.augment import Augment
from spurmix.ops.backends import implementation


@dataclass(frozen=True, slots=True)
class Gathered(Batch):
    """A batch before it is mixed.

    Attributes:
        input: the images its samples need, each once, uint8 `[K, H, W, C]`; K is 2 B or less.
        place: int64 `[2, B]`, where index and partner of each sample stand in `input`.
        boxes, flips: crops float32 `[B, 2, 4]` and mirrors uint8 `[B, 2]` of both, where they are augmented.
    """

    input: Tensor
    place: Tensor
    boxes: Tensor | None
    flips: Tensor | None

    def pairs(self) -> tuple[Tensor, ...]:
        """What only mixing needs: `place`, `boxes` and `flips`, as far as there are any."""
        return tuple(t for t in (self.place, self.boxes, self.flips) if t is not None)

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors: the images, the pairs, then the six others of a batch."""
        images, *others = Batch.tensors(self)
        return images, *self.pairs(), *others


def pays(source: ImageSource, item_bytes: int, augment: Augment) -> bool:
    """Whether to send the images of a pair instead of the `item_bytes` mixed from them.

    Where they are fewer bytes, and with crops not many more: those take the CPU longer than copying. Images that are no
    whole number of words are copied slowly.
    """
    height, width, channels = source.shape
    row_bytes = height * width * channels
    return row_bytes % 4 == 0 and 2 * row_bytes < item_bytes * (1.5 if augment.crop else 1.0)


def gather_buffers(
    count: int, source: ImageSource, augment: Augment, reusable: bool, pin_memory: bool, device: torch.device
) -> Gathered:
    """Buffers of a batch of `count` samples, on the host or a GPU."""

    def make(kind: torch.dtype, *shape: int) -> Tensor:
        if reusable and device.type == "cpu":
            return buffer(shape, kind, pin_memory=pin_memory)
        return torch.empty(shape, dtype=kind, device=device, pin_memory=pin_memory)

    with torch.inference_mode(False):
        images = make(torch.uint8, 2 * count, *source.shape)
        label, partner_label, index, partner, group = (make(torch.int64, count) for _ in range(5))
        boxes = make(torch.float32, count, 2, 4) if augment.crop else None
        flips = make(torch.uint8, count, 2) if augment.flip else None
        lam, place = make(torch.float32, count), make(torch.int64, 2, count)
        return Gathered(images, label, partner_label, lam, index, partner, group, place, boxes, flips)


def pick_images(source: ImageSource, stream: Stream, count: int) -> Pick:
    """The samples of batches of `count`, and all images."""
    draw = implementation("draw", "auto", torch.device("cpu"))
    tables = stream.tables

    def pick(step: int) -> Picked:
        start = step * stream.batch_size + stream.first
        drawn = draw(tables.packed, tables.members, stream.seed, start, count)
        return Picked(source.images, drawn, drawn[:2])

    return pick


def fill_gathered(
    source: ImageSource, stream: Stream, augment: Augment, count: int, steps: int, fresh: Callable[[], Gathered]
) -> Fill:
    """Batches of `count` samples, not mixed yet."""
    labels, keep = stream.labels, stream.tables.keeps_labels
    if isinstance(source, WindowedImages):
        pick = pick_windows(source, stream, count, steps)
    else:
        pick = pick_images(source, stream, count)

    def fill(step: int, buffers: Batch | None) -> Batch:
        batch = buffers if buffers is not None else fresh()
        assert isinstance(batch, Gathered)
        now = pick(step)
        rows, place = np.unique(torch.stack(now.place).numpy(), return_inverse=True)
        gather(now.images, torch.from_numpy(rows), batch.input[: rows.size])
        batch.place.copy_(torch.from_numpy(place.reshape(2, count)))
        for field, values in zip((batch.index, batch.partner, batch.lam, batch.group), now.drawn, strict=True):
            field.copy_(values)
        batch.label.copy_(labels.index_select(0, batch.index))
        batch.partner_label.copy_(batch.label if keep else labels.index_select(0, batch.partner))
        for own, made in zip((batch.boxes, batch.flips), augmented(source, stream, augment, step, count), strict=True):
            if own is not None and made is not None:
                own.copy_(made)
        return replace(batch, input=batch.input[: rows.size])

    return fill


def gather(images: Tensor, rows: Tensor, out: Tensor) -> None:
    """``out.copy_(images[rows])``, by the widest words that rows consist of: torch copies bytes one by one.

    Args:
        images, out: uint8 `[N, H, W, C]` and `[K, H, W, C]`, each image contiguous; rows: int64 `[K]`.

    Raises:
        IndexError: for a row out of range.
    """
    flat, to = images.flatten(1), out.view(len(out), -1)
    divisors = (flat.shape[1], flat.stride(0), flat.storage_offset())
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8)
    word = next(kind for kind in kinds if not any(n % kind.itemsize for n in divisors))
    torch.index_select(flat.view(word), 0, rows, out=to.view(word))


class Mixer:
    """Mixes gathered batches on the current stream of a GPU, by way of one set of buffers there.

    Args:
        source: whose images they are. there: the buffers. ring: where mixed batches go; fresh: in place of its None.
    """

    def __init__(self, source: ImageSource, there: Gathered, ring: Ring, fresh: Callable[[], Batch]) -> None:
        device = there.input.device
        self.ring, self._there, self._fresh = ring, there, fresh
        self._mix = implementation("mix_images_out", "auto", device)
        self._normalise = source.mean.to(device), source.std.to(device)

    def __call__(self, gathered: Batch) -> Batch:
        """The batch, mixed."""
        assert isinstance(gathered, Gathered)
        there, buffers = self._there, self.ring.take_back()
        batch = buffers if buffers is not None else self._fresh()
        there.input[: len(gathered.input)].copy_(gathered.input, non_blocking=True)
        others = (*there.pairs(), *batch.tensors()[1:])
        for to, values in zip(others, gathered.tensors()[1:], strict=True):
            to.copy_(values, non_blocking=True)
        self._mix(there.input, *there.place, batch.lam, *self._normalise, there.boxes, there.flips, batch.input)
        torch.autograd.graph.increment_version(batch.tensors())
        self.ring.hand_out(buffers)
        return batch
