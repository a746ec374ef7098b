"""Ring memory: batch buffers that are allocated once, on huge pages where the system gives them, and reused.

A fresh buffer per batch costs several times the fused kernel: every page of it faults when first written.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from spurmix.data.batch import Batch

_LARGE = 1 << 21  # from one huge page on
_MAP_FLAGS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


def buffer(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """An uninitialised CPU tensor for reuse: page-aligned and advised for huge pages when large."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if size < _LARGE or not _MAP_FLAGS:
        return torch.empty(shape, dtype=dtype, memory_format=layout)
    # Anonymous private memory: Python's default, a shared mapping, gets no huge pages. One more huge page than needed
    # lets the tensor start on a huge-page boundary.
    memory = mmap.mmap(-1, size + _LARGE, flags=_MAP_FLAGS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel built without huge pages
    flat = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping alive
    skip = -flat.data_ptr() % _LARGE
    flat = flat[skip : skip + size].view(dtype)
    if channels_last:
        b, c, h, w = shape
        return flat.view(b, h, w, c).permute(0, 3, 1, 2)
    return flat.view(shape)


def batch_buffers(batch: int, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, reusable: bool) -> Batch:
    """Buffers of one batch whose input has `shape`; `reusable` ones are worth huge pages."""
    full = (batch, *shape)
    if reusable:
        values = buffer(full, dtype, channels_last)
    else:
        values = torch.empty(
            full, dtype=dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
    integers = [torch.empty(batch, dtype=torch.int64) for _ in range(5)]
    label, partner_label, index, partner, group = integers
    return Batch(values, label, partner_label, torch.empty(batch), index, partner, group)
