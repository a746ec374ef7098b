"""Plans of the images of a batch: windows of a file that are read in advance, or images in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spurmix.data.batch import Batch
from spurmix.data.loader.sequence import Samples, SampleSequence, direct_draw
from spurmix.data.sources.arrays import ImageSource
from spurmix.data.sources.windowed import WindowedImages


@dataclass(frozen=True)
class PlannedImages:
    """The samples of some batches, and their images.

    Attributes:
        images: uint8 `[K, H, W, C]`.
        samples: index, partner, lam and group of each sample.
        place: Rows of `images` that hold index and partner of each sample, int64 `[B]` each.
    """

    images: Tensor
    samples: Samples
    place: tuple[Tensor, Tensor]

    def part(self, part: slice) -> PlannedImages:
        """Select some of the samples."""
        (index, partner, lam, group), (rows, partner_rows) = self.samples, self.place
        return PlannedImages(
            self.images, (index[part], partner[part], lam[part], group[part]), (rows[part], partner_rows[part])
        )


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch of planned images that is not yet written.

    Attributes:
        images: The samples and their images.
        step: Number of the batch.
        new_batch: Allocates the buffers of the batch.
        write_images: Writes the input from the planned images, the step and the batch, and returns the batch.
    """

    images: PlannedImages
    step: int
    new_batch: Callable[[], Batch]
    write_images: Callable[[PlannedImages, int, Batch], Batch]

    @property
    def samples(self) -> Samples:
        """index, partner, lam and group of each sample."""
        return self.images.samples

    def buffers(self, reused: Batch | None) -> Batch:
        """Return the reused buffers, or fresh ones."""
        return reused if reused is not None else self.new_batch()

    def write(self, batch: Batch) -> Batch:
        """Write the input of the batch."""
        return self.write_images(self.images, self.step, batch)


class MemoryPlan:
    """Samples of each batch, with all images of a source in memory."""

    def __init__(self, source: ImageSource, sequence: SampleSequence) -> None:
        self._images, self._draw = source.images, direct_draw(sequence)

    def __call__(self, step: int) -> PlannedImages:
        """Draw the samples of batch `step`."""
        samples = self._draw(step)
        return PlannedImages(self._images, samples, samples[:2])


class WindowPlan:
    """Samples of each batch, with their images read from a file one window of batches at a time.

    The next window is read in the background. The images of a batch stay valid until the next call.
    """

    def __init__(self, source: WindowedImages, sequence: SampleSequence, steps: int) -> None:
        self._source, self._count, self._steps = source, sequence.count, steps
        self._draw = direct_draw(sequence)
        self._size = source.batches(self._count, steps)
        self._memory = [source.buffer(2 * self._count * self._size) for _ in range(2)]
        self._ahead: dict[int, Future[PlannedImages]] = {}
        self._current: dict[int, PlannedImages] = {}
        self._start_reader()

    def __call__(self, step: int) -> PlannedImages:
        """Return the samples and images of batch `step`."""
        number, at = divmod(step, self._size)
        return self._window(number).part(slice(at * self._count, (at + 1) * self._count))

    def _start_reader(self) -> None:
        self._reader, self._process = ThreadPoolExecutor(1, "spurmix-window"), os.getpid()

    def _read(self, number: int) -> PlannedImages:
        steps = range(number * self._size, min((number + 1) * self._size, self._steps))
        index, partner, lam, group = (torch.cat(column) for column in zip(*(self._draw(k) for k in steps), strict=True))
        rows, place = np.unique(torch.cat([index, partner]).numpy(), return_inverse=True)
        images, places = self._source.read(rows, self._memory[number % 2])
        of_index, of_partner = places[torch.from_numpy(place)].chunk(2)
        return PlannedImages(images, (index, partner, lam, group), (of_index, of_partner))

    def _window(self, number: int) -> PlannedImages:
        if self._process != os.getpid():  # a forked process has no reader thread, and the window may be incomplete
            self._start_reader()
            self._ahead.clear()
            self._current.clear()
        if number not in self._current:
            waiting = self._ahead.pop(number, None)
            for other in self._ahead.values():  # the loader has left this position, and the memory is required now
                if not other.cancel():
                    other.exception()
            self._ahead.clear()
            self._current.clear()
            self._current[number] = waiting.result() if waiting is not None else self._read(number)
            if (number + 1) * self._size < self._steps:
                self._ahead[number + 1] = self._reader.submit(self._read, number + 1)
        return self._current[number]


def plan_images(source: ImageSource, sequence: SampleSequence, steps: int) -> MemoryPlan | WindowPlan:
    """Choose the plan for a source."""
    if isinstance(source, WindowedImages):
        return WindowPlan(source, sequence, steps)
    return MemoryPlan(source, sequence)
