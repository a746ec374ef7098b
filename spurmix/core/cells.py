"""Sort of examples by cell: checks of integer columns, and a stable counting sort, compiled or in NumPy."""

from __future__ import annotations

import math
import os
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from spurmix.core import memory
from spurmix.core.array_types import Int64Array, IntArray

if TYPE_CHECKING:
    from torch import Tensor

MAX_VALUE = (1 << 31) - 1
"""Largest label or attribute value."""


def host_module() -> ModuleType | None:
    """Return the compiled module `_host`, or None if it is not built."""
    try:
        from spurmix import _host
    except ImportError:
        return None
    return _host


def as_integers(values: object, name: str, ranks: tuple[int, ...]) -> IntArray:
    """Return `values` as an integer array of an allowed rank. Arrays and CPU tensors are not copied.

    Raises TypeError if they are not integers, and ValueError if the rank is another one or a value is missing.
    """
    array, missing = _split_missing(values, name)
    if missing is not None and missing.any():
        at = int(np.argwhere(missing)[0][0])
        raise ValueError(f"{name} must not have missing values, got one at position {at}")
    if array.dtype.kind == "f" and array.size:
        dtype = getattr(values, "dtype", None) if hasattr(values, "detach") else array.dtype
        raise TypeError(f"{name} must be integers, got dtype {dtype}; convert whole numbers to int")
    return _checked_integers(array, name, ranks)


def as_attributes(values: object) -> IntArray:
    """Return attributes as an integer array `[N]` or `[N, K]`, in which -1 means unknown.

    None, NaN, pandas.NA and masked values become -1. Floats become integers, because pandas, Arrow and NumPy convert
    columns with missing values to floats. Other arrays and CPU tensors are not copied.

    Raises TypeError if the values are not whole numbers, and ValueError if the rank is wrong or a column is coded -1 and 1.
    """
    array, missing = _split_missing(values, "attributes")
    if array.dtype.kind == "f":
        array = _whole_numbers(array, "attributes")
    array = _checked_integers(array, "attributes", (1, 2))
    for k in range(array.shape[1] if array.ndim == 2 else 1):
        column, gaps = (
            (array, missing) if array.ndim == 1 else (array[:, k], None if missing is None else missing[:, k])
        )
        known = column if gaps is None else column[~gaps]
        if known.size and known.min() == -1 and known.max() == 1 and known.all():
            of_column = f" of column {k}" if array.ndim == 2 else ""
            raise ValueError(
                f"attributes: the values{of_column} are exactly -1 and 1, and -1 means unknown; code two values as 0 and 1, "
                "or give unknown values as None, NaN or a masked array"
            )
    if missing is None or (array[missing] == -1).all():
        return array
    filled = array.astype(np.int64) if array.dtype.kind == "u" else array.copy()
    filled[missing] = -1
    return filled


def _split_missing(values: object, name: str) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    """Convert to an array. Also return which values are missing, or None if the type has no missing values.

    Missing values are 0 in the array, except that those of a masked array are unchanged.
    """
    if hasattr(values, "detach"):
        values = _array_of_tensor(values.detach(), name)
    missing: NDArray[np.bool_] | None = None
    if isinstance(values, np.ma.MaskedArray):
        missing, values = np.ma.getmaskarray(values), values.data
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be a regular array of integers ({error})") from None
    if array.dtype.kind == "O" and array.ndim:
        gaps = np.frompyfunc(_is_missing, 1, 1)(array).astype(bool)
    elif array.dtype.kind == "f" and array.size:
        gaps = np.isnan(array)
    else:
        return array, missing
    missing = gaps if missing is None else missing | gaps
    array = np.where(missing, 0, array)
    if array.dtype.kind == "O":
        converted = np.array(array.tolist())
        if converted.dtype.kind in "USO":
            raise _not_integers(array, name)
        array = converted
    return array, missing


def _array_of_tensor(tensor: Tensor, name: str) -> NDArray[np.generic]:
    """Return a tensor as an array. Floats of types that NumPy has not, such as bfloat16, become float32."""
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()
    try:
        return tensor.cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be integers, but the tensor of dtype {tensor.dtype} cannot be converted to an array ({error})"
        ) from None


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and value != value


def _not_integers(array: NDArray[np.generic], name: str) -> Exception:
    """Return the error for an array of strings or objects. It shows the first value that is not an integer."""
    flat = array.reshape(-1).tolist()
    at = next((i for i, value in enumerate(flat) if not isinstance(value, (int, float))), None)
    if at is None:
        at = int(np.argmax([abs(value) for value in flat]))
        return ValueError(f"{name} must be less than 2^31, got {flat[at]} at position {_row(array, at)}")
    names = {"labels": "class_names", "attributes": "attribute_names"}.get(name)
    is_text = isinstance(flat[at], (str, bytes))
    hint = f"; code the values as 0, 1, 2, ... and give their names in {names}" if is_text and names else ""
    return TypeError(f"{name} must be integers, got {flat[at]!r} at position {_row(array, at)}{hint}")


def _whole_numbers(array: NDArray[np.generic], name: str) -> Int64Array:
    """Convert floats to integers. Raises TypeError if one has a fraction or is infinite, ValueError if one is too large."""
    floats = array.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(floats) & (floats == np.floor(floats))))
    if bad.size:
        at = int(bad[0])
        raise TypeError(f"{name} must be integers, got {float(floats.flat[at])!r} at position {_row(array, at)}")
    large = np.flatnonzero(np.abs(floats) > 2.0**53)  # smaller ones are exact, and `check_range` checks them
    if large.size:
        at = int(large[0])
        value = float(floats.flat[at])
        limit = "less than 2^31" if value > 0 else "-1 or more"
        raise ValueError(f"{name} must be {limit}, got {value!r} at position {_row(array, at)}")
    return floats.astype(np.int64)


def _row(array: NDArray[np.generic], at: int) -> int:
    """Row of the value at a flat position."""
    return at // max(1, math.prod(array.shape[1:]))


def _checked_integers(array: NDArray[np.generic], name: str, ranks: tuple[int, ...]) -> IntArray:
    if array.size == 0 and array.dtype == np.float64:
        array = array.astype(np.int64)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype.kind in "US" and array.size:
        raise _not_integers(array, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.ndim not in ranks:
        shapes = " or ".join("[N]" if r == 1 else "[N, K]" for r in ranks)
        raise ValueError(f"{name} must have shape {shapes}, got {list(array.shape)}")
    if array.ndim == 2 and array.shape[1] == 0:
        raise ValueError(f"{name} must have at least one column, got shape {list(array.shape)}")
    return cast("IntArray", array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))


def check_range(column: IntArray, name: str, low: int) -> tuple[int, int]:
    """Return the smallest and the largest value of a column. Raises ValueError if one is outside [low, 2^31)."""
    smallest, largest = int(column.min()), int(column.max())
    if smallest < low:
        at = int(np.argmin(column))
        hint = "; code two classes as 0 and 1" if (smallest, largest) == (-1, 1) and column.all() else ""
        raise ValueError(f"{name} must be {low} or more, got {smallest} at position {at}{hint}")
    if largest > MAX_VALUE:
        at = int(np.argmax(column))
        raise ValueError(f"{name} must be less than 2^31, got {largest} at position {at}")
    return smallest, largest


def sort_by_cell(
    columns: list[IntArray], ranges: list[tuple[int, int]]
) -> tuple[Int64Array, Int64Array, IntArray | None]:
    """Sort examples by cell, with a stable counting sort.

    Args:
        columns: Columns `[N]` of integers. The first one is the most significant.
        ranges: Smallest and largest value of each column.

    Returns:
        The cells that occur, `[G, K]` ascending. Their counts, `[G]`. The example numbers in the order of the cells, `[N]`
        (int32 for fewer than 2^31 examples), or None if they are 0, 1, 2, ...

    Raises:
        ValueError: If there are too many combinations of values.
    """
    rows = columns[0].shape[0]
    values: list[Int64Array] | None = None
    if _combinations(ranges) >= 1 << 63:
        # The keys would overflow. Replace the values of each column by their ranks, and restore them at the end.
        unique = [np.unique(c, return_inverse=True) for c in columns]
        values = [u.astype(np.int64) for u, _ in unique]
        columns, ranges = [i for _, i in unique], [(0, u.size - 1) for u, _ in unique]
        if _combinations(ranges) >= 1 << 63:
            raise ValueError(
                f"attributes have too many combinations of values ({_combinations(ranges):,}); use fewer columns"
            )
    low, span = [r[0] for r in ranges], [r[1] - r[0] + 1 for r in ranges]
    # All of it is written in random order. Huge pages avoid most misses in the page tables.
    members: IntArray = memory.empty(rows, np.int32) if rows <= MAX_VALUE else memory.empty(rows, np.int64)
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
) -> tuple[Int64Array, Int64Array, bool]:
    key = np.zeros(columns[0].shape[0], dtype=np.int64)
    for column, lo, s in zip(columns, low, span, strict=True):
        key = key * s + (column.astype(np.int64) - lo)
    members[:] = np.argsort(key, kind="stable")
    keys, counts = np.unique(key, return_counts=True)
    return keys, counts, bool(np.all(members[1:] > members[:-1]))
