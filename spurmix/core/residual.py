"""The residual correlation of mixed labels and attributes from their moments.

`docs/draw-specification.md`, "Audit", has the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spurmix.core import memory
from spurmix.core.array_types import FloatArray

SMALL = 1e-10
"""Variances up to this size count as 0."""
DEGENERATE = 1e-6
"""Eigenvalues below this part of the mean variance need the pseudo-inverse."""
MIN_ITERATIVE = 64
"""Smallest matrices that are inverted by iteration."""
COLUMNS_PER_SOLUTION = 32
"""Matrices of this many columns for each column of the right side are inverted by iteration, which is then faster."""
MAX_ITERATIONS = 64
"""Number of iterations after which the matrix is factorized instead."""


@dataclass(frozen=True)
class Pairs:
    """E[u v^T] + E[v u^T] for u of the index and v of the partner, `[K, K]`."""

    matrix: FloatArray

    @cached_property
    def diagonal(self) -> FloatArray:
        """The diagonal, `[K]`."""
        return np.diagonal(self.matrix).copy()

    @cached_property
    def rest(self) -> FloatArray:
        """Sum of each row without the diagonal, `[K]`."""
        return self.matrix.sum(axis=1) - self.diagonal


@dataclass(frozen=True)
class SecondMoment:
    """E[x x^T] = diag(own) + factor * pairs of shares x, which sum to 1 in each sample.

    Attributes:
        mean: E[x], `[K]`.
        own: Diagonal part, `[K]`.
        pairs: Products of index and partner. None: the samples are not mixed.
        factor: Factor of the products.
    """

    mean: FloatArray
    own: FloatArray
    pairs: Pairs | None = None
    factor: float = 0.0

    def variances(self) -> FloatArray:
        """Return the variance of each share, `[K]`."""
        return self._diagonal() - self.mean**2

    def covariance(self) -> FloatArray:
        """Return the covariance, `[K, K]`.

        Raises NotEnoughMemory if it does not fit in memory.
        """
        count = self.mean.size
        memory.require(
            3 * 8 * count**2, f"covariances of {count:,} classes or attributes", "merge classes or attributes"
        )
        dense = -np.outer(self.mean, self.mean)
        if self.pairs is not None:
            dense += self.factor * self.pairs.matrix
        dense[np.diag_indices(self.mean.size)] += self.own
        return dense

    def solve(self, right: FloatArray) -> tuple[FloatArray, int]:
        """Multiply the pseudo-inverse of the covariance by a matrix.

        Args:
            right: The matrix, `[K, M]`. The sum of each column is 0.

        Returns:
            The product up to a constant in each column, and the rank of the covariance.
        """
        iterative = self.pairs is None or self.factor == 0.0
        iterative |= self.mean.size >= MIN_ITERATIVE and right.shape[1] * COLUMNS_PER_SOLUTION <= self.mean.size
        if iterative and self._is_dominant():
            # The shares sum to 1, so that E[x x^T] 1 = E[x]. If E[x x^T] z = b and 1^T b = 0, then
            # E[x]^T z = 1^T b = 0, so z solves the equation of the covariance too.
            solution = self._iterate(right)
            if solution is not None:
                return solution, self.mean.size - 1
        return _solve_dense(self.covariance(), right)

    def _diagonal(self) -> FloatArray:
        return self.own if self.pairs is None else self.own + self.factor * self.pairs.diagonal

    def _is_dominant(self) -> bool:
        """Whether the diagonal is larger than the sum of the other entries, so that only one eigenvalue is 0."""
        variances = self.variances()
        bound = self._diagonal() - (0.0 if self.pairs is None else self.factor * self.pairs.rest)
        return bool(variances.min() > SMALL and bound.min() >= DEGENERATE * variances.mean())

    def _iterate(self, right: FloatArray) -> FloatArray | None:
        """Solve E[x x^T] z = `right` by conjugate gradients. None if they do not converge."""
        diagonal = self._diagonal()[:, None]
        solution = right / diagonal
        if self.pairs is None or self.factor == 0.0:
            return solution
        residual = right - self._times(solution)
        limit = 1e-13 * np.sqrt((right**2 / diagonal).sum(axis=0)) + np.finfo(np.float64).tiny
        step = scaled = residual / diagonal
        size = (residual * scaled).sum(axis=0)
        for _ in range(MAX_ITERATIONS):
            if (np.sqrt(size) <= limit).all():
                return solution
            product = self._times(step)
            length = size / np.maximum((step * product).sum(axis=0), np.finfo(np.float64).tiny)
            solution = solution + length * step
            residual = residual - length * product
            scaled = residual / diagonal
            before, size = size, (residual * scaled).sum(axis=0)
            step = scaled + size / np.maximum(before, np.finfo(np.float64).tiny) * step
        return None

    def _times(self, right: FloatArray) -> FloatArray:
        assert self.pairs is not None
        return self.own[:, None] * right + self.factor * (self.pairs.matrix @ right)


def residual_correlation(joint: FloatArray, label: SecondMoment, attribute: SecondMoment) -> float:
    """Return ||Cov(y)^-1/2 Cov(y, a) Cov(a)^-1/2||_F / sqrt(min rank). This is Cramer's V if y and a are one-hot.

    Args:
        joint: E[y a^T], `[C, A]`.
        label: Moments of y.
        attribute: Moments of a.

    Returns:
        The correlation, from 0 to 1.
    """
    between = joint - np.outer(label.mean, attribute.mean)
    of_y, rank_y = label.solve(between)
    of_a, rank_a = attribute.solve(between.T)
    rank = min(rank_y, rank_a)
    if rank == 0:
        return 0.0
    return float(np.sqrt(max(0.0, np.sum(of_y * of_a.T)) / rank))


def _solve_dense(covariance: FloatArray, right: FloatArray) -> tuple[FloatArray, int]:
    """Pseudo-inverse of a covariance matrix times `right`, and its rank."""
    used = np.flatnonzero(np.diag(covariance) > SMALL)
    if used.size == 0:
        return np.zeros_like(right), 0
    block = covariance[np.ix_(used, used)]
    block = (block + block.T) / 2
    # The rows of a covariance of shares sum to 0. Adding a constant makes it invertible if nothing else is degenerate.
    scale = float(np.diag(block).mean())
    try:
        root = np.linalg.cholesky(block + scale / used.size)
        degenerate = bool(np.square(np.diag(root)).min() < DEGENERATE * scale)
    except np.linalg.LinAlgError:
        degenerate = True
    solution = np.zeros_like(right)
    if not degenerate:
        from scipy.linalg import cho_solve

        solution[used] = cho_solve((root, True), right[used])
        return solution, used.size - 1
    values, vectors = np.linalg.eigh(block)
    kept = values > SMALL * max(1.0, float(values[-1]))
    solution[used] = (vectors[:, kept] / values[kept]) @ (vectors[:, kept].T @ right[used])
    return solution, int(kept.sum())
