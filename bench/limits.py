"""The physical limit, measured in the same run: kernels with our addresses and no arithmetic, built on first use."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("limits.cpp")
FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"


def has_avx2() -> bool:
    try:
        return "avx2" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled limits, or None without AVX2 or a compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or not has_avx2():
        return None
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    target = FOLDER / f"limits-{digest}.so"
    if not target.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        flags = ["-O3", "-std=c++17", "-mavx2", "-shared", "-fPIC", "-pthread"]
        if subprocess.run([compiler, *flags, str(SOURCE), "-o", str(partial)]).returncode:
            return None  # it has said why
        partial.replace(target)
    return ctypes.CDLL(str(target))


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def image_limit(images: Tensor, index: Tensor, partner: Tensor, out: Tensor) -> None:
    """images uint8 `[N, H, W, 3]`, out `[B, 3, H, W]` contiguous or channels_last."""
    compiled = library()
    assert compiled is not None
    pixels = images.shape[1] * images.shape[2]
    compiled.image_limit(
        _pointer(images), _pointer(index), _pointer(partner), _pointer(out), ctypes.c_int64(index.numel()),
        ctypes.c_int64(pixels), ctypes.c_int64(out.element_size()), int(out.is_contiguous()), torch.get_num_threads(),
    )  # fmt: skip


def row_limit(rows: Tensor, index: Tensor, partner: Tensor, out: Tensor, repeats: int = 1) -> None:
    """rows `[N, D]`, out `[B, D]` of the same dtype; `repeats` times."""
    compiled = library()
    assert compiled is not None
    width = ctypes.c_int64(rows.shape[1] * rows.element_size())
    compiled.row_limit(
        _pointer(rows), _pointer(index), _pointer(partner), _pointer(out), ctypes.c_int64(index.numel()), width,
        ctypes.c_int64(repeats), torch.get_num_threads(),
    )  # fmt: skip
