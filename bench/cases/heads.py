"""Last-layer retraining: paths of L1 logistic regressions on balanced subsets of 2,048 features."""

from __future__ import annotations

import warnings

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

    def relative(weights: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.array([objectives(w, fit) for fit, w in enumerate(weights)]) / np.array(best)

    def ours() -> NDArray[np.float64]:
        return relative([path.weight[:, 0] for path in fit_paths(problem, rows, name="dfr", progress=False)])

    def liblinear() -> NDArray[np.float64]:
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
        return relative(found)

    contenders = [
        Contender("spurmix", ours, "ours", note="one fit per thread; includes the check of the objectives"),
        Contender("scikit-learn, LIBLINEAR", liblinear, note="one thread; includes the check of the objectives"),
    ]
    return Case(contenders, items=FITS * len(strengths), tolerance=1e-4, repeats=3, least=1)
