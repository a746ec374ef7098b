"""Runs the CUDA kernels and their operators on the host, where `tests/cuda/emulation.h` emulates the GPU.

g++ compiles the sources of `spurmix._cuda`, which then register for CPU tensors in a separate library. Each launch is
searched for races. A race fails it (`tests/cuda/races.h`).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from spurmix.ops import backends, device_errors, library
from spurmix.ops.schema import SCHEMAS

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "build" / "emulated"
LIBRARY = "spurmix_emulated"  # as in csrc/ops/tensors.h
# tests/sanitize/run.sh sets it to "address,undefined", which replaces the search for races.
SANITIZERS = os.environ.get("EMULATED_SANITIZERS")


def sources() -> list[Path]:
    """Sources of `_cuda` and of the emulation."""
    patterns = ("csrc/ops/*.cpp", "csrc/ops/cuda/*.cpp", "kernels/cuda/*.cu", "tests/cuda/*.cpp")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def compile_module(folder: Path) -> Path:
    """Compile the emulated module into `folder`, unless it exists for these sources. Return its path."""
    patterns = ("csrc/*.h", "csrc/ops/**/*.h", "kernels/cuda/*.*h", "tests/cuda/*.h")
    headers = [path for pattern in patterns for path in ROOT.glob(pattern)]
    texts = [p.read_bytes() for p in sorted([*sources(), *headers])] + [f"{torch.__version__} {SANITIZERS}".encode()]
    key = hashlib.sha256(b"".join(texts)).hexdigest()[:16]
    module = folder / f"_emulated-{key}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # one of the test processes compiles, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not module.exists():
            _compile(module)
    return module


def _compile(module: Path) -> None:
    folder = module.parent
    package = Path(torch.__file__).parent
    flags = [
        "-std=c++17", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized",
        "-fvisibility=hidden", f"-I{ROOT / 'tests/cuda'}", f"-I{package / 'include'}",
        f"-I{sysconfig.get_paths()['include']}", "-DTORCH_TARGET_VERSION=0x020b000000000000",
        "-DSPURMIX_EMULATED",
    ]  # fmt: skip

    def build(source: Path) -> str:
        target = folder / f"{source.parent.name}-{source.name}.{os.getpid()}.o"
        # races.cpp implements the calls that this option inserts. The sanitizer itself is not linked.
        watched = ["-fsanitize=thread"] if source.suffix == ".cu" else ["-O2"]
        if SANITIZERS:
            watched = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1"]
        subprocess.run(["g++", "-x", "c++", *flags, *watched, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, sources()))
    temporary = folder / f"{module.name}.{os.getpid()}"
    libraries = [f"-L{package / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    if SANITIZERS:
        libraries.append(f"-fsanitize={SANITIZERS}")
    subprocess.run(["g++", "-shared", *objects, *libraries, "-o", str(temporary)], check=True)
    for name in objects:
        os.unlink(name)
    temporary.rename(module)


@functools.cache
def load() -> tuple[ModuleType, dict[str, Callable[..., Any]]]:
    """The module, whose flag the tests read, and the kernels by name."""
    path = compile_module(FOLDER)
    defined = torch.library.Library(LIBRARY, "DEF")
    for schema in SCHEMAS:
        defined.define(schema)
    loader = importlib.machinery.ExtensionFileLoader("_emulated", str(path))
    spec = importlib.util.spec_from_loader("_emulated", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    load.library = defined  # type: ignore[attr-defined]  # so that it is not deleted
    names = [schema.split("(", 1)[0] for schema in SCHEMAS]
    present = [n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(f"{LIBRARY}::{n}", "CPU")]
    return module, {name: getattr(getattr(torch.ops, LIBRARY), name).default for name in present}


def serve(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make backend="cuda" use the emulation. Return its module, whose flag the tests read."""
    module, kernels = load()
    implementation, requested, serving = backends.implementation, backends.requested, backends.serving

    def emulated_implementation(name: str, backend: str, device: torch.device) -> Callable[..., Any]:
        return library.differentiable(name, kernels) if backend == "cuda" else implementation(name, backend, device)

    # The emulated kernels are not registered with the dispatcher, like Triton's.
    monkeypatch.setattr(backends, "requested", lambda backend: "triton" if backend == "cuda" else requested(backend))
    monkeypatch.setattr(backends, "implementation", emulated_implementation)
    monkeypatch.setattr(
        backends, "serving", lambda device, backend: "cuda" if backend == "cuda" else serving(device, backend)
    )
    return module


@pytest.fixture(name="built", scope="module")
def built_fixture() -> tuple[ModuleType, dict[str, Callable[..., Any]]]:
    return load()


@pytest.fixture(name="cuda")
def cuda_fixture(built: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Make backend="cuda" use the emulation. The flag must be clear at the end of a test."""
    module = serve(monkeypatch)
    yield module
    assert module.take_flag(0) == 0


@pytest.fixture(autouse=True)
def cuda_emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the emulation in tests whose parameter `backend` is "cuda", in files that import this. The flag must stay clear."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("backend") != "cuda":
        yield
        return
    module = serve(monkeypatch)
    yield
    assert module.take_flag(0) == 0


def raise_flagged() -> None:
    """Raise the errors of the emulated kernels, as `functional.check` does on a GPU."""
    device_errors.raise_errors(load()[0].take_flag(0))
