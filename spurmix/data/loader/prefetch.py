"""Background prefetch: one thread fills batches ahead of the consumer, in order, into a ring of buffers."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator

import torch

from spurmix.data.batch import Batch
from spurmix.data.loader.buffers import Ring

Fill = Callable[[int, Batch | None], Batch]
"""fill(step, buffers) -> batch: make batch number `step`, in `buffers` (or a part of them) or (None) in fresh memory."""

_FAILED = "making a batch failed; iterate over the loader again"


class _Shared:
    """State that consumer and thread share; the thread must not keep the consumer alive.

    Simple queues: they are fast, wake up for Ctrl-C, and may be used from finalizers.
    """

    def __init__(self, fill: Fill, steps: range) -> None:
        self.fill = fill
        self.steps = steps
        self.free: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self.ready: queue.SimpleQueue[tuple[Batch, Batch | None] | BaseException] = queue.SimpleQueue()
        self.stopped = False
        self.process = os.getpid()
        self.threads = torch.get_num_threads()


def _produce(shared: _Shared) -> None:
    # OpenMP counts threads per thread: the consumer's choice, however it was made, holds here too.
    if torch.get_num_threads() != shared.threads:
        torch.set_num_threads(shared.threads)
    for step in shared.steps:
        buffers = shared.free.get()
        if shared.stopped:
            return
        try:
            shared.ready.put((shared.fill(step, buffers), buffers))
        except BaseException as error:
            shared.ready.put(error)
            return


_forked = False  # whether this process was forked since


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _in_one_thread(fill: Fill) -> Fill:
    """`fill` without OpenMP: a fork loses its threads, and the thread that forked would wait for them for ever."""

    def alone(step: int, buffers: Batch | None) -> Batch:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return fill(step, buffers)
        finally:
            torch.set_num_threads(threads)

    return alone


def _stop(shared: _Shared, thread: threading.Thread | None) -> None:
    """End the thread and wait for it: at exit too, as a thread that is inside an op then would crash the interpreter."""
    shared.stopped = True
    if thread is None or shared.process != os.getpid():
        return  # a fork has neither the thread nor queues that are safe to touch
    shared.free.put(None)
    if thread is not threading.current_thread():  # where garbage collection happened to run
        thread.join()


class Prefetcher(Iterator[Batch]):
    """Batches of `steps`, made by a thread up to `prefetch` ahead of the one that is asked for; 0 makes them on demand,
    in the caller's thread (`prefetch` is not the ring's then: a batch lives as long as the ring says).

    Raises:
        RuntimeError: for a batch asked for after `close`, or in a process forked from the one that made the iterator.
        Exception: whatever making a batch raised; the iterator is closed then.
    """

    def __init__(self, fill: Fill, steps: range, ring: Ring, prefetch: int, debug: bool = False) -> None:
        threaded = prefetch > 0 and len(steps) > 0
        self._shared = shared = _Shared(_in_one_thread(fill) if _forked and not threaded else fill, steps)
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
            buffers = self._ring.take_back()
            batch = self._make(buffers)
        else:
            item = shared.ready.get()
            if isinstance(item, BaseException):
                self.close(_FAILED)
                try:
                    raise item
                finally:
                    del item  # its traceback holds this frame
            batch, buffers = item
            shared.free.put(self._ring.take_back())
        self._ring.hand_out(buffers)
        self._position += 1
        return batch

    def _make(self, buffers: Batch | None) -> Batch:
        try:
            return self._shared.fill(self._shared.steps[self._position], buffers)
        except BaseException:
            self.close(_FAILED)
            raise

    def close(self, reason: str = "this iterator was closed") -> None:
        """Stop the thread and wait for it; whoever asks for a further batch gets `reason`."""
        self._closed = self._closed or reason
        self._finalizer()
