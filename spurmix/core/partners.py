"""Weights of partner groups, stored as distinct rows that are computed in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike, NDArray

from spurmix.core.array_types import FloatArray, Int64Array

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK_ENTRIES = 1 << 21
"""Number of weights that are computed at a time."""


@dataclass(frozen=True)
class PartnerRows:
    """A matrix `[G, G]` of partner weights, in which several groups may share a row.

    Attributes:
        row_of: Row of each group, int64 `[G]`. -1: the group has no partner.
        count: Number of rows, R.
        weights: Function that returns the rows start to stop - 1, float64 `[stop - start, G]`, dense or sparse.
        width: Number of stored weights of a row. Default: G.
    """

    row_of: Int64Array
    count: int
    weights: Callable[[int, int], FloatArray | csr_array]
    width: int = 0

    @classmethod
    def of_matrix(cls, matrix: FloatArray) -> PartnerRows:
        """Use the rows of a matrix `[G, G]`. A group with an all-zero row has no partner."""
        used = (matrix != 0).any(axis=1)
        return cls(np.where(used, np.arange(len(matrix)), -1), len(matrix), partial(_slice, matrix))

    @classmethod
    def of_rows(cls, rows: FloatArray, row_of: Int64Array) -> PartnerRows:
        """Use the given rows, `[R, G]`. A group with an all-zero row, or the row -1, has no partner."""
        used: NDArray[np.bool_] = (rows != 0).any(axis=1)
        return cls(np.where((row_of >= 0) & used[row_of], row_of, -1), len(rows), partial(_slice, rows))

    @property
    def shape(self) -> tuple[int, int]:
        """(G, G)."""
        return self.row_of.size, self.row_of.size

    def blocks(self) -> Iterator[tuple[int, FloatArray | csr_array]]:
        """Yield the number of the first row of each block, and its rows."""
        step = max(1, BLOCK_ENTRIES // (self.width or self.row_of.size))
        for start in range(0, self.count, step):
            yield start, self.weights(start, min(self.count, start + step))

    def matrix(self) -> FloatArray:
        """Return all weights, float64 `[G, G]`."""
        rows = as_dense(self.weights(0, self.count))
        return np.where(self.row_of[:, None] >= 0, rows[self.row_of], 0.0)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> FloatArray:
        return self.matrix().astype(dtype or np.float64, copy=False)


def as_dense(rows: FloatArray | csr_array) -> FloatArray:
    """Return dense or sparse rows as a dense array."""
    return rows if isinstance(rows, np.ndarray) else rows.toarray()


def _slice(rows: FloatArray, start: int, stop: int) -> FloatArray:
    return rows[start:stop]
