"""A model of a GPU for tests without one.

Its streams are queues of work. The test decides in which order they run, within the limits that events set. Its tensors are
CPU tensors, and operations on them are queued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from spurmix.data import memory
from spurmix.ops import device_errors


class Streams:
    """The streams of a device.

    With `eager`, side streams run their work as early as events allow. Otherwise all work runs as late as possible.
    """

    def __init__(self, eager: bool = False) -> None:
        self.eager = eager
        self.consumer = Stream(self)
        self.side: list[Stream] = []
        self.current = self.consumer

    def Stream(self, device: torch.device) -> Stream:
        self.side.append(Stream(self))
        return self.side[-1]

    def Event(self) -> Event:
        return Event()

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def run(self, side_first: bool) -> None:
        """Run all work. If several streams are ready, the first one runs."""
        streams = [*self.side, self.consumer] if side_first else [self.consumer, *self.side]
        while any(s.done < len(s.work) for s in streams):
            next(s for s in streams if s.is_ready()).step()  # StopIteration means a deadlock

    def run_ahead(self) -> None:
        """Run all work of the side streams that is ready."""
        while any(s.is_ready() for s in self.side):
            next(s for s in self.side if s.is_ready()).step()


class Stream:
    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.work: list[tuple[Any, list[tuple[Stream, int]]]] = []
        self.waits: list[tuple[Stream, int]] = []
        self.done = 0

    def queue(self, work: Callable[[], object]) -> None:
        self.work.append((work, list(self.waits)))
        if self.streams.eager:
            self.streams.run_ahead()

    def wait_stream(self, other: Stream) -> None:
        self.waits.append((other, len(other.work)))

    def wait_event(self, event: Event) -> None:
        self.waits.append(event.at)

    def is_ready(self) -> bool:
        return self.done < len(self.work) and all(s.done >= n for s, n in self.work[self.done][1])

    def step(self) -> None:
        self.done += 1
        self.work[self.done - 1][0]()

    def run_to(self, count: int) -> None:
        """Run the first `count` items of work, and the work of other streams that they wait for."""
        while self.done < count:
            for other, needed in self.work[self.done][1]:
                other.run_to(needed)
            self.step()


class Event:
    at: tuple[Stream, int]

    def record(self, stream: Stream) -> None:
        self.at = (stream, len(stream.work))

    def synchronize(self) -> None:
        stream, count = self.at
        stream.run_to(count)


class Device(TorchFunctionMode):
    """A GPU. Tensors that a program creates on CUDA are marked CPU tensors.

    Operations that write to a marked tensor are queued on the current stream: in-place operations, copies to the device, and
    operators with output arguments.
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams = streams
        self.memory: dict[int, Tensor] = {}  # by address; keeps all tensors alive, so that addresses are unique
        self.copied = 0  # bytes copied from the host
        self.copies = 0  # number of copies from the host
        self._queue = _Queue(self)

    def here(self, tensor: Any) -> bool:
        """Whether a tensor is on the device."""
        return isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() in self.memory

    def mark(self, tensor: Tensor) -> Tensor:
        self.memory[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def __enter__(self) -> Any:
        self._queue.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._queue.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.is_cpu.__get__:  # type: ignore[attr-defined]
            return not self.here(args[0])
        if func is Tensor.is_pinned:
            return False
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if func is Tensor.to and _is_cuda(args[1]):
            made = self.mark(torch.empty_like(args[0]))
            made.copy_(args[0])
            return made
        if _is_cuda(kwargs.get("device")):
            return self.mark(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


class _Queue(TorchDispatchMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        writes = [k for k, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        if not writes or not any(map(self.device.here, args)):
            return func(*args, **kwargs)
        assert all(self.device.here(args[k]) for k in writes if k < len(args)), (
            f"{func} reads from the device and writes to the host"
        )
        if "copy_" in func.__name__ and not self.device.here(args[1]):
            self.device.copied += args[1].nbytes
            self.device.copies += 1
        # The work runs outside of both modes.
        self.device.streams.current.queue(lambda: _outside(func, args, kwargs))
        return args[0] if func._schema.returns else None


def _outside(func: Any, args: Any, kwargs: Any) -> None:
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


@contextmanager
def model_of_a_gpu(monkeypatch: pytest.MonkeyPatch, eager: bool) -> Iterator[Device]:
    """Replace CUDA by this model in the current thread."""
    streams = Streams(eager)
    for name in ("Stream", "Event", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(device_errors, "check", lambda device: None)
    monkeypatch.setattr(memory, "_register", lambda address, size: None)
    monkeypatch.setattr(memory, "_unregister", lambda address: None)
    with Device(streams) as device:
        yield device
