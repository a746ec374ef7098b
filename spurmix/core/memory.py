"""Memory for large arrays: pages of their own, huge ones where the system gives them."""

from __future__ import annotations

import mmap
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
    except OSError as error:
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
