"""Background prefetch: one thread makes batches ahead of the consumer, in order, in a ring of buffers."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator

import torch

from spurmix.data.batch import Batch
from spurmix.data.loader.buffers import BufferRing

MakeBatch = Callable[[int, Batch | None], Batch]
"""make_batch(step, buffers): make batch number `step` in `buffers` or a part of them, or in fresh memory if it is None."""

_FAILED = "making a batch failed; iterate over the loader again"


class _Shared:
    """State shared by the consumer and the thread. It must not refer to the consumer, so that the consumer can be deleted.

    Simple queues are fast, can be interrupted by Ctrl-C, and are safe to use in finalizers.
    """

    def __init__(self, make_batch: MakeBatch, steps: range) -> None:
        self.make_batch = make_batch
        self.steps = steps
        self.free: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self.ready: queue.SimpleQueue[tuple[Batch, Batch | None] | BaseException] = queue.SimpleQueue()
        self.stopped = False
        self.process = os.getpid()
        self.threads = torch.get_num_threads()


def _produce(shared: _Shared) -> None:
    # The number of OpenMP threads is a setting of each thread, so the consumer's setting is copied here.
    if torch.get_num_threads() != shared.threads:
        torch.set_num_threads(shared.threads)
    for step in shared.steps:
        buffers = shared.free.get()
        if shared.stopped:
            return
        try:
            shared.ready.put((shared.make_batch(step, buffers), buffers))
        except BaseException as error:  # the consumer raises it; otherwise it would wait forever
            shared.ready.put(error)
            return


_forked = False  # whether this process is a fork


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _in_one_thread(make_batch: MakeBatch) -> MakeBatch:
    """Run `make_batch` without OpenMP. A fork has no OpenMP threads, and would wait for them forever."""

    def single_threaded(step: int, buffers: Batch | None) -> Batch:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return make_batch(step, buffers)
        finally:
            torch.set_num_threads(threads)

    return single_threaded


def _stop(shared: _Shared, thread: threading.Thread | None) -> None:
    """End the thread and wait for it, also at exit, because a thread inside an op crashes the exiting interpreter."""
    shared.stopped = True
    if thread is None or shared.process != os.getpid():
        return  # a fork has no such thread, and its queues are not safe to use
    shared.free.put(None)
    if thread is not threading.current_thread():  # garbage collection may run in the thread itself
        thread.join()


class Prefetcher(Iterator[Batch]):
    """Iterates over batches. A thread makes up to `prefetch` batches ahead of the consumer.

    Args:
        make_batch: Makes a batch.
        steps: Numbers of the batches.
        ring: Recycles the buffers and determines how long a batch stays valid.
        prefetch: Batches made ahead. 0 makes them on demand in the caller's thread.
        debug: Poison buffers when their lifetime ends.

    Raises:
        RuntimeError: If a batch is requested after `close`, or in a process forked from the one that made the iterator.
        Exception: Any exception that making a batch raised. The iterator is closed then.
    """

    def __init__(
        self, make_batch: MakeBatch, steps: range, ring: BufferRing, prefetch: int, debug: bool = False
    ) -> None:
        threaded = prefetch > 0 and len(steps) > 0
        self._shared = shared = _Shared(_in_one_thread(make_batch) if _forked and not threaded else make_batch, steps)
        self._ring = ring
        self._position = 0
        self._closed = ""
        for buffers in ring.restart(debug):
            shared.free.put(buffers)
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=_produce, args=(shared,), name="spurmix-prefetch", daemon=True)
            self._thread.start()
        self._finalizer = weakref.finalize(self, _stop, shared, self._thread)

    def __next__(self) -> Batch:
        shared = self._shared
        if shared.process != os.getpid():
            raise RuntimeError("this iterator was made before a fork; iterate over the loader again in the new process")
        if self._closed:
            raise RuntimeError(self._closed)
        if self._position == len(shared.steps):
            raise StopIteration
        if self._thread is None:
            buffers = self._ring.reclaim()
            batch = self._make_now(buffers)
        else:
            item = shared.ready.get()
            if isinstance(item, BaseException):
                self.close(_FAILED)
                try:
                    raise item
                finally:
                    del item  # its traceback holds this frame
            batch, buffers = item
            shared.free.put(self._ring.reclaim())
        self._ring.deliver(buffers)
        self._position += 1
        return batch

    def _make_now(self, buffers: Batch | None) -> Batch:
        try:
            return self._shared.make_batch(self._shared.steps[self._position], buffers)
        except BaseException:  # after Ctrl-C too, the buffers are incomplete
            self.close(_FAILED)
            raise

    def close(self, reason: str = "this iterator was closed") -> None:
        """Stop the thread and wait for it. Requests for more batches raise RuntimeError with `reason`."""
        self._closed = self._closed or reason
        self._finalizer()
