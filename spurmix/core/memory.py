"""Memory for large arrays: pages of their own, huge ones where the system gives them."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 1 << 21
HAS_PAGES = hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MAP_ANONYMOUS")
"""Whether the system has anonymous mappings; elsewhere `empty` is NumPy's."""


def pages(size: int) -> NDArray[np.uint8]:
    """`size` zero bytes in pages of their own; from one huge page on, aligned to and advised for huge pages.

    Raises:
        MemoryError: where the system has no room.
    """
    huge = size >= HUGE_PAGE
    try:
        # Private: Python's default, a shared mapping, gets no huge pages. One more huge page than needed lets the array
        # start on a huge-page boundary; a page that is never touched takes no memory.
        mapping = mmap.mmap(-1, max(1, size) + HUGE_PAGE * huge, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {size:,} bytes ({error})") from None
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel built without huge pages
    array = np.frombuffer(mapping, dtype=np.uint8)  # keeps the mapping alive
    skip = -array.ctypes.data % HUGE_PAGE if huge else 0
    return array[skip : skip + size]


def empty(count: int, dtype: Any) -> NDArray[Any]:
    """An uninitialised array `[count]`, on huge pages when it is large."""
    kind = np.dtype(dtype)
    if count * kind.itemsize < HUGE_PAGE or not HAS_PAGES:
        return np.empty(count, dtype=kind)
    return pages(count * kind.itemsize).view(kind)


def available(root: Path = Path("/")) -> int:
    """Bytes of memory this process may still use: what the system has, or less by a control group or `ulimit -v`.

    Files in the page cache count as free: they make room. root: of the file system, for tests.
    """
    bounds = [*_system(root), *_group_bounds(root)]
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int((root / "proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            bounds.append(limit - used)
    return max(0, min(bounds))


def _system(root: Path) -> Iterator[int]:
    """What the system has left; where it does not say, all it has."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        yield int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
        return
    yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62


def _group_bounds(root: Path) -> Iterator[int]:
    """What each control group the process is in, of version 1 or 2, and each above it leaves."""
    try:
        entries = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if controllers == "":
            top, limit, usage, prefix = root / "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            # In a container the path may be the host's, and only what is mounted at the top exists.
            with contextlib.suppress(OSError, ValueError):
                most = int((folder / limit).read_text())
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                files = sum(int(counts.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))
                yield most - int((folder / usage).read_text()) + files
            if folder == top:
                break
