"""Images read from their file as the draw needs them: the future is known, so rows are read ahead, in order, each once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spurmix.core.cells import host_module
from spurmix.core.memory import empty
from spurmix.data.batch import Batch
from spurmix.data.fill import Stream
from spurmix.data.prefetch import Fill
from spurmix.data.sources import ImageSource, as_tensor
from spurmix.data.store import DatasetError, array_header
from spurmix.ops import functional, reference_draw
from spurmix.ops.augment import Augment
from spurmix.ops.backends import implementation

THREADS = 16
"""Reads under way at once: a disk answers many sooner than one after the other."""


class WindowedImages(ImageSource):
    """Images `[N, H, W, C]` in an `.npy` file that are read for `window` batches at a time, and never mapped for that.

    While a window's batches are mixed, the rows of the next one are read: all that its samples need as index or partner,
    in the order of the file, each once however often it is used. Two windows are in memory, at most
    `4 * window * batch size` images. Batches are those of an `ImageSource`, to the bit.

    Args:
        path: the file. begin, count: which of its rows are the source.
        window: batches read at a time, 1 or more.
        mean, std: as in `ImageSource`.
    """

    def __init__(self, path: Path, begin: int, count: int, window: int, *, mean: Any = None, std: Any = None) -> None:
        if window < 1:
            raise ValueError(f"window must be 1 or more, got {window}")
        shape, dtype, data = array_header(path)
        if len(shape) != 4 or dtype != np.uint8 or not 0 <= begin < begin + count <= shape[0]:
            raise DatasetError(f"{path}: rows {begin} to {begin + count} are not images of a file of {list(shape)}")
        self.path, self.window = path, window
        self._first, self._count, self._extent = begin, count, (shape[1], shape[2], shape[3])
        self._row_bytes = shape[1] * shape[2] * shape[3]
        self._begin = data + begin * self._row_bytes
        self._set_normalisation(mean, std, shape[3], torch.device("cpu"))

    @cached_property
    def images(self) -> Tensor:  # type: ignore[override]  # what ImageSource holds is mapped here when it is asked for
        """The images, memory-mapped."""
        mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return as_tensor(mapped[self._first : self._first + self._count], "images")

    @property
    def device(self) -> torch.device:
        """Where the images are: on the host."""
        return torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self._extent

    def __len__(self) -> int:
        return self._count

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Images `rows`, ascending, uint8 `[K, H, W, C]`, by parallel reads.

        Raises:
            OSError: where the file cannot be read.
        """
        target = out[: rows.size] if out is not None else np.empty((rows.size, *self._extent), dtype=np.uint8)
        with self.path.open("rb", buffering=0) as file:
            host = host_module()
            if host is not None:
                host.read_rows(file.fileno(), self._begin, rows, target, THREADS)
                return target
            flat = target.reshape(rows.size, self._row_bytes)
            for k, row in enumerate(rows.tolist()):
                found = os.pread(file.fileno(), self._row_bytes, self._begin + row * self._row_bytes)
                flat[k] = np.frombuffer(found, dtype=np.uint8)
        return target

    def gather(self, index: Tensor) -> Tensor:
        """Unmixed, normalised images, float32 `[B, C, H, W]`; index int64 `[B]`."""
        ones, rows = torch.ones(index.shape[0]), torch.arange(index.shape[0])
        return functional.mix_images(self.raw(index), rows, rows, ones, mean=self.mean, std=self.std)

    def raw(self, index: Tensor) -> Tensor:
        """The stored images, uint8 `[B, H, W, C]`; index int64 `[B]`."""
        wanted = index.numpy()
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._count):
            raise IndexError(f"index must lie in [0, {self._count}), got {wanted.min()} to {wanted.max()}")
        rows, place = np.unique(wanted, return_inverse=True)
        return torch.from_numpy(self.read(rows)[place])

    def __repr__(self) -> str:
        height, width, channels = self.shape
        return (
            f"WindowedImages({len(self):,} images of {height} x {width} x {channels}, {self.window} batches at a time)"
        )


@dataclass(frozen=True)
class Picked:
    """The samples of a batch, and images that hold theirs: `place` in `images` of index and partner of each sample."""

    images: Tensor
    drawn: tuple[Tensor, ...]  # index, partner, lam, group
    place: tuple[Tensor, Tensor]

    def part(self, part: slice) -> Picked:
        """Some of the samples."""
        index, partner = self.place
        return Picked(self.images, tuple(d[part] for d in self.drawn), (index[part], partner[part]))


Pick = Callable[[int], Picked]
"""pick(step): this rank's samples of batch number `step`; the images hold until the next call."""


def pick_windows(source: WindowedImages, stream: Stream, count: int, steps: int) -> Pick:
    """The samples of batches of `count`, their images read a window at a time; the next window is read meanwhile."""
    draw = implementation("draw", "auto", torch.device("cpu"))
    reader = ThreadPoolExecutor(1, "spurmix-window")
    room = (2 * count * source.window, *source.shape)
    memory = [empty(math.prod(room), np.uint8).reshape(room) for _ in range(2)]
    ahead: dict[int, Future[Picked]] = {}
    kept: dict[int, Picked] = {}

    def read(number: int) -> Picked:
        batches = range(number * source.window, min((number + 1) * source.window, steps))
        parts = [
            draw(stream.tables.packed, stream.tables.members, stream.seed, k * stream.batch_size + stream.first, count)
            for k in batches
        ]
        drawn = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        both = torch.cat(drawn[:2]).numpy()
        rows, place = np.unique(both, return_inverse=True)
        images = source.read(rows, memory[number % 2])
        index, partner = torch.from_numpy(place.astype(np.int64)).chunk(2)
        return Picked(torch.from_numpy(images), drawn, (index, partner))

    def window(number: int) -> Picked:
        if number not in kept:
            waiting = ahead.pop(number, None)
            for other in ahead.values():  # of a place the loader left: its memory is needed now
                if not other.cancel():
                    other.exception()
            ahead.clear()
            kept.clear()
            kept[number] = waiting.result() if waiting is not None else read(number)
            if (number + 1) * source.window < steps:
                ahead[number + 1] = reader.submit(read, number + 1)
        return kept[number]

    def pick(step: int) -> Picked:
        number, at = divmod(step, source.window)
        return window(number).part(slice(at * count, (at + 1) * count))

    return pick


def fill_windows(
    source: WindowedImages,
    stream: Stream,
    augment: Augment,
    count: int,
    steps: int,
    fresh: Callable[[], Batch],
) -> Fill:
    """Batches of `count` samples, their images read a window at a time."""
    mix = implementation("mix_images_out", "auto", torch.device("cpu"))
    labels, keep = stream.labels, stream.tables.keeps_labels
    pick = pick_windows(source, stream, count, steps)

    def fill(step: int, buffers: Batch | None) -> Batch:
        batch = buffers if buffers is not None else fresh()
        now = pick(step)
        for field, values in zip((batch.index, batch.partner, batch.lam, batch.group), now.drawn, strict=True):
            field.copy_(values)
        boxes, flips = augmented(source, stream, augment, step, count)
        mix(now.images, *now.place, batch.lam, source.mean, source.std, boxes, flips, batch.input)
        batch.label.copy_(labels.index_select(0, batch.index))
        batch.partner_label.copy_(batch.label if keep else labels.index_select(0, batch.partner))
        torch.autograd.graph.increment_version(batch.tensors())
        return batch

    return fill


def augmented(
    source: ImageSource, stream: Stream, augment: Augment, step: int, count: int
) -> tuple[Tensor | None, Tensor | None]:
    """Crop boxes `[B, 2, 4]` and flips `[B, 2]` of a batch, as the fused op draws them."""
    start, host = step * stream.batch_size + stream.first, host_module()
    height, width, _ = source.shape
    boxes = flips = None
    n = torch.arange(start, start + count)
    if augment.crop and host is not None:
        boxes = torch.from_numpy(host.boxes(stream.seed, start, count, height, width, *augment.scale, *augment.ratio))
    elif augment.crop:
        boxes = reference_draw.crop_boxes(n, stream.seed, height, width, augment.scale, augment.ratio)
    if augment.flip and host is not None:
        flips = torch.from_numpy(host.flips(stream.seed, start, count))
    elif augment.flip:
        packed, members = stream.tables.packed, stream.tables.members
        flips = reference_draw.flip_flags(reference_draw.draw(packed, members, stream.seed, start, count).flip_bits)
    return boxes, flips
