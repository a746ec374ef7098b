"""The physical limit, measured in the same run: kernels with our addresses and no arithmetic, built on first use."""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import mmap
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
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


def disk_limit(path: Path, offsets: NDArray[np.int64], row: int, memory: NDArray[np.uint8], threads: int) -> None:
    """Rows of `row` bytes at `offsets`, read past the page cache into `memory`, used round and round.

    Raises:
        OSError: where the file system has no O_DIRECT, or a read failed.
    """
    compiled = library()
    assert compiled is not None
    slot = (row // 4096 + 2) * 4096
    compiled.disk_limit.restype = ctypes.c_int64
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        got = compiled.disk_limit(
            direct, offsets.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(offsets.size), ctypes.c_int64(row),
            memory.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(slot), ctypes.c_int64(memory.size // slot), threads,
        )  # fmt: skip
    finally:
        os.close(direct)
    if got < offsets.size * row:
        raise OSError(f"{path}: reading past the page cache failed")


def cached_share(path: Path) -> float:
    """How much of a file the page cache holds, 0 to 1."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), dtype=np.uint8)
        view = np.frombuffer(mapped, dtype=np.uint8)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size), ctypes.c_void_p(pages.ctypes.data)
        )
        del view  # the map closes now
    if failed:
        raise OSError("mincore failed")
    return float((pages & 1).mean())


def drop_from_cache(path: Path) -> None:
    """Make a file cold.

    Raises:
        RuntimeError: where a hundredth of it is in the page cache still, as pages that somebody maps are.
    """
    gc.collect()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = cached_share(path)
    if left > 0.01:
        raise RuntimeError(f"{left:.0%} of {path} are in the page cache still")
