"""Finds invalid memory accesses and races of Triton kernels while the interpreter runs them.

A launch fails if
- an active lane accesses memory outside the arguments of the launch, or an argument whose elements have another size,
- two programs write to one address, or a program reads an address that a program of the launch writes,
- two lanes of one store write to one address.

The interpreter runs programs and lanes in order, so that the result would be right in spite of a race. Atomics may access
the same address. All programs may write to the argument `error_ptr`, because they write the same value.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from triton.runtime import interpreter

NOBODY, SEVERAL, ATOMIC = 0, -1, -2  # program numbers start at 1


@dataclasses.dataclass
class Argument:
    """A tensor argument of a launch.

    Attributes:
        name: name of the argument.
        begin: address of its first byte.
        end: address behind its last byte.
        itemsize: bytes of an element.
        base: address of its storage.
        writer: program that wrote the element that begins at each byte of the storage.
        reader: program that read it.
    """

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
    """The accesses of the current launch."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.kernel = ""
        self.arguments: list[Argument] = []

    def begin_launch(self, kernel: str, names: list[str], values: list[Any]) -> None:
        self.kernel, self.arguments = kernel, arguments_of(names, values)
        self.begins = [a.begin for a in self.arguments]

    @property
    def program(self) -> int:
        (x, y, z), (_, ny, nz) = self.builder.grid_idx, self.builder.grid_dim
        return int((x * ny + y) * nz + z) + 1

    def fail(self, argument: Argument, finding: str) -> None:
        raise AssertionError(f"{self.kernel}, program {self.builder.grid_idx}, {argument.name}: {finding}")

    def accessed(self, pointers: Any, mask: Any, verb: str) -> tuple[Argument, NDArray[np.int64]] | None:
        """The argument that the active lanes access, and their offsets in its storage. None if no lane is active."""
        addresses = pointers.data.reshape(-1)[np.broadcast_to(mask.data, pointers.data.shape).reshape(-1).astype(bool)]
        if not addresses.size:
            return None
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        low, high = int(addresses.min()), int(addresses.max()) + size
        position = bisect.bisect_right(self.begins, low)
        candidates = [a for a in self.arguments[:position] if high <= a.end and size == a.itemsize]
        if not candidates:
            names = ", ".join(f"{a.name} {a.begin:#x} to {a.end:#x}" for a in self.arguments if a.itemsize == size)
            raise AssertionError(
                f"{self.kernel}, program {self.builder.grid_idx}: {verb} {low:#x} to {high:#x}, "
                f"outside the arguments of {size} bytes per element ({names})"
            )
        # Any candidate will do: arguments that share a storage share its records.
        argument = candidates[-1]
        return argument, (addresses - np.uint64(argument.base)).astype(np.int64)

    def load(self, pointers: Any, mask: Any) -> None:
        accessed = self.accessed(pointers, mask, "reads")
        if accessed is None:
            return
        argument, offsets = accessed
        writers = argument.writer[offsets]
        if writers.any():
            writer = "the same program" if (writers == self.program).any() else "another program"
            self.fail(argument, f"reads an address that {writer} writes")
        readers = argument.reader[offsets]
        argument.reader[offsets] = np.where((readers == NOBODY) | (readers == self.program), self.program, SEVERAL)

    def store(self, pointers: Any, mask: Any, atomic: bool = False) -> None:
        accessed = self.accessed(pointers, mask, "writes")
        if accessed is None:
            return
        argument, offsets = accessed
        if argument.name == "error_ptr":
            return
        if not atomic and np.unique(offsets).size < offsets.size:
            self.fail(argument, "two lanes write to one address")
        writers, readers = argument.writer[offsets], argument.reader[offsets]
        if readers.any():
            self.fail(argument, "writes to an address that the launch reads")
        if ((writers != NOBODY) & (writers != (ATOMIC if atomic else self.program))).any():
            self.fail(argument, "writes to an address that another program writes")
        argument.writer[offsets] = ATOMIC if atomic else self.program


@contextmanager
def watching() -> Iterator[None]:
    """Check every launch of the interpreter inside this context.

    Also disables the interpreter's overflow checks, which take a third of its time.
    """
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    watch = Watch(builder)
    options, begin = builder.options, executor._init_args_hst
    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def launch(self: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        positional, named = begin(self, args, kwargs)
        names = [*self.arg_names[: len(positional)], *named]
        watch.begin_launch(self.fn.__name__, names, [*positional, *named.values()])
        return positional, named

    def watched_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        watch.load(pointers, mask)
        return load(pointers, mask, *rest)

    def watched_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.store(pointers, mask)
        return store(pointers, value, mask, *rest)

    def watched_rmw(op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.store(pointers, mask, atomic=True)
        return rmw(op, pointers, value, mask, *rest)

    def unsupported_cas(*arguments: Any) -> Any:
        raise NotImplementedError("atomic_cas is not checked, because no kernel uses it")

    builder.options = dataclasses.replace(options, sanitize_overflow=False)
    executor._init_args_hst = launch
    builder.create_masked_load, builder.create_masked_store = watched_load, watched_store
    builder.create_atomic_rmw, builder.create_atomic_cas = watched_rmw, unsupported_cas
    try:
        yield
    finally:
        builder.options, executor._init_args_hst = options, begin
        for name in ("masked_load", "masked_store", "atomic_cas", "atomic_rmw"):
            delattr(builder, f"create_{name}")


@pytest.fixture(autouse=True, scope="module")
def watched_kernels() -> Iterator[None]:
    """Check all launches of the tests in folders whose `conftest.py` imports this."""
    with watching():
        yield
