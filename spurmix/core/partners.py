"""Weights of partner groups, stored as distinct rows that share their parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike, NDArray

from spurmix.core import memory
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.table_layout import ROW_SLICES

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK_ENTRIES = 1 << 20
"""Number of weights that are computed at a time."""

ENTRY_BYTES = 64
"""Memory that an entry needs while rows are built, an upper bound."""


@dataclass(frozen=True)
class PartnerRows:
    """A matrix `[G, G]` of partner weights, in which several groups may share a row.

    A row has entries, one for each group with a weight, in ascending order of the groups. Their groups are the
    concatenation of up to four slices of `groups`, which rows may share. Their weights are consecutive elements of
    `weights`, which rows may share too. If `even` is True, `weights` has one weight for each slice instead, which all
    entries of the slice have.

    Attributes:
        row_of: Row of each group, int64 `[G]`. -1: the group has no partner.
        weights: Positive weights, float64 `[T]`.
        first_weight: Position in `weights` of the first entry of each row, int64 `[R]`.
        groups: Groups, int64 `[P]`.
        slice_first: Position in `groups` of the first entry of each slice of each row, int64 `[R, 4]`.
        slice_length: Number of entries of each slice, int64 `[R, 4]`. Slices that are not used have 0.
        even: Whether all entries of a slice have the same weight.
    """

    row_of: Int64Array
    weights: FloatArray
    first_weight: Int64Array
    groups: Int64Array
    slice_first: Int64Array
    slice_length: Int64Array
    even: bool = False

    @classmethod
    def of_matrix(cls, matrix: FloatArray) -> PartnerRows:
        """Use the rows of a matrix `[G, G]`. A group with an all-zero row has no partner."""
        return cls.of_rows(matrix, np.arange(len(matrix)))

    @classmethod
    def of_rows(cls, rows: FloatArray, row_of: Int64Array) -> PartnerRows:
        """Use the given rows, `[R, G]`. A group with an all-zero row, or the row -1, has no partner."""
        used: NDArray[np.bool_] = rows != 0
        # Rows with weights for the same groups share the list of these groups.
        packed = np.ascontiguousarray(np.packbits(used, axis=1))
        _, first, list_of = np.unique(packed.view(f"V{packed.shape[1]}")[:, 0], return_index=True, return_inverse=True)
        counts = np.count_nonzero(used[first], axis=1)
        return cls._of_lists(
            np.where((row_of >= 0) & (counts[list_of] > 0)[row_of], row_of, -1),
            rows.reshape(-1) if used.all() else rows[used],
            np.nonzero(used[first])[1],
            (np.cumsum(counts) - counts)[list_of],
            counts[list_of],
        )

    @classmethod
    def of_entries(cls, row_of: Int64Array, counts: Int64Array, groups: Int64Array, weights: FloatArray) -> PartnerRows:
        """Use positive weights, row by row in ascending order of the groups.

        Args:
            row_of: Row of each group, `[G]`. A group with the row -1, or a row without entries, has no partner.
            counts: Number of entries of each row, `[R]`.
            groups: Group of each entry.
            weights: Weight of each entry.

        Returns:
            The rows.
        """
        row_of = np.where((row_of >= 0) & (counts > 0)[row_of], row_of, -1)
        return cls._of_lists(row_of, weights, groups, np.cumsum(counts) - counts, counts)

    @classmethod
    def _of_lists(
        cls, row_of: Int64Array, weights: FloatArray, groups: Int64Array, first: Int64Array, length: Int64Array
    ) -> PartnerRows:
        """Rows of one slice each. Their weights follow each other."""
        slice_first, slice_length = np.zeros((2, length.size, ROW_SLICES), dtype=np.int64)
        slice_first[:, 0], slice_length[:, 0] = first, length
        return cls(row_of, weights, np.cumsum(length) - length, groups, slice_first, slice_length)

    @property
    def count(self) -> int:
        """Number of rows, R."""
        return self.first_weight.size

    @property
    def entries(self) -> Int64Array:
        """Number of entries of each row, int64 `[R]`."""
        return self.slice_length.sum(axis=1)

    def slice_weights(self, rows: Int64Array | slice) -> FloatArray:
        """Return the weight of each slice of some rows, `[N, 4]`, if `even` is True."""
        return self.weights[self.first_weight[rows, None] + np.arange(ROW_SLICES)]

    @property
    def shape(self) -> tuple[int, int]:
        """(G, G)."""
        return self.row_of.size, self.row_of.size

    def blocks(self) -> Iterator[tuple[int, csr_array]]:
        """Yield the number of the first row of each block, and its rows as a sparse matrix."""
        for start, stop in blocks_of(self.entries):
            yield start, self._sparse(start, stop)

    def matrix(self) -> FloatArray:
        """Return all weights, float64 `[G, G]`."""
        rows = self._sparse(0, self.count).toarray()
        return np.where(self.row_of[:, None] >= 0, rows[self.row_of], 0.0)

    def _sparse(self, start: int, stop: int) -> csr_array:
        from scipy.sparse import csr_array

        rows = slice(start, stop)
        length = self.slice_length[rows]
        weights = (
            np.repeat(self.slice_weights(rows).reshape(-1), length.reshape(-1))
            if self.even
            else self.weights[expand(self.first_weight[rows], length.sum(axis=1))]
        )
        columns = self.groups[expand(self.slice_first[rows], length)]
        ends = np.concatenate([[0], np.cumsum(self.entries[rows])])
        kind = np.int32 if max(weights.size, self.row_of.size) < 1 << 31 else np.int64
        parts = weights, columns.astype(kind), ends.astype(kind)
        return csr_array(parts, shape=(stop - start, self.row_of.size))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> FloatArray:
        return self.matrix().astype(dtype or np.float64, copy=False)


def expand(first: Int64Array, length: Int64Array) -> Int64Array:
    """Positions first, first + 1, ..., first + length - 1 of each slice, one slice after the other."""
    first, length = first.reshape(-1), length.reshape(-1)
    ends = np.cumsum(length)
    positions = np.arange(ends[-1] if ends.size else 0)
    positions += np.repeat(first - ends + length, length)
    return positions


def blocks_of(counts: Int64Array) -> Iterator[tuple[int, int]]:
    """Yield blocks of rows, start and stop, with at most `BLOCK_ENTRIES` entries, or one row."""
    ends = np.cumsum(counts)
    start = 0
    while start < counts.size:
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + BLOCK_ENTRIES, side="right")))
        yield start, stop
        start = stop


def require_memory(entries: int) -> None:
    """Check that there is memory to build rows of so many entries.

    Raises ValueError if there is not.
    """
    what = f"partner: the policy has {entries:,} weights of partner groups, which"
    memory.require(entries * ENTRY_BYTES, what, "use fewer groups")
