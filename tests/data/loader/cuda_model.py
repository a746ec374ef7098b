"""A model of CUDA's streams: queues of work that run whenever their events allow, in an order of the test's choice; and of
a GPU, whose tensors lie on the CPU: what is done to them is queued."""

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
from spurmix.ops import flags


class Streams:
    """The streams of a device; with `eager` those at the side run on as soon as they may, else no work runs before it must."""

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
        """Run all work; of two streams that could go on, always the same one."""
        streams = [*self.side, self.consumer] if side_first else [self.consumer, *self.side]
        while any(s.done < len(s.work) for s in streams):
            next(s for s in streams if s.may_go_on()).step()  # StopIteration: they wait for each other

    def run_ahead(self) -> None:
        """Run what the side streams may."""
        while any(s.may_go_on() for s in self.side):
            next(s for s in self.side if s.may_go_on()).step()


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

    def may_go_on(self) -> bool:
        return self.done < len(self.work) and all(s.done >= n for s, n in self.work[self.done][1])

    def step(self) -> None:
        self.done += 1
        self.work[self.done - 1][0]()

    def run_to(self, count: int) -> None:
        """Run `count` of the work and what it waits for."""
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
    """Tensors asked for on CUDA are made on the CPU, marked, and whatever touches a marked one is queued on the current
    stream: in-place operations, copies to the device, operators that write."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams = streams
        self.memory: dict[int, Tensor] = {}  # by address; kept, so that no address comes twice
        self.copied = 0  # bytes from the host
        self.copies = 0  # transfers from the host
        self._queue = _Queue(self)

    def here(self, tensor: Any) -> bool:
        """Whether a tensor is the device's."""
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
            f"{func} writes from the device to the host"
        )
        if "copy_" in func.__name__ and not self.device.here(args[1]):
            self.device.copied += args[1].nbytes
            self.device.copies += 1
        # The work runs outside of both modes, whoever makes it run.
        self.device.streams.current.queue(lambda: _outside(func, args, kwargs))
        return args[0] if func._schema.returns else None


def _outside(func: Any, args: Any, kwargs: Any) -> None:
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


@contextmanager
def model_of_a_gpu(monkeypatch: pytest.MonkeyPatch, eager: bool) -> Iterator[Device]:
    """CUDA as this model has it, for this thread."""
    streams = Streams(eager)
    for name in ("Stream", "Event", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(streams, name))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(flags, "check", lambda device: None)
    monkeypatch.setattr(memory, "_register", lambda address, size: None)
    monkeypatch.setattr(memory, "_unregister", lambda address: None)
    with Device(streams) as device:
        yield device
