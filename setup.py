"""Builds the compiled modules with ninja: `_host` (pybind11), `_C` (stable ABI of libtorch) and `_cuda` (CUDA kernels).

SPURMIX_TORCH=0 skips `_C` and `_cuda`. SPURMIX_CUDA=0 skips `_cuda`, and SPURMIX_CUDA=1 makes its absence an error.
Without torch, only `_host` is built: the operators then run on their PyTorch reference where torch is installed later.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = f"build/ninja-{sys.implementation.cache_tag}"
# GCC 12 reports the undefined registers of its own intrinsics as uninitialized variables.
CXX = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-g0"]
NVCC = ["nvcc", "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=4"]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # torch 2.11
# Ninja compiles a file again when the file, a header that it includes, or the command changes.
RULE = """
rule {}
  command = {} -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $in
"""


def module(name: str, folders: list[str], compile_args: list[str], link_args: list[str]) -> Extension:
    """A module of all C++ and CUDA files in `folders`."""
    files = [path for folder in folders for path in (ROOT / folder).glob("*.c*") if path.suffix in (".cpp", ".cu")]
    return Extension(
        f"spurmix.{name}",
        sorted(path.relative_to(ROOT).as_posix() for path in files),
        extra_compile_args=[*CXX, *compile_args],
        extra_link_args=["-s", *link_args],
    )


def modules() -> list[Extension]:
    """The modules that can be built here."""
    host = module("_host", ["csrc/host"], ["-pthread", f"-I{pybind11.get_include()}"], ["-pthread"])
    spec = importlib.util.find_spec("torch") if os.environ.get("SPURMIX_TORCH") != "0" else None
    if spec is None or spec.origin is None:
        print("spurmix: building without torch, so the CPU operators are not compiled", file=sys.stderr)
        return [host]
    torch = Path(spec.origin).parent  # importing torch would take seconds
    compile_args = [STABLE_ABI, f"-I{torch / 'include'}"]
    link_args = [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    cpu = module("_C", ["csrc/ops", "csrc/ops/cpu", "csrc/cpu"], compile_args, link_args)
    if not wants_cuda(torch):
        return [host, cpu]
    # nvcc on the PATH may be a script outside the toolkit.
    command = ["nvcc", "--dryrun", "-c", "-x", "cu", os.devnull]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    toolkit = Path(re.findall(r"_HERE_=(\S+)", shown)[0]).parent
    compile_args += ["-DUSE_CUDA=1", f"-I{toolkit / 'include'}"]
    link_args += ["-ltorch_cuda", f"-L{toolkit / 'lib64'}", "-lcudart_static", "-lrt", "-ldl", "-pthread"]
    return [host, cpu, module("_cuda", ["csrc/ops", "csrc/ops/cuda", "kernels/cuda"], compile_args, link_args)]


def wants_cuda(torch: Path) -> bool:
    """Whether to build `_cuda`, which needs nvcc and a torch built for CUDA."""
    missing = [] if shutil.which("nvcc") else ["nvcc is not on the PATH"]
    if not (torch / "lib" / "libtorch_cuda.so").exists():
        missing.append("torch is not built for CUDA")
    if missing and os.environ.get("SPURMIX_CUDA") == "1":
        sys.exit(f"SPURMIX_CUDA=1 requires a CUDA build, but {' and '.join(missing)}")
    return not missing and os.environ.get("SPURMIX_CUDA") != "0"


def cuda_targets() -> list[str]:
    """Machine code for those of sm_80, sm_90 and sm_100 that nvcc supports, and PTX for later generations."""
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    found = [generation for generation in (80, 90, 100) if f"sm_{generation}" in known]
    options = [f"-gencode=arch=compute_{generation},code=sm_{generation}" for generation in found]
    return [*options, f"-gencode=arch=compute_{found[-1]},code=compute_{found[-1]}"]


def joined(arguments: list[str]) -> str:
    """A shell command in a ninja file."""
    return shlex.join(arguments).replace("$", "$$")


class NinjaBuild(build_ext):
    """Compiles and links with ninja, and records the hash of the sources for `spurmix._build_stamp`."""

    def ninja_file(self) -> str:
        """The rules, and the files of all modules."""
        cxx = [*self.compiler.compiler_so_cxx, *(f"-I{path}" for path in self.compiler.include_dirs)]
        text = f"builddir = {BUILD}{RULE.format('cxx', joined(cxx) + ' $flags')}"
        if any(source.endswith(".cu") for extension in self.extensions for source in extension.sources):
            text += RULE.format("nvcc", joined([*NVCC, *cuda_targets()]))
        text += f"rule link\n command = {joined(self.compiler.linker_so_cxx)} $in $flags -o $out\n description = link $out\n"
        for extension in self.extensions:
            objects = [f"{BUILD}/{extension.name}/{source}.o" for source in extension.sources]
            for source, target in zip(extension.sources, objects, strict=True):
                text += f"build {target}: {'nvcc' if source.endswith('.cu') else 'cxx'} {source}\n"
                text += f" flags = {joined(extension.extra_compile_args)}\n"
            text += f"build {BUILD}/{extension.name}.so: link {' '.join(objects)}\n"
            text += f" flags = {joined(extension.extra_link_args)}\n"
        return text

    def build_extensions(self) -> None:
        """Build all modules in `BUILD` and copy them."""
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        ninja = shutil.which("ninja", path=path) or sys.exit("building spurmix requires ninja; run `pip install ninja`")
        (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
        (ROOT / BUILD / "build.ninja").write_text(self.ninja_file())
        jobs = ["-j", str(self.parallel)] if self.parallel else []
        subprocess.run([ninja, "-f", f"{BUILD}/build.ninja", *jobs], cwd=ROOT, check=True)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # running processes keep the old file
            self.copy_file(f"{BUILD}/{extension.name}.so", target)

    def run(self) -> None:
        """Build, and write the hash."""
        super().run()
        source_hash = runpy.run_path(str(ROOT / "spurmix" / "_build_stamp.py"))["source_hash"](ROOT)
        record = {extension.name.removeprefix("spurmix."): source_hash for extension in self.extensions}
        folder = ROOT / "spurmix" if self.inplace else Path(self.build_lib, "spurmix")
        (folder / "_build.json").write_text(json.dumps(record) + "\n")


# spurmix.kernels is in kernels/triton, so it is not found below spurmix/.
setup(
    packages=sorted({*find_packages(include=["spurmix", "spurmix.*"]), "spurmix.kernels"}),
    ext_modules=modules(),
    cmdclass={"build_ext": NinjaBuild},
)
