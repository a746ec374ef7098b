"""Memory that is reused for the gradient of an embedding table."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spurmix.core import memory


class GradientBuffer:
    """Memory for the gradient of one embedding table on the CPU, reused when nothing refers to the last gradient.

    A new gradient of 94 MB per step costs more time in page faults than the backward pass. After `optimizer.zero_grad()`
    with its default `set_to_none=True`, the next backward pass writes to the same huge pages. If the last gradient is
    still referenced, for example because it is accumulated, new memory is allocated.

    Tables on other devices and calls inside `torch.compile` do not use the buffer. There, the allocator reuses memory.

    Example:
        >>> buffer = GradientBuffer()
        >>> weight = torch.zeros(4, 2, requires_grad=True)
        >>> ids = torch.tensor([[0, 3]])
        >>> mix_embeddings(weight, ids, ids, torch.ones(1), grad_buffer=buffer).sum().backward()
    """

    def __init__(self) -> None:
        self._pages: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._lent: weakref.ref[NDArray[np.uint8]] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[GradientBuffer], tuple[()]]:
        """Copy without the memory: a copy of a model that holds a buffer allocates its own."""
        return GradientBuffer, ()

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor. The buffer reuses its memory after the tensor is deleted.

        Args:
            rows: Number of rows.
            columns: Number of columns.
            dtype: Data type.

        Returns:
            A tensor `[rows, columns]`.

        Raises:
            MemoryError: If the memory cannot be allocated.
        """
        size = rows * columns * dtype.itemsize
        with self._lock:
            if self._pages.nbytes != size or (self._lent is not None and self._lent() is not None):
                self._pages = memory.empty(size, np.uint8)
            lent = self._pages[:]  # the tensor refers to this view, and the view to the pages
            self._lent = weakref.ref(lent)
        return torch.from_numpy(lent).view(dtype).view(rows, columns)
