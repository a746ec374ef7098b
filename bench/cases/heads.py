"""Last-layer retraining: paths of L1 logistic regressions on balanced subsets of 2,048 features."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import GroupIndex
from spurmix.train.heads.options import DFR_C
from spurmix.train.heads.problem import HeadProblem
from spurmix.train.heads.rows import Standardization
from spurmix.train.heads.samples import HeadSamples
from spurmix.train.heads.solver import fit_paths

POOL, WIDTH, FITS = 100_000, 2048, 2


def _features() -> tuple[NDArray[np.float32], GroupIndex]:
    """Correlated features of a ReLU layer, with a class signal and a stronger spurious one (90 % correlation)."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, POOL)
    attribute = np.where(rng.random(POOL) < 0.9, label, 1 - label)
    latent = rng.standard_normal((POOL, 64), dtype=np.float32)
    latent[:, 0] += 1.5 * (2 * label - 1)
    latent[:, 1] += 2.5 * (2 * attribute - 1)
    mixing = rng.standard_normal((64, WIDTH), dtype=np.float32) / 8
    features = np.empty((POOL, WIDTH), dtype=np.float32)
    for start in range(0, POOL, 10_000):
        part = latent[start : start + 10_000] @ mixing
        features[start : start + 10_000] = np.maximum(part + 0.5 * rng.standard_normal(part.shape, dtype=np.float32), 0)
    return features, GroupIndex(label, attribute)


class _Timed:
    """Fits that measure themselves, without the check of the result.

    Args:
        fit: Returns the weights of each fit.
        check: Maps them to the result that is compared.
    """

    def __init__(
        self,
        fit: Callable[[], list[NDArray[np.float64]]],
        check: Callable[[list[NDArray[np.float64]]], NDArray[np.float64]],
    ) -> None:
        self._fit, self._check, self._seconds = fit, check, 0.0

    def run(self) -> NDArray[np.float64]:
        """Fit, and return the result to compare."""
        began = time.perf_counter()
        weights = self._fit()
        self._seconds = time.perf_counter() - began
        return self._check(weights)

    def last(self) -> float:
        """Return the seconds of the last fit."""
        return self._seconds

    def again(self) -> float:
        """Fit again, and return the seconds."""
        self.run()
        return self._seconds


@case("dfr_path", quick=False)
def dfr_path(context: Context) -> Case:
    """Fit 7 penalties on 2 balanced subsets of 100,000 x 2,048 features, to 1e-4 of the objective."""
    features, groups = _features()
    samples = HeadSamples(groups, np.arange(POOL), "dfr")
    standardization = Standardization.of(features, samples.chosen)
    rows = [samples.rows_of(samples.balanced(np.random.default_rng(k))) for k in range(FITS)]
    strengths = sorted(DFR_C)
    problem = HeadProblem(features, standardization, 2, tuple(1 / c for c in strengths), (0.0,) * len(strengths))

    def objectives(weights: NDArray[np.float64], fit: int) -> list[float]:
        """C * loss + |W|, relative to the first fit of spurmix at this C."""
        x = standardization.apply(rows[fit].values(features)).astype(np.float64)
        signs = 2.0 * rows[fit].label - 1.0
        return [
            float(c * np.logaddexp(0, -signs * (x @ w[:-1] + w[-1])).sum() + np.abs(w).sum())
            for c, w in zip(strengths, weights, strict=True)
        ]

    best = [objectives(path.weight[:, 0], fit) for fit, path in enumerate(fit_paths(problem, rows, name="dfr"))]

    def ours() -> list[NDArray[np.float64]]:
        return [path.weight[:, 0] for path in fit_paths(problem, rows, name="dfr", progress=False)]

    def liblinear() -> list[NDArray[np.float64]]:
        from sklearn.linear_model import LogisticRegression

        found = []
        for own in rows:
            x = standardization.apply(own.values(features))
            weights = []
            for c in strengths:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # scikit-learn 1.8 deprecates `penalty`
                    model = LogisticRegression(penalty="l1", C=c, solver="liblinear", max_iter=100).fit(x, own.label)
                weights.append(np.append(model.coef_[0], model.intercept_[0]))
            found.append(np.array(weights))
        return found

    def relative(weights: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.array([objectives(w, fit) for fit, w in enumerate(weights)]) / np.array(best)

    fitted, slow = _Timed(ours, relative), _Timed(liblinear, relative)
    contenders = [
        Contender("spurmix", fitted.run, "ours", note="one fit per thread", seconds=fitted.again),
        # It takes minutes, so the run that is compared with spurmix is also the one that is timed.
        Contender("scikit-learn, LIBLINEAR", slow.run, note="one thread, one run", seconds=slow.last),
    ]
    return Case(contenders, items=FITS * len(strengths), tolerance=1e-4, repeats=5, least=1)
