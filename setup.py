"""Builds the compiled modules: `_host` (pybind11), `_C` (libtorch stable ABI) and, with a CUDA toolkit, `_cuda`.

SPURMIX_CUDA=0 leaves `_cuda` out, SPURMIX_CUDA=1 insists on it; SPURMIX_TORCH=0 leaves `_C` out. A build without torch
makes `_host` only; the operators then run on their plain-PyTorch reference wherever torch is installed later.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TARGET_TORCH = "0x020b000000000000"  # the stable ABI of 2.11

_spec = importlib.util.spec_from_file_location("_build_stamp", ROOT / "spurmix" / "_build_stamp.py")
assert _spec is not None and _spec.loader is not None
_build_stamp = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_build_stamp)

# GCC 12 takes the undefined registers of its own intrinsics for mistakes: ten thousand lines around any real error.
COMMON = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-g0"]
CPU_KERNELS = ["isa", "draw", "mix_images", "mix_rows", "loss", "text"]
CUDA_KERNELS = ["draw", "images", "rows", "loss", "text", "text_grad"]
CUDA_GENERATIONS = (80, 90, 100)
NVCC = ["nvcc", "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=4"]


def torch_package() -> Path | None:
    """Folder of the installed torch, or None; torch itself is not imported."""
    if os.environ.get("SPURMIX_TORCH") == "0":
        return None
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def host_extension() -> Extension:
    import pybind11

    return Extension(
        "spurmix._host",
        [f"csrc/host/{name}.cpp" for name in ("module", "crc32", "group_cells", "pixels", "read_rows", "tokens")],
        include_dirs=[pybind11.get_include()],
        extra_compile_args=[*COMMON, "-pthread"],
        extra_link_args=["-pthread", "-s"],
        language="c++",
    )


def torch_extension(torch: Path) -> Extension:
    return Extension(
        "spurmix._C",
        [
            "csrc/module.cpp",
            "csrc/ops_cpu.cpp",
            "csrc/ops_cpu_rows.cpp",
            "csrc/ops_cpu_text.cpp",
            *(f"csrc/cpu/{name}.cpp" for name in CPU_KERNELS),
        ],
        include_dirs=[str(torch / "include")],
        library_dirs=[str(torch / "lib")],
        libraries=["torch", "torch_cpu", "c10"],
        define_macros=[("TORCH_TARGET_VERSION", TARGET_TORCH)],
        extra_compile_args=COMMON,
        extra_link_args=["-s"],
        language="c++",
    )


def cuda_toolkit() -> Path:
    """The toolkit of the nvcc on the PATH, which may be a script elsewhere."""
    shown = subprocess.run(["nvcc", "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    return Path(re.findall(r"_HERE_=(\S+)", shown)[0]).parent


def cuda_targets() -> list[str]:
    """nvcc's options for the generations it knows: machine code for each, and code that later ones compile."""
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    found = [g for g in CUDA_GENERATIONS if f"sm_{g}" in known]
    options = [f"-gencode=arch=compute_{g},code=sm_{g}" for g in found]
    return [*options, f"-gencode=arch=compute_{found[-1]},code=compute_{found[-1]}"]


def cuda_extension(torch: Path) -> Extension:
    toolkit = cuda_toolkit()
    return Extension(
        "spurmix._cuda",
        [
            "csrc/cuda_device.cpp",
            "csrc/ops_cuda.cpp",
            "csrc/ops_cuda_rows.cpp",
            "csrc/ops_cuda_text.cpp",
            *(f"kernels/cuda/{name}.cu" for name in CUDA_KERNELS),
        ],
        include_dirs=[str(torch / "include"), str(toolkit / "include")],
        library_dirs=[str(torch / "lib"), str(toolkit / "lib64")],
        libraries=["torch", "torch_cpu", "torch_cuda", "c10", "cudart_static", "rt", "dl"],
        define_macros=[("TORCH_TARGET_VERSION", TARGET_TORCH), ("USE_CUDA", "1")],
        extra_compile_args=COMMON,
        extra_link_args=["-s", "-pthread"],
        language="c++",
    )


def wants_cuda(torch: Path) -> bool:
    """Whether `_cuda` is built: its sources, a toolkit and a CUDA torch are there, or SPURMIX_CUDA=1 insists."""
    asked = os.environ.get("SPURMIX_CUDA")
    if asked == "0":
        return False
    missing = []
    if shutil.which("nvcc") is None:
        missing.append("nvcc on the PATH")
    if not (torch / "lib" / "libtorch_cuda.so").exists():
        missing.append("a torch built for CUDA")
    if missing and asked == "1":
        sys.exit(f"SPURMIX_CUDA=1, but there is no {' and no '.join(missing)}")
    return not missing


class Build(build_ext):
    """Compiles the files of a module in parallel and records the sources the modules were built from."""

    def build_extensions(self) -> None:
        self._compile_in_parallel()
        super().build_extensions()

    def _compile_in_parallel(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        compile_here = self.compiler.compile

        def compile_one(source: str, output_dir: str, **options: Any) -> list[str]:
            if not source.endswith(".cu"):
                return compile_here([source], output_dir, **options)
            target = Path(output_dir, source).with_suffix(".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*NVCC, *cuda_targets(), "-c", source, "-o", str(target)], check=True)
            return [str(target)]

        def compile_all(sources: list[str], output_dir: str = ".", **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda source: compile_one(source, output_dir, **options), sources))
            return [name for group in objects for name in group]

        self.compiler.compile = compile_all

    def run(self) -> None:
        super().run()
        record = {ext.name.rsplit(".", 1)[1]: _build_stamp.source_hash(ROOT) for ext in self.extensions}
        folder = ROOT / "spurmix" if self.inplace or self.editable_mode else Path(self.build_lib) / "spurmix"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(record) + "\n")


def extensions() -> list[Extension]:
    torch = torch_package()
    found = [host_extension()]
    if torch is None:
        print("spurmix: torch is not installed here, so the CPU operators are not compiled", file=sys.stderr)
    else:
        found.append(torch_extension(torch))
        if wants_cuda(torch):
            found.append(cuda_extension(torch))
    return found


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
