"""Memory for large arrays in huge pages, and the amount of available memory."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

D = TypeVar("D", bound=np.generic)

HUGE_PAGE = 1 << 21
"""Size of a huge page in bytes."""
SMALL = 1 << 28
"""Size in bytes below which `require` does not look up the available memory."""
HAS_PAGES = hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MAP_ANONYMOUS")
"""Whether the system has anonymous mappings. If not, `empty` allocates with NumPy."""


def pages(size: int) -> NDArray[np.uint8]:
    """Allocate `size` zero bytes in separate pages. From the size of a huge page on, they are aligned huge pages.

    Raises MemoryError if the memory cannot be allocated.
    """
    huge = size >= HUGE_PAGE
    try:
        # Only private mappings get huge pages. One more huge page than needed allows to align the start of the array. A
        # page that is never written to takes no memory.
        mapping = mmap.mmap(-1, max(1, size) + HUGE_PAGE * huge, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"cannot allocate {size:,} bytes ({error})") from None
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # the operating system has no huge pages
    array = np.frombuffer(mapping, dtype=np.uint8)  # the array keeps the mapping alive
    skip = -array.ctypes.data % HUGE_PAGE if huge else 0
    return array[skip : skip + size]


def empty(count: int, dtype: type[D]) -> NDArray[D]:
    """Allocate an uninitialized array `[count]`, in huge pages if it is large."""
    kind = np.dtype(dtype)
    if count * kind.itemsize < HUGE_PAGE or not HAS_PAGES:
        return np.empty(count, dtype=kind)
    return pages(count * kind.itemsize).view(kind)


def available(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process can still allocate.

    Limits of control groups and of `ulimit -v` are considered. The page cache counts as available.

    Args:
        root: Root of the file system that contains `proc` and `sys`. Tests change it.

    Returns:
        The number of bytes.
    """
    bounds = [*_system_memory(root), *_control_group_memory(root)]
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int((root / "proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            bounds.append(limit - used)
    return max(0, min(bounds))


class NotEnoughMemory(ValueError):
    """A computation would need more memory than is available."""


def require(needed: int, what: str, advice: str) -> None:
    """Check that memory is available before a computation.

    Args:
        needed: Number of bytes.
        what: What needs the memory, in the plural: the start of the error message.
        advice: What to do instead: the end of the error message.

    Raises:
        NotEnoughMemory: If less memory is available.
    """
    if needed < SMALL:
        return
    found = available()
    if needed > found:
        raise NotEnoughMemory(
            f"{what} need about {needed / 2**30:.1f} GiB of memory, but {found / 2**30:.1f} GiB are available; {advice}"
        )


def _system_memory(root: Path) -> Iterator[int]:
    """Available memory of the system, or all of its memory if the available memory is unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        yield int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
        return
    yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62


def _control_group_memory(root: Path) -> Iterator[int]:
    """Available memory of each control group of the process and of their parents, version 1 and 2."""
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
            # In a container, the path may be that of the host, and only the top folder exists.
            with contextlib.suppress(OSError, ValueError):
                most = int((folder / limit).read_text())
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                files = sum(int(counts.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))
                yield most - int((folder / usage).read_text()) + files
            if folder == top:
                break
