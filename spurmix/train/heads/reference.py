"""Reference of the compiled solver in NumPy: accelerated proximal gradient descent. It needs more time and memory."""

from __future__ import annotations

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.train.heads.problem import HeadProblem
from spurmix.train.heads.rows import HeadRows


def fit_path(problem: HeadProblem, rows: HeadRows) -> tuple[FloatArray, FloatArray, Int64Array]:
    """Fit one problem along its path, see `solver.fit_paths`.

    Args:
        problem: Features, penalties and stopping rule. `max_iterations` counts ten gradient steps here.
        rows: HeadRows of the problem.

    Returns:
        Weights `[L, K, D + 1]`, objectives `[L]` and iterations `[L]`.
    """
    standardized = problem.standardization.apply(rows.values(problem.features)).astype(np.float64)
    x = np.concatenate([standardized, np.ones((len(standardized), 1))], axis=1)
    count = problem.num_functions
    target = rows.label[:, None] == (np.arange(count) if count > 1 else 1)
    lipschitz = float(np.linalg.norm(x, 2)) ** 2 * (0.25 if count == 1 else 0.5)
    weight, weights, objectives, iterations = np.zeros((count, x.shape[1])), [], [], []
    for l1, l2 in zip(problem.l1, problem.l2, strict=True):
        weight, steps = _minimize(x, target, weight, l1, l2, lipschitz + l2, problem)
        weights.append(weight)
        objectives.append(objective(x, target, weight, l1, l2))
        iterations.append(steps)
    return np.stack(weights), np.array(objectives), np.array(iterations, dtype=np.int64)


def objective(x: FloatArray, target: FloatArray, weight: FloatArray, l1: float, l2: float) -> float:
    """Return the objective for rows `x`, `[n, D + 1]`, and targets, bool `[n, K]`."""
    z = x @ weight.T
    normalizer = np.logaddexp(0.0, z[:, 0]) if z.shape[1] == 1 else np.logaddexp.reduce(z, axis=1)
    loss = normalizer.sum() - z[target].sum()
    return float(loss + l1 * np.abs(weight).sum() + 0.5 * l2 * np.square(weight).sum())


def _minimize(
    x: FloatArray, target: FloatArray, weight: FloatArray, l1: float, l2: float, lipschitz: float, problem: HeadProblem
) -> tuple[FloatArray, int]:
    ahead, momentum, steps = weight, 1.0, 0
    for _ in range(10 * problem.max_iterations):
        steps += 1
        z = x @ ahead.T
        if z.shape[1] == 1:
            p = 0.5 * (1.0 + np.tanh(0.5 * z))
        else:
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        moved = ahead - ((p - target).T @ x + l2 * ahead) / lipschitz
        moved = np.sign(moved) * np.maximum(np.abs(moved) - l1 / lipschitz, 0.0)
        change = moved - weight
        if np.vdot(ahead - moved, change) > 0:  # restart: the momentum points uphill
            momentum = 1.0
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        ahead = moved + (momentum - 1.0) / following * change
        weight, momentum = moved, following
        if np.abs(change).max() <= 1e-3 * problem.tolerance * max(1e-3, np.abs(weight).max()):
            break
    return weight, steps
