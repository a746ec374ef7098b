"""Background prefetch: one thread fills batches ahead of the consumer, in order, into a ring of buffers."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator

from spurmix.data.batch import Batch

Fill = Callable[[int, Batch | None], Batch]
"""fill(step, buffers) -> batch: make batch number `step`, in `buffers` or (None) in fresh memory."""


class _Shared:
    """State that consumer and thread share; the thread must not keep the consumer alive."""

    def __init__(self, fill: Fill, steps: range, ring: list[Batch | None], ahead: int) -> None:
        self.fill = fill
        self.steps = steps
        self.ring = ring
        self.ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self.room = threading.Semaphore(ahead)
        self.stopped = threading.Event()

    def stop(self) -> None:
        self.stopped.set()
        self.room.release()


def _produce(shared: _Shared) -> None:
    for position, step in enumerate(shared.steps):
        shared.room.acquire()
        if shared.stopped.is_set():
            return
        try:
            shared.ready.put(shared.fill(step, shared.ring[position % len(shared.ring)]))
        except BaseException as error:
            shared.ready.put(error)
            return


class Prefetcher(Iterator[Batch]):
    """Batches of `steps`, made up to `prefetch` ahead of the one that is asked for.

    With P = prefetch the ring has 2 P + 1 buffers: P that the consumer may still use, P that are ready, and one that is
    being filled. P = 0 fills on demand, without a thread.
    """

    def __init__(self, fill: Fill, steps: range, ring: list[Batch | None], prefetch: int) -> None:
        self._remaining = len(steps)
        self._shared = _Shared(fill, steps, ring, prefetch + 1)
        self._position = 0
        self._thread: threading.Thread | None = None
        if prefetch > 0 and steps:
            self._thread = threading.Thread(target=_produce, args=(self._shared,), name="spurmix-prefetch", daemon=True)
            self._thread.start()
        self._finalizer = weakref.finalize(self, self._shared.stop)

    def __next__(self) -> Batch:
        if self._remaining == 0 or self._shared.stopped.is_set():
            raise StopIteration
        if self._thread is None:
            shared = self._shared
            item: Batch | BaseException = shared.fill(
                shared.steps[self._position], shared.ring[self._position % len(shared.ring)]
            )
        else:
            item = self._shared.ready.get()
            self._shared.room.release()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._position += 1
        self._remaining -= 1
        return item

    def close(self) -> None:
        """Stop the thread and wait for it; the iterator ends."""
        self._finalizer()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
