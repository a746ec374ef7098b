"""Integer columns to sorted cells: input checks and the stable counting sort, compiled or in NumPy."""

from __future__ import annotations

import math
import os
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core import memory

MAX_VALUE = (1 << 31) - 1
"""Largest label or attribute value."""

IntArray = NDArray[Any]


def host_module() -> ModuleType | None:
    """The compiled helper module, or None where it was not built."""
    try:
        from spurmix import _host
    except ImportError:
        return None
    return _host


def as_integers(values: Any, name: str, ranks: tuple[int, ...]) -> IntArray:
    """`values` as an integer NumPy array of an allowed rank, without copying arrays and CPU tensors."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: not a regular array of integers ({error})") from None
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int64)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.ndim not in ranks:
        wanted = " or ".join("[N]" if r == 1 else "[N, K]" for r in ranks)
        raise ValueError(f"{name} must have shape {wanted}, got {list(array.shape)}")
    if array.ndim == 2 and array.shape[1] == 0:
        raise ValueError(f"{name} has no columns")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_range(column: IntArray, name: str, low: int) -> tuple[int, int]:
    """Smallest and largest value of a column, checked to lie in [low, 2^31)."""
    smallest, largest = int(column.min()), int(column.max())
    if smallest < low:
        at = int(np.argmin(column))
        raise ValueError(f"{name}: values must be {low} or above, found {smallest} at position {at}")
    if largest > MAX_VALUE:
        at = int(np.argmax(column))
        raise ValueError(f"{name}: values must be below 2^31, found {largest} at position {at}")
    return smallest, largest


def sort_by_cell(
    columns: list[IntArray], ranges: list[tuple[int, int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], IntArray | None]:
    """Stable counting sort of the rows of `columns` by their values, first column most significant.

    Returns:
        The cells that occur `[G, K]` ascending, their counts `[G]`, and the row numbers in cell order `[N]`
        (int32 below 2^31 rows), or None where that order is 0, 1, 2, ...
    """
    rows = columns[0].shape[0]
    values: list[NDArray[np.int64]] | None = None
    if _combinations(ranges) >= 1 << 63:
        # Keys would overflow: number the values of each column that occur, and look them up again at the end.
        unique = [np.unique(c, return_inverse=True) for c in columns]
        values = [u.astype(np.int64) for u, _ in unique]
        columns, ranges = [i for _, i in unique], [(0, u.size - 1) for u, _ in unique]
        if _combinations(ranges) >= 1 << 63:
            raise ValueError("attributes: too many columns with too many values to combine")
    low, span = [r[0] for r in ranges], [r[1] - r[0] + 1 for r in ranges]
    # Written all over at once: huge pages spare most of the misses in the page tables.
    members = memory.empty(rows, np.int32 if rows <= MAX_VALUE else np.int64)
    host = host_module()
    if host is not None:
        keys, counts, identity = host.group_cells(columns, low, span, members, threads=os.cpu_count() or 1)
    else:
        keys, counts, identity = _sort_in_numpy(columns, low, span, members)
    remaining = np.asarray(keys, dtype=np.int64)
    cells = np.empty((remaining.size, len(columns)), dtype=np.int64)
    for k in reversed(range(len(columns))):
        cells[:, k] = remaining % span[k] + low[k]
        remaining = remaining // span[k]
        if values is not None:
            cells[:, k] = values[k][cells[:, k]]
    return cells, np.asarray(counts, dtype=np.int64), None if identity else members


def _combinations(ranges: list[tuple[int, int]]) -> int:
    return math.prod(high - low + 1 for low, high in ranges)


def _sort_in_numpy(
    columns: list[IntArray], low: list[int], span: list[int], members: IntArray
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    key = np.zeros(columns[0].shape[0], dtype=np.int64)
    for column, lo, s in zip(columns, low, span, strict=True):
        key = key * s + (column.astype(np.int64) - lo)
    members[:] = np.argsort(key, kind="stable")
    keys, counts = np.unique(key, return_counts=True)
    return keys, counts, bool(np.all(members[1:] > members[:-1]))
