"""Step `build`: the compiled modules in place, without a network; what is missing to import spurmix."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.gpu.record import Row, dry, emit

ROOT = Path(__file__).resolve().parents[2]


def pybind11_folder() -> Path | None:
    """A folder that provides the module `pybind11` with torch's copy of its headers, where it is not installed."""
    torch = importlib.util.find_spec("torch")
    if importlib.util.find_spec("pybind11") is not None or torch is None or torch.origin is None:
        return None
    headers = Path(torch.origin).parent / "include"
    folder = ROOT / "build" / "pybind11"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pybind11.py").write_text(f"def get_include(*a):\n    return {str(headers)!r}\n")
    return folder


def link_kernels() -> None:
    """Make `spurmix.kernels` importable from the checkout, as an installed spurmix has it."""
    if importlib.util.find_spec("spurmix.kernels") is None:
        (ROOT / "spurmix" / "kernels").symlink_to(Path("..") / "kernels" / "triton")


def main() -> None:
    needed = ("numpy", "torch", "triton", "scipy", "typer", "rich", "pytest", "setuptools", "pybind11", "transformers")
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    emit(Row("build", "imports", "absent", note=", ".join(absent) or "none"))
    link_kernels()
    began = time.perf_counter()
    folder = pybind11_folder()
    path = os.pathsep.join(filter(None, [str(folder) if folder else "", os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "SPURMIX_CUDA": "0" if dry() else "1"}
    # In a rehearsal the modules are there, and building them takes minutes.
    command = [sys.executable, "setup.py", *(["--version"] if dry() else ["build_ext", "--inplace"])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode and not dry():  # the CPU's modules at least: Triton serves the GPU then
        emit(Row("build", "modules", "with CUDA", error=" ".join(done.stderr.split())[-600:]))
        environment["SPURMIX_CUDA"] = "0"
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    error = " ".join(done.stderr.split())[-600:] if done.returncode else ""
    emit(
        Row("build", "modules", "in place", microseconds=None, note=f"{time.perf_counter() - began:.0f} s", error=error)
    )
    states = subprocess.run(
        [sys.executable, "-c", "from spurmix import _build_stamp as b; print(b.status())"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    emit(Row("build", "modules", "states", note=states.stdout.strip(), error=states.stderr.strip()[-300:]))
    if not dry():
        compile_ahead()
    sys.exit(1 if error else 0)


def compile_ahead() -> None:
    """Every configuration of the cases' Triton kernels, by all cores: tuning then only measures."""
    import torch

    from spurmix.cli.warmup import Shapes

    began = time.perf_counter()
    major, minor = torch.cuda.get_device_capability()
    shapes = [
        Shapes(),
        Shapes(classes=128256),
        Shapes(dtype=torch.float16),
        Shapes(dtype=torch.float32, channels_last=False),
        Shapes(dtype=torch.float32, classes=128256),
        Shapes(crop=True, flip=True),
    ]
    with ProcessPoolExecutor(len(shapes), multiprocessing.get_context("spawn")) as pool:
        made = sum(pool.map(_compile, shapes, [10 * major + minor] * len(shapes)))
    emit(Row("build", "triton", "compiled ahead", note=f"{made} kernels, {time.perf_counter() - began:.0f} s"))


def _compile(shapes: Any, capability: int) -> int:
    from spurmix.cli.warmup import calls
    from spurmix.kernels import tuned

    with tuned.offline(capability) as made:
        for _, call in calls(shapes, "meta"):
            call()
    return len(made)


if __name__ == "__main__":
    main()
