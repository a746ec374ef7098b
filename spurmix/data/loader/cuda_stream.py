"""Batches on a GPU: made ahead on a stream of their own, or into one set of buffers that a CUDA graph can refill."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, cuda

from spurmix.data.batch import Batch
from spurmix.data.loader.buffers import Ring
from spurmix.data.sources.arrays import ImageSource, Source
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops import validate

Refill = Callable[[Tensor, Batch], None]
"""refill(counter, batch): the samples from the number in `counter`, int64 `[1]` on the device, on into `batch`."""


def delivery_device(source: Source, device: torch.device | str | None) -> torch.device:
    """Where batches go, with the number of a GPU filled in.

    Raises:
        ValueError: where CUDA is not available, or the source lies on another GPU.
    """
    wanted = validate.device(device) if device is not None else source.device
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: {wanted} was asked for, but CUDA is not available here")
        if wanted.index is None:
            wanted = torch.device("cuda", torch.cuda.current_device())
    if source.device.type == "cuda" and source.device != wanted:
        raise ValueError(f"device: batches are to go to {wanted}, but the source is on {source.device}; move it there")
    return wanted


def reads_host(source: Source, device: torch.device) -> bool:
    """Whether kernels on `device` read the source where it is: pinned images of the host."""
    if device.type != "cuda" or not isinstance(source, ImageSource) or isinstance(source, WindowedImages):
        return False
    return source.device.type == "cpu" and source.images.is_pinned()


class SideStream(Iterator[Batch]):
    """What `produce` queues on a stream of its own, `ahead` batches before they are asked for.

    The consumer's current stream waits for a batch before it is handed out; the side stream waits for what the consumer
    has queued by then before it makes another one, so that buffers are refilled only after they were used.

    Args:
        produce: queues a batch on the current stream; raises StopIteration after the last.
        ring: what the batches' buffers on the device come from, if they are reused.
    """

    def __init__(self, produce: Iterator[Batch], device: torch.device, ahead: int, ring: Ring | None = None) -> None:
        self._produce, self._device, self._ahead, self._ring = produce, device, ahead, ring
        self._stream = cuda.Stream(device)
        self._queued: deque[tuple[Batch, cuda.Event]] = deque()

    def _queue(self) -> None:
        self._stream.wait_stream(cuda.current_stream(self._device))
        with cuda.stream(self._stream):
            batch = next(self._produce, None)
            if batch is not None:
                done = cuda.Event()
                done.record(self._stream)
                self._queued.append((batch, done))

    def __next__(self) -> Batch:
        while len(self._queued) <= self._ahead:
            before = len(self._queued)
            self._queue()
            if len(self._queued) == before:
                break
        if not self._queued:
            raise StopIteration
        batch, done = self._queued.popleft()
        consumer = cuda.current_stream(self._device)
        consumer.wait_event(done)
        for tensor in batch.tensors():
            tensor.record_stream(consumer)  # memory that is freed while the consumer's work is still queued
        return batch

    def close(self) -> None:
        """Let the consumer's stream wait for what is queued here: what both use may be freed or used anew after that."""
        cuda.current_stream(self._device).wait_stream(self._stream)
        if self._ring is not None:
            self._ring.unused(len(self._queued))
        self._queued.clear()


class StaticBatch:
    """One set of buffers, and a call that refills them with the next batch of the loader's sequence.

    The number of the batch is kept on the device, so a CUDA graph that captured the call, and the training step after
    it, makes the next batch at each replay:

        >>> static = loader.static_batch()  # doctest: +SKIP
        >>> with torch.cuda.graph(graph): step(static())  # doctest: +SKIP
        >>> for _ in range(len(loader)): graph.replay()  # doctest: +SKIP

    Calling it, or replaying, beyond the end of the run continues the sequence.

    Attributes:
        batch: the buffers. counter: int64 `[1]`, number of the sample the next call begins with, on the device.
    """

    def __init__(self, batch: Batch, refill: Refill, device: torch.device, batch_size: int, step: int) -> None:
        self.batch = batch
        self._refill, self._batch_size = refill, batch_size
        self.counter = torch.tensor([step * batch_size], device=device)
        # Once now: the first call compiles, tunes and allocates, none of which a graph may capture.
        refill(self.counter, batch)

    def __call__(self) -> Batch:
        """The next batch, in the same memory as the one before."""
        self._refill(self.counter, self.batch)
        self.counter.add_(self._batch_size)
        return self.batch

    def set_step(self, step: int) -> None:
        """Continue with batch number `step`."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}")
        self.counter.fill_(step * self._batch_size)
