"""Kernels with a small list of configurations: the fastest is found on the first call of a shape class and kept on disk.

The interpreter takes the first configuration. `offline` compiles all of them for a GPU that is not there. Triton's own
autotuner is not used: it keys on exact sizes, measures inside a graph capture, and holds no name of the device.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import triton
from triton.backends import DriverBase
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError

Grid = Callable[[dict[str, Any]], tuple[int, ...]]


@dataclass(frozen=True)
class Compiled:
    """What `offline` made: a kernel's configuration for a capability, and Triton's result."""

    kernel: str
    constants: dict[str, Any]
    options: dict[str, Any]
    result: Any


@dataclass(frozen=True)
class Choice:
    """A configuration that was measured, or found on disk (then `measured` is False)."""

    kernel: str
    key: str
    options: dict[str, Any]
    milliseconds: float
    measured: bool


_offline: list[Compiled] | None = None
_every = True
_lock = threading.Lock()
choices: list[Choice] = []
"""What this process chose so far."""


def cache_folder() -> Path:
    """Where choices are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spurmix" / "triton"


class _Elsewhere(DriverBase):
    """Stands for a GPU that is not there, so that Triton compiles for it."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing runs here")

    def get_current_device(self) -> int:
        return -int(self._target.arch)  # a number no GPU has: compiled kernels are kept by it

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def offline(capability: int, every: bool = True) -> Iterator[list[Compiled]]:
    """Inside, launches on meta tensors compile every configuration (or the defaults) for a capability such as 90, and run
    nothing.

    Triton keeps the results in its cache, where a process with such a GPU finds them.
    """
    global _offline, _every
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 makes Triton interpret kernels; unset it to compile them")
    active = triton.runtime.driver._active
    triton.runtime.driver.set_active(_Elsewhere(capability))
    _offline, _every = [], every
    try:
        yield _offline
    finally:
        _offline = None
        triton.runtime.driver._active = active


def size_class(size: int) -> int:
    """Sizes are tuned by powers of two."""
    return triton.next_power_of_2(max(1, size))


class Tuned:
    """A kernel and its configurations, the default first. Kernels that add to their outputs have one only.

    Every configuration serves every shape, and all give the same result up to the order of sums.
    """

    def __init__(self, kernel: Any, configs: Sequence[triton.Config]) -> None:
        self.kernel, self.configs = kernel, tuple(configs)
        self._constants = [dict(c.kwargs) for c in self.configs]
        self._options = [dict(c.all_kwargs()) for c in self.configs]
        self._chosen: dict[Any, int] = {}

    def __call__(self, device: torch.device, key: tuple[Any, ...], grid: Grid, *args: Any, **constants: Any) -> None:
        """Launch on `device`. `key`: what the choice may depend on, hashable and short as text."""
        if device.type == "meta":
            return self._compile(args, constants)
        if device.type == "cpu":  # the interpreter
            self.kernel[grid(self._constants[0])](*args, **constants, **self._constants[0])
            return
        other = device.index is not None and device.index != torch.cuda.current_device()
        with torch.cuda.device(device) if other else nullcontext():
            at = self._chosen.get((device.index, key)) if len(self.configs) > 1 else 0
            if at is None:
                at = self._choose(device, key, grid, args, constants)
            self.kernel[grid(self._constants[at])](*args, **constants, **self._options[at])

    def _compile(self, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
        if _offline is None:
            raise RuntimeError("meta tensors are for compiling ahead of time, inside offline()")
        for options in self._options if _every else self._options[:1]:
            result = self.kernel.warmup(*args, grid=(1,), **constants, **options)
            _offline.append(Compiled(self.kernel.__name__, constants, options, result))

    def _choose(
        self, device: torch.device, key: tuple[Any, ...], grid: Grid, args: tuple[Any, ...], constants: dict[str, Any]
    ) -> int:
        """Number of the configuration to use: from disk, else measured; the default where nothing can be measured."""
        if os.environ.get("SPURMIX_AUTOTUNE") == "0" or torch.cuda.is_current_stream_capturing():
            return 0
        with _lock:
            path, name = self._file(device), ", ".join(map(str, key))
            kept = _read(path)
            at, measured = self._kept(kept.get(name)), False
            if at is None:
                try:
                    times = [self._time(c, grid, args, constants) for c in range(len(self.configs))]
                except torch.OutOfMemoryError:  # measuring flushes the cache by a buffer of its own
                    return 0
                at, measured = min(range(len(times)), key=times.__getitem__), True
                kept[name] = {"options": self._options[at], "milliseconds": times[at]}
                _write(path, kept)
            self._chosen[device.index, key] = at
            choices.append(Choice(self.kernel.__name__, name, self._options[at], kept[name]["milliseconds"], measured))
        return at

    def _kept(self, entry: Any) -> int | None:
        """The number of a configuration read from disk, if it is one."""
        if isinstance(entry, dict) and isinstance(entry.get("milliseconds"), float):
            for at, options in enumerate(self._options):
                if options == entry.get("options"):
                    return at
        return None

    def _time(self, at: int, grid: Grid, args: tuple[Any, ...], constants: dict[str, Any]) -> float:
        """Median milliseconds with a cold cache; infinite where this device cannot run the configuration."""

        def run() -> None:
            self.kernel[grid(self._constants[at])](*args, **constants, **self._options[at])

        try:
            return float(triton.testing.do_bench(run, warmup=5, rep=30, return_mode="median"))
        except (OutOfResources, PTXASError, CompileTimeAssertionFailure):
            return float("inf")

    def _file(self, device: torch.device) -> Path:
        """One file for a kernel's source, its configurations, the device and the versions that compile it."""
        properties = torch.cuda.get_device_properties(device)
        about = (
            properties.name, properties.major, properties.minor, triton.__version__, torch.version.cuda,
            self.kernel.cache_key, self._options,
        )  # fmt: skip
        digest = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        return cache_folder() / f"{self.kernel.__name__}-{digest}.json"


def _read(path: Path) -> dict[str, Any]:
    """Choices of a file; none where it is missing or not what `_write` wrote."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write(path: Path, kept: dict[str, Any]) -> None:
    """Keep choices, if the folder can be written: not being able to costs time, nothing else."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(kept, indent=1) + "\n")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
