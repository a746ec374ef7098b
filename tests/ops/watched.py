"""Watches what Triton kernels do to memory while the interpreter runs them.

A finding fails the launch: an active lane outside the memory of the launch's arguments (or at one whose elements have another
size), two programs that write one place, a program that reads what another one writes or what it wrote itself, two lanes of
one store at one place. Programs of a launch have no order, nor have the lanes of one without a barrier, and the interpreter,
which runs all in turn, would give the right result all the same. Atomics may meet atomics. The argument `flag` may be written
by all: they write the same.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter

NOBODY, MANY, ATOMIC = 0, -1, -2  # beside the numbers of programs, from 1 on


@dataclasses.dataclass
class Argument:
    """A tensor of a launch: its bytes [begin, end), and who wrote and who read what begins at each byte from `base` on."""

    name: str
    begin: int
    end: int
    itemsize: int
    base: int
    writer: NDArray[np.int32]
    reader: NDArray[np.int32]


def arguments_of(names: list[str], values: list[Any]) -> list[Argument]:
    storages: dict[int, tuple[NDArray[np.int32], NDArray[np.int32]]] = {}
    found = []
    for name, value in zip(names, values, strict=False):
        if not isinstance(value, torch.Tensor) or value.numel() == 0:
            continue
        storage, begin = value.untyped_storage(), value.data_ptr()
        last = sum((extent - 1) * stride for extent, stride in zip(value.shape, value.stride(), strict=True))
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = (np.zeros(len(storage), np.int32), np.zeros(len(storage), np.int32))
        end = begin + (last + 1) * value.itemsize
        found.append(Argument(name, begin, end, value.itemsize, storage.data_ptr(), *storages[storage.data_ptr()]))
    return sorted(found, key=lambda a: a.begin)


class Watch:
    """The launch that runs, and what its programs did."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.kernel = ""
        self.arguments: list[Argument] = []

    def begin(self, kernel: str, names: list[str], values: list[Any]) -> None:
        self.kernel, self.arguments = kernel, arguments_of(names, values)
        self.begins = [a.begin for a in self.arguments]

    @property
    def program(self) -> int:
        (x, y, z), (_, ny, nz) = self.builder.grid_idx, self.builder.grid_dim
        return int((x * ny + y) * nz + z) + 1

    def fail(self, argument: Argument, what: str) -> None:
        raise AssertionError(f"{self.kernel}, program {self.builder.grid_idx}, {argument.name}: {what}")

    def touched(self, pointers: Any, mask: Any, verb: str) -> tuple[Argument, NDArray[np.int64]] | None:
        """The argument that the active lanes lie in, and their places in its storage; None where no lane is active."""
        addresses = pointers.data.reshape(-1)[np.broadcast_to(mask.data, pointers.data.shape).reshape(-1).astype(bool)]
        if not addresses.size:
            return None
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        low, high = int(addresses.min()), int(addresses.max()) + size
        at = bisect.bisect_right(self.begins, low)
        inside = [a for a in self.arguments[:at] if high <= a.end and size == a.itemsize]
        if not inside:
            names = ", ".join(f"{a.name} {a.begin:#x} to {a.end:#x}" for a in self.arguments if a.itemsize == size)
            raise AssertionError(
                f"{self.kernel}, program {self.builder.grid_idx}: {verb} {low:#x} to {high:#x}, "
                f"outside the arguments of {size} bytes an element ({names})"
            )
        # The nearest one: arguments that share a storage share what was done to it.
        argument = inside[-1]
        return argument, (addresses - np.uint64(argument.base)).astype(np.int64)

    def load(self, pointers: Any, mask: Any) -> None:
        touched = self.touched(pointers, mask, "reads")
        if touched is None:
            return
        argument, places = touched
        writers = argument.writer[places]
        if writers.any():
            own = bool((writers == self.program).any())
            self.fail(argument, f"reads what {'it wrote itself' if own else 'another one writes'}")
        readers = argument.reader[places]
        argument.reader[places] = np.where((readers == NOBODY) | (readers == self.program), self.program, MANY)

    def store(self, pointers: Any, mask: Any, atomic: bool = False) -> None:
        touched = self.touched(pointers, mask, "writes")
        if touched is None:
            return
        argument, places = touched
        if argument.name == "flag":
            return
        if not atomic and np.unique(places).size < places.size:
            self.fail(argument, "two lanes write one place")
        writers, readers = argument.writer[places], argument.reader[places]
        if readers.any():
            self.fail(argument, "writes what is read in the same launch")
        if ((writers != NOBODY) & (writers != (ATOMIC if atomic else self.program))).any():
            self.fail(argument, "writes what another one writes")
        argument.writer[places] = ATOMIC if atomic else self.program


@contextmanager
def watching() -> Iterator[None]:
    """Every launch of the interpreter is watched; and it leaves out the arithmetic in 64 bits that only debugging uses, a
    third of its time."""
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    watch = Watch(builder)
    options, begin = builder.options, executor._init_args_hst
    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def launch(self: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        there, named = begin(self, args, kwargs)
        watch.begin(self.fn.__name__, [*self.arg_names[: len(there)], *named], [*there, *named.values()])
        return there, named

    def loads(pointers: Any, mask: Any, *rest: Any) -> Any:
        watch.load(pointers, mask)
        return load(pointers, mask, *rest)

    def stores(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.store(pointers, mask)
        return store(pointers, value, mask, *rest)

    def adds(op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.store(pointers, mask, atomic=True)
        return rmw(op, pointers, value, mask, *rest)

    def swaps(*arguments: Any) -> Any:
        raise NotImplementedError("no kernel uses atomic_cas, so it is not watched")

    builder.options = dataclasses.replace(options, sanitize_overflow=False)
    executor._init_args_hst = launch
    builder.create_masked_load, builder.create_masked_store = loads, stores
    builder.create_atomic_rmw, builder.create_atomic_cas = adds, swaps
    try:
        yield
    finally:
        builder.options, executor._init_args_hst = options, begin
        for name in ("masked_load", "masked_store", "atomic_cas", "atomic_rmw"):
            delattr(builder, f"create_{name}")
