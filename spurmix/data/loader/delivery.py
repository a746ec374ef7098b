"""Delivers the batches of a loader: buffers, prefetch thread, side stream, and the copy to the device."""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Iterator

from spurmix.data.batch import Batch
from spurmix.data.loader.batch_maker import BatchMaker
from spurmix.data.loader.buffers import BufferRing
from spurmix.data.loader.cuda_stream import SideStream
from spurmix.data.loader.host_gather import DeviceMixer
from spurmix.data.loader.prefetch import Prefetcher
from spurmix.data.loader.strategy import BatchStrategy
from spurmix.ops import device_errors


class BatchDelivery:
    """Runs the iterations of a loader, one at a time, in buffers that all iterations share.

    Args:
        strategy: How batches are made.
        prefetch: Number of batches made ahead of the consumer.
        copy: Whether batches are in fresh memory instead of recycled buffers.
    """

    def __init__(self, strategy: BatchStrategy, prefetch: int, copy: bool) -> None:
        self._strategy, self._prefetch, self._copy = strategy, prefetch, copy
        self._device = strategy.device
        self._active: weakref.ref[Prefetcher] | None = None
        self._side: weakref.ref[SideStream] | None = None
        self._mixer: DeviceMixer | None = None
        self._ring: BufferRing | None = None

    @property
    def _ahead(self) -> int:
        """Number of batches that a side stream makes or copies ahead."""
        return max(1, self._prefetch) if self._strategy.gpu_reads_host else 1

    def start(self, maker: BatchMaker, steps: range) -> Prefetcher:
        """Start to make batches. `stop` must have ended the previous iteration.

        Args:
            maker: Makes a batch.
            steps: Numbers of the batches.

        Returns:
            The batches, on the device where they are made.
        """
        strategy, lifetime = self._strategy, max(1, self._prefetch)
        on_gpu = strategy.input_device.type == "cuda"
        if self._ring is None:
            reuse = strategy.gathers or not self._copy
            # Buffers of the consumer, and of the batches that a side stream makes in advance.
            held = lifetime + self._ahead if strategy.gpu_reads_host else self._prefetch
            self._ring = BufferRing(strategy.reusable_buffers if reuse else lambda: None, held, ahead=not on_gpu)
        debug = os.environ.get("SPURMIX_DEBUG_RING", "0") not in ("", "0")
        if strategy.gathers:
            if self._mixer is None:
                self._mixer = strategy.reusing_mixer(lifetime + self._ahead, not self._copy)
            self._mixer.ring.restart(debug)
        batches = Prefetcher(maker, steps, self._ring, 0 if on_gpu else self._prefetch, debug)
        self._active = weakref.ref(batches)
        return batches

    def to_device(self, batches: Prefetcher) -> Generator[Batch, None, None]:
        """Yield `batches` on the loader's device. Closing the generator ends them."""
        delivered = self._on_device(batches)
        try:
            for batch in delivered:
                yield batch.detached()
            device_errors.check(self._device)
        finally:
            if isinstance(delivered, SideStream):
                delivered.close()
            batches.close()

    def _on_device(self, batches: Prefetcher) -> Iterator[Batch]:
        strategy = self._strategy
        if self._device.type == "cuda" and (strategy.gpu_reads_host or strategy.input_device.type == "cpu"):
            produced = batches if strategy.gpu_reads_host else self._copied(batches)
            ring = self._mixer.ring if self._mixer is not None else self._ring if strategy.gpu_reads_host else None
            side = SideStream(produced, self._device, self._ahead, ring)
            self._side = weakref.ref(side)
            return side
        return self._copied(batches) if strategy.input_device != self._device else batches

    def _copied(self, batches: Prefetcher) -> Iterator[Batch]:
        """Copy batches to their device. Pinned buffers are kept until their copy is complete."""
        strategy = self._strategy
        waits = strategy.pin_memory and (strategy.gathers or not self._copy) and self._device.type == "cuda"
        for batch in batches:
            there = self._mixer(batch) if self._mixer is not None else batch.to(self._device, non_blocking=True)
            if waits:
                assert self._ring is not None
                self._ring.record_copy(self._device)
            yield there

    def stop(self, reason: str) -> None:
        """End the current iteration. Its next request for a batch raises RuntimeError with `reason`."""
        active = self._active() if self._active is not None else None
        if active is not None:
            active.close(reason)
        side = self._side() if self._side is not None else None
        if side is not None:
            side.close()
        self._active = self._side = None
