"""Autotuning: the first call for a class of shapes measures a few configurations; the choice is cached on disk.

The interpreter takes the first configuration. `offline` compiles all of them without a GPU. `triton.autotune` does not
fit: its keys are exact sizes, it measures during a CUDA graph capture, and its cache does not separate devices.
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
    """A configuration that `offline` compiled, and Triton's result."""

    kernel: str
    constants: dict[str, Any]
    options: dict[str, Any]
    result: Any


@dataclass(frozen=True)
class Choice:
    """A chosen configuration. `measured` is False if it comes from the cache on disk."""

    kernel: str
    key: str
    options: dict[str, Any]
    milliseconds: float
    measured: bool


_offline: list[Compiled] | None = None
_all_configs = True
_lock = threading.Lock()
choices: list[Choice] = []
"""Choices of this process so far."""


def cache_folder() -> Path:
    """Return the folder that caches the choices."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spurmix" / "triton"


class _OfflineDriver(DriverBase):
    """Describes a GPU that is not present, so that Triton compiles for it."""

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
        raise RuntimeError("kernels cannot run inside offline()")

    def get_current_device(self) -> int:
        return -int(self._target.arch)  # the key of Triton's kernel cache, which no GPU has

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def offline(capability: int, all_configs: bool = True) -> Iterator[list[Compiled]]:
    """Compile kernels that are launched on meta tensors inside this context, and run nothing.

    Triton stores the results in its cache, where a process with such a GPU finds them.

    Args:
        capability: compute capability, such as 90.
        all_configs: whether to compile all configurations, or only the default ones.

    Yields:
        The list of compiled configurations, which grows with each launch.

    Raises:
        RuntimeError: TRITON_INTERPRET=1 is set.
    """
    global _offline, _all_configs
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 makes Triton interpret kernels; unset it to compile them")
    active = triton.runtime.driver._active
    triton.runtime.driver.set_active(_OfflineDriver(capability))
    _offline, _all_configs = [], all_configs
    try:
        yield _offline
    finally:
        _offline = None
        triton.runtime.driver._active = active


def size_class(size: int) -> int:
    """Return the next power of two: sizes of one class share a choice."""
    return triton.next_power_of_2(max(1, size))


class Tuned:
    """A kernel and its configurations, the default first.

    Every configuration is valid for every shape. Results differ only by the order of sums. A kernel that accumulates
    into its outputs must have a single configuration, because measuring repeats the launch.
    """

    def __init__(self, kernel: Any, configs: Sequence[triton.Config]) -> None:
        self.kernel, self.configs = kernel, tuple(configs)
        self._constants = [dict(c.kwargs) for c in self.configs]
        self._options = [dict(c.all_kwargs()) for c in self.configs]
        self._chosen: dict[Any, int] = {}

    def __call__(self, device: torch.device, key: tuple[Any, ...], grid: Grid, *args: Any, **constants: Any) -> None:
        """Launch the kernel.

        Args:
            device: device of the launch. The CPU is the interpreter, meta compiles inside `offline`.
            key: properties of the arguments that the choice depends on.
            grid: function from the constants of a configuration to the grid.
            *args: arguments of the kernel.
            **constants: constants of the kernel that are not part of a configuration.
        """
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
        for options in self._options if _all_configs else self._options[:1]:
            result = self.kernel.warmup(*args, grid=(1,), **constants, **options)
            _offline.append(Compiled(self.kernel.__name__, constants, options, result))

    def _choose(
        self, device: torch.device, key: tuple[Any, ...], grid: Grid, args: tuple[Any, ...], constants: dict[str, Any]
    ) -> int:
        """Position of the configuration to use: from disk, else measured. The default if measuring is impossible."""
        if os.environ.get("SPURMIX_AUTOTUNE") == "0" or torch.cuda.is_current_stream_capturing():
            return 0
        with _lock:
            path, name = self._file(device), ", ".join(map(str, key))
            cached = _read(path)
            at, measured = self._position_of(cached.get(name)), False
            if at is None:
                try:
                    times = [self._time(c, grid, args, constants) for c in range(len(self.configs))]
                except torch.OutOfMemoryError:  # the benchmark allocates a buffer that flushes the cache
                    return 0
                at, measured = min(range(len(times)), key=times.__getitem__), True
                cached[name] = {"options": self._options[at], "milliseconds": times[at]}
                _write(path, cached)
            self._chosen[device.index, key] = at
            choices.append(
                Choice(self.kernel.__name__, name, self._options[at], cached[name]["milliseconds"], measured)
            )
        return at

    def _position_of(self, entry: object) -> int | None:
        """Position of the configuration of a cache entry, or None if the entry is invalid."""
        if isinstance(entry, dict) and isinstance(entry.get("milliseconds"), float):
            for at, options in enumerate(self._options):
                if options == entry.get("options"):
                    return at
        return None

    def _time(self, at: int, grid: Grid, args: tuple[Any, ...], constants: dict[str, Any]) -> float:
        """Median milliseconds with a cold cache; infinite if the device cannot run the configuration."""

        def run() -> None:
            self.kernel[grid(self._constants[at])](*args, **constants, **self._options[at])

        try:
            return float(triton.testing.do_bench(run, warmup=5, rep=30, return_mode="median"))
        except (OutOfResources, PTXASError, CompileTimeAssertionFailure):
            return float("inf")

    def _file(self, device: torch.device) -> Path:
        """Cache file for the kernel's source, its configurations, the device and the compiler versions."""
        properties = torch.cuda.get_device_properties(device)
        about = (
            properties.name, properties.major, properties.minor, triton.__version__, torch.version.cuda,
            self.kernel.cache_key, self._options,
        )  # fmt: skip
        digest = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        return cache_folder() / f"{self.kernel.__name__}-{digest}.json"


def _read(path: Path) -> dict[str, Any]:
    """Choices of a cache file; empty if it is missing or invalid."""
    try:
        cached = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _write(path: Path, cached: dict[str, Any]) -> None:
    """Write choices to the cache, if it is writable. Otherwise the next process measures again."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(cached, indent=1) + "\n")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
