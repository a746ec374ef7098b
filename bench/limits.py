"""Physical limits of memory and disk, measured in the same run. The kernels in limits.cpp are compiled on first use."""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import itertools
import mmap
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.registry import Contender

SOURCE = Path(__file__).with_name("limits.cpp")
FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"
UNAVAILABLE = "memory limit (needs a C++ compiler with OpenMP, and AVX2)"
"""How results name a memory limit that cannot be measured."""


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled limits, or None without AVX2 or a compiler."""
    compiler, features = shutil.which("g++") or shutil.which("c++"), _cpu_features()
    if compiler is None or "avx2" not in features.split():
        return None
    digest = hashlib.sha256(SOURCE.read_bytes() + features.encode()).hexdigest()[:12]
    target = FOLDER / f"limits-{digest}.so"
    if not target.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        flags = ["-O3", "-std=c++17", "-march=native", "-shared", "-fPIC", "-fopenmp"]
        if subprocess.run([compiler, *flags, str(SOURCE), "-o", str(partial)]).returncode:
            return None  # the compiler has printed the error
        partial.replace(target)
    return ctypes.CDLL(str(target))


def vector_bytes() -> int:
    """Return the size of a vector register in bytes."""
    compiled = library()
    assert compiled is not None
    compiled.vector_bytes.restype = ctypes.c_int64
    return int(compiled.vector_bytes())


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


STORES = {"plain": 0, "streaming": 1, "rep stosb": 2}
BLOCKS = (192, 1536, 5376, 37632)
"""Input bytes per block. Small blocks overlap reads and writes. Large blocks separate them, which DRAM prefers."""
AHEAD = (0, 1024)


@dataclass(frozen=True)
class Variant:
    """One access pattern of a memory limit.

    Attributes:
        store: Key of `STORES`.
        block: Input bytes that are read before their output is written.
        ahead: Prefetch distance in bytes. 0 leaves prefetching to the hardware.
        planes: Number of ranges of a row's output that are written side by side.
    """

    store: str
    block: int
    ahead: int
    planes: int

    def __str__(self) -> str:
        planes = "" if self.planes == 1 else f", {self.planes} planes"
        return f"{self.store} stores, blocks of {self.block} B{', prefetch' if self.ahead else ''}{planes}"


def variants(bytes_in: int, size: int, planes: tuple[int, ...], width: int) -> Iterator[Variant]:
    """List the variants that fit a row.

    Args:
        bytes_in: Bytes of an input row.
        size: Output bytes per input byte.
        planes: Numbers of output ranges to try.
        width: Bytes of a vector register.

    Yields:
        Each variant.
    """
    for store, block, ahead, count in itertools.product(STORES, (*BLOCKS, bytes_in), AHEAD, planes):
        whole = bytes_in % width == block % width == 0 and block * size % (count * width) == 0
        if whole and block <= bytes_in and (count == 1 or bytes_in % block == 0):
            yield Variant(store, block, ahead, count)


class MemoryLimit:
    """The fastest way to read two rows per sample and to write one output row per sample.

    All variants run on the tensors of the operator, so memory placement and huge pages are the same. The first use
    measures every variant and keeps the fastest one.

    Args:
        rows: Stored rows, `[N, ...]`, contiguous, of any dtype.
        index: First row of each sample, int64 `[B]`.
        partner: Second row of each sample, int64 `[B]`.
        out: Output, `[B, ...]`, dense, in any layout. Its contents are overwritten.
        planes: Numbers of output ranges per sample to try.
        repeats: Number of passes per run.
    """

    def __init__(
        self,
        rows: Tensor,
        index: Tensor,
        partner: Tensor,
        out: Tensor,
        planes: tuple[int, ...] = (1,),
        repeats: int = 1,
    ) -> None:
        compiled = library()
        assert compiled is not None
        self._compiled, self._repeats = compiled, repeats
        self._tensors = rows, index, partner, out
        self._bytes_in = rows[0].numel() * rows.element_size()
        self._size = out[0].numel() * out.element_size() // self._bytes_in
        self._variants = list(variants(self._bytes_in, self._size, planes, vector_bytes()))

    def run_variant(self, variant: Variant) -> None:
        """Read and write all samples once per repetition."""
        sizes = (
            self._tensors[1].numel(), self._bytes_in, self._size, variant.planes, STORES[variant.store], variant.block,
            variant.ahead, self._repeats, torch.get_num_threads(),
        )  # fmt: skip
        self._compiled.memory_limit(*map(_pointer, self._tensors), *map(ctypes.c_int64, sizes))

    def _seconds(self, variant: Variant) -> float:
        began = time.perf_counter()
        self.run_variant(variant)
        return (time.perf_counter() - began) / self._repeats

    @functools.cached_property
    def fastest(self) -> Variant:
        """The variant with the lowest median time. Three rounds select six candidates, nine rounds select the winner."""
        candidates = self._variants
        for rounds, kept in ((3, 6), (9, 1)):
            times: dict[Variant, list[float]] = {variant: [] for variant in candidates}
            for _ in range(rounds):
                for variant in candidates:
                    times[variant].append(self._seconds(variant))
            candidates = sorted(candidates, key=lambda v: statistics.median(times[v]))[:kept]
        return candidates[0]

    def seconds(self) -> float:
        """Return the seconds that the fastest variant takes for one pass."""
        return self._seconds(self.fastest)

    def contender(self) -> Contender:
        """Return a contender that runs the fastest variant. Its note describes the variant."""

        def run() -> None:
            contender.note = str(self.fastest)
            self.run_variant(self.fastest)

        contender = Contender("memory limit", run, "limit", seconds=self.seconds)
        return contender


def disk_limit(path: Path, offsets: NDArray[np.int64], row: int, memory: NDArray[np.uint8], threads: int) -> None:
    """Read rows with O_DIRECT, without the page cache.

    Args:
        path: File to read.
        offsets: Byte offset of each row.
        row: Bytes of a row.
        memory: Target of the reads. It is overwritten in a cycle.
        threads: Number of parallel reads.

    Raises:
        OSError: If the file system does not support O_DIRECT or a read fails.
    """
    compiled = library()
    assert compiled is not None
    slot = (row // 4096 + 2) * 4096
    compiled.disk_limit.restype = ctypes.c_int64
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        received = compiled.disk_limit(
            direct, offsets.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(offsets.size), ctypes.c_int64(row),
            memory.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(slot), ctypes.c_int64(memory.size // slot),
            ctypes.c_int64(threads),
        )  # fmt: skip
    finally:
        os.close(direct)
    if received < offsets.size * row:
        raise OSError(f"{path}: reading with O_DIRECT failed, got {received} of {offsets.size * row} bytes")


def cached_share(path: Path) -> float:
    """Return the share of a file that is in the page cache, from 0 to 1."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), dtype=np.uint8)
        view = np.frombuffer(mapped, dtype=np.uint8)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size), ctypes.c_void_p(pages.ctypes.data)
        )
        del view  # so that the map can close
    if failed:
        raise OSError("mincore failed")
    return float((pages & 1).mean())


def drop_from_cache(path: Path) -> None:
    """Remove the pages of a file from the page cache.

    Args:
        path: File.

    Raises:
        RuntimeError: If more than 1% remains, for example because a process maps the file.
    """
    gc.collect()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = cached_share(path)
    if left > 0.01:
        raise RuntimeError(f"{left:.0%} of {path} is still in the page cache; close all processes that map it")
