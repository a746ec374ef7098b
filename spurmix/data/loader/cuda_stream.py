"""Batches on a GPU: made in advance on a side stream, or in one set of buffers for a CUDA graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, cuda

from spurmix.data.batch import Batch
from spurmix.data.loader.buffers import BufferRing
from spurmix.data.sources.arrays import ImageSource, Source
from spurmix.data.sources.windowed import WindowedImages

WriteAt = Callable[[Tensor, Batch], None]
"""write(counter, batch): make the batch of the samples from the number in `counter` (int64 `[1]`, on the device) on."""


def gpu_reads_host(source: Source, device: torch.device) -> bool:
    """Whether kernels on `device` read the source in host memory, because its images are pinned."""
    if device.type != "cuda" or not isinstance(source, ImageSource) or isinstance(source, WindowedImages):
        return False
    return source.device.type == "cpu" and source.images.is_pinned()


class SideStream(Iterator[Batch]):
    """Runs `produce` on a side stream, `ahead` batches before the consumer requests them.

    The consumer's current stream waits for a batch before receiving it. Before the side stream
    makes another batch, it waits for the work that the consumer has queued. Buffers are therefore rewritten only after use.

    Args:
        produce: Queues a batch on the current stream.
        device: The GPU.
        ahead: Number of batches queued ahead.
        ring: Ring of the batches' buffers on the device, if they are reused.
    """

    def __init__(
        self, produce: Iterator[Batch], device: torch.device, ahead: int, ring: BufferRing | None = None
    ) -> None:
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
            tensor.record_stream(consumer)  # the memory may be freed while work of the consumer is still queued
        return batch

    def close(self) -> None:
        """Let the consumer's stream wait for the side stream. Afterwards, shared memory can be freed or reused."""
        cuda.current_stream(self._device).wait_stream(self._stream)
        if self._ring is not None:
            self._ring.withdraw(len(self._queued))
        self._queued.clear()


class StaticBatch:
    """One set of buffers and a call that writes the loader's next batch into them.

    The sample number is kept on the device. A CUDA graph that captures the call makes the next batch at each replay.
    Calling it, or replaying the graph, beyond the end of the run continues the sequence.

    Args:
        batch: The buffers.
        write: Makes a batch in them.
        device: Device of the buffers.
        batch_size: Global batch size.
        step: Number of the first batch.

    Attributes:
        batch: The buffers, always the same memory.
        counter: int64 `[1]` on the device, number of the first sample of the next global batch.

    Example:
        >>> static = loader.static_batch()  # doctest: +SKIP
        >>> with torch.cuda.graph(graph):  # doctest: +SKIP
        ...     train_step(static())
        >>> for _ in range(len(loader)):  # doctest: +SKIP
        ...     graph.replay()
    """

    def __init__(self, batch: Batch, write: WriteAt, device: torch.device, batch_size: int, step: int) -> None:
        self.batch = batch
        self._write, self._batch_size = write, batch_size
        self.counter = torch.tensor([step * batch_size], device=device)
        # The first call compiles, tunes and allocates, which a graph cannot capture.
        write(self.counter, batch)

    def __call__(self) -> Batch:
        """Make the next batch.

        Returns:
            The batch, in the same memory as the previous one.
        """
        self._write(self.counter, self.batch)
        self.counter.add_(self._batch_size)
        return self.batch

    def set_step(self, step: int) -> None:
        """Continue with batch number `step`.

        Args:
            step: Number of the batch, 0 or more.

        Raises:
            ValueError: If `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}")
        self.counter.fill_(step * self._batch_size)
