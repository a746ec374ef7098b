"""Step `build`: compile the modules in place, without a network, and list missing packages."""

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

from bench.gpu.record import dry, emit
from bench.row import Row

STEP = "build"
ROOT = Path(__file__).resolve().parents[2]


def pybind11_folder() -> Path | None:
    """Create a module `pybind11` that points to torch's copy of the headers.

    Returns:
        The folder of the module, or None if pybind11 is installed or torch is not.
    """
    torch = importlib.util.find_spec("torch")
    if importlib.util.find_spec("pybind11") is not None or torch is None or torch.origin is None:
        return None
    headers = Path(torch.origin).parent / "include"
    folder = ROOT / "build" / "pybind11"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pybind11.py").write_text(f"def get_include(*a):\n    return {str(headers)!r}\n")
    return folder


def link_kernels() -> None:
    """Make `spurmix.kernels` importable from the checkout."""
    if importlib.util.find_spec("spurmix.kernels") is None:
        (ROOT / "spurmix" / "kernels").symlink_to(Path("..") / "kernels" / "triton")


def main() -> None:
    """Run the step."""
    required = (
        "numpy",
        "torch",
        "triton",
        "scipy",
        "typer",
        "rich",
        "pytest",
        "setuptools",
        "pybind11",
        "ninja",
        "transformers",
    )
    absent = [name for name in required if importlib.util.find_spec(name) is None]
    emit(Row("imports", "absent", step=STEP, note=", ".join(absent) or "none"))
    link_kernels()
    began = time.perf_counter()
    folder = pybind11_folder()
    path = os.pathsep.join(filter(None, [str(folder) if folder else "", os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "SPURMIX_CUDA": "0" if dry() else "1"}
    # A dry run uses the existing modules, because building takes minutes.
    command = [sys.executable, "setup.py", *(["--version"] if dry() else ["build_ext", "--inplace"])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode and not dry():  # build the CPU modules; Triton is used on the GPU
        emit(Row("modules", "with CUDA", step=STEP, error=" ".join(done.stderr.split())[-600:]))
        environment["SPURMIX_CUDA"] = "0"
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    error = " ".join(done.stderr.split())[-600:] if done.returncode else ""
    emit(Row("modules", "in place", step=STEP, note=f"{time.perf_counter() - began:.0f} s", error=error))
    states = subprocess.run(
        [sys.executable, "-c", "from spurmix import _build_stamp as b; print(b.status())"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    emit(Row("modules", "states", step=STEP, note=states.stdout.strip(), error=states.stderr.strip()[-300:]))
    if not dry():
        compile_ahead()
    sys.exit(1 if error else 0)


def compile_ahead() -> None:
    """Compile every configuration of the Triton kernels on all cores, so that later steps only measure them."""
    import torch

    from spurmix.cli.warmup_kernels import Shapes

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
        built = sum(pool.map(_compile, shapes, [10 * major + minor] * len(shapes)))
    emit(Row("triton", "compiled ahead", step=STEP, note=f"{built} kernels, {time.perf_counter() - began:.0f} s"))


def _compile(shapes: Any, capability: int) -> int:
    from spurmix.cli.warmup_kernels import calls
    from spurmix.kernels import tuned

    with tuned.offline(capability) as built:
        for _, call in calls(shapes, "meta"):
            call()
    return len(built)


if __name__ == "__main__":
    main()
