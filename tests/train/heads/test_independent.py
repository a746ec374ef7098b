"""Fitted heads against small implementations with scikit-learn and SciPy, which share only the drawn rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from spurmix import GroupIndex, HeadOptions, fit_head
from spurmix.train.heads.rows import Standardization
from spurmix.train.heads.samples import HeadSamples


def biased(count: int, classes: int, seed: int) -> tuple[Any, GroupIndex]:
    """Features of a core and a spurious signal, 90 % correlated. A third of the attributes are known."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    attribute = np.where(rng.random(count) < 0.9, label, rng.integers(0, classes, count))
    x = rng.standard_normal((count, 10)).astype(np.float32)
    x[np.arange(count), label] += 1.5
    x[np.arange(count), 5 + attribute] += 3.0
    x = x @ rng.standard_normal((10, 10)).astype(np.float32) + 2
    return x, GroupIndex(label, np.where(rng.random(count) < 1 / 3, attribute, -1))


def solved(x: Any, y: Any, c: float, penalty: str, classes: int) -> Any:
    """Weights and intercepts `[K, D + 1]`. The intercept is penalized like a weight of a feature that is 1."""
    if classes == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn 1.8 deprecates `penalty`
            model = LogisticRegression(penalty=penalty, C=c, solver="liblinear", tol=1e-9, max_iter=5000)
            model.fit(x.astype(np.float64), y)
        return np.c_[model.coef_, model.intercept_]
    rows, target = np.c_[x.astype(np.float64), np.ones(len(x))], np.eye(classes)[y]

    def objective(flat: Any) -> tuple[float, Any]:
        # For L1, weights are positive - negative, both at least 0.
        parts = flat.reshape(-1, classes, rows.shape[1])
        weight = parts[0] if penalty == "l2" else parts[0] - parts[1]
        z = rows @ weight.T
        normalizer = np.logaddexp.reduce(z, axis=1)
        gradient = c * (np.exp(z - normalizer[:, None]) - target).T @ rows
        loss = c * float(normalizer.sum() - (z * target).sum())
        if penalty == "l2":
            return loss + 0.5 * float((weight**2).sum()), (gradient + weight).ravel()
        return loss + float(parts.sum()), np.concatenate([(gradient + 1).ravel(), (1 - gradient).ravel()])

    count = classes * rows.shape[1]
    size, bounds = (count, None) if penalty == "l2" else (2 * count, [(0, None)] * (2 * count))
    options = {"maxiter": 20_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(objective, np.zeros(size), jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    parts = found.x.reshape(-1, classes, rows.shape[1])
    return parts[0] if penalty == "l2" else parts[0] - parts[1]


def expected_head(x: Any, groups: GroupIndex, method: str, penalty: str, c: float, fits: int, seed: int) -> Any:
    """Mean weights of the standardized features and the intercept, and the standardization."""
    samples = HeadSamples(groups, np.arange(len(x)), method)
    known = groups.group_attributes[groups.group_ids()] >= 0
    used = x[known] if method == "dfr" else x
    mean, scale = used.mean(axis=0, dtype=np.float64), used.std(axis=0, dtype=np.float64)
    weights = []
    for k in range(fits):
        rng = np.random.default_rng([seed, 0, k])
        if method == "dispel":
            rows = samples.dispel(rng, 0.7, 0.6)
            share = rows.share[:, None]  # type: ignore[index]
            mixed, label = share * x[rows.index] + (1 - share) * x[rows.partner], rows.label
        else:
            chosen = samples.balanced(rng) if method == "dfr" else np.arange(len(x))
            mixed, label = x[chosen], groups.labels[chosen]
        weights.append(solved((mixed - mean) / scale, label, c, penalty, groups.num_classes))
    return np.mean(weights, axis=0), mean, scale


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("method", ["dfr", "dispel", "logistic"])
def test_heads_equal_an_independent_implementation(method: Any, penalty: Any, classes: int) -> None:
    x, groups = biased(900, classes, 1)
    options = HeadOptions(
        C=[0.05], penalty=penalty, fits=3, search_fits=3, s=[0.7], alpha=[0.6], seed=5, tolerance=1e-10
    )
    head = fit_head(x, groups, method, options=options)
    expected, mean, scale = expected_head(x, groups, method, penalty, 0.05, 1 if method == "logistic" else 3, 5)
    weight = head.weight.double().numpy() * scale
    logits = head.logits(torch.from_numpy(x)).numpy()
    wanted = ((x - mean) / scale) @ expected[:, :-1].T + expected[:, -1]
    if classes == 2:
        np.testing.assert_allclose(weight[1] - weight[0], expected[0, :-1], atol=1e-3)
        assert np.mean((logits[:, 1] > logits[:, 0]) == (wanted[:, 0] > 0)) >= 0.999
    else:
        np.testing.assert_allclose(weight, expected[:, :-1], atol=1e-3)
        np.testing.assert_allclose(logits, wanted, atol=1e-2)
        assert np.mean(logits.argmax(axis=1) == wanted.argmax(axis=1)) >= 0.999


@pytest.mark.parametrize("method", ["dfr", "dispel", "logistic"])
def test_two_runs_are_equal_to_the_last_bit(method: Any) -> None:
    x, groups = biased(1500, 3, 2)
    options = HeadOptions(C=[0.3, 0.03], s=[0.5, 1.0], alpha=[1.0], fits=3, search_fits=2)
    before = torch.get_num_threads()
    try:
        heads = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            heads.append(fit_head(x, groups, method, options=options))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(heads[0].weight, heads[1].weight) and torch.equal(heads[0].bias, heads[1].bias)
    assert heads[0].trials == heads[1].trials


def test_constant_features_have_no_influence() -> None:
    x, groups = biased(600, 2, 4)
    wide = np.c_[x, np.full(600, 3.0, dtype=np.float32)]
    options = HeadOptions(C=[0.1], fits=2)
    head, expected = fit_head(wide, groups, options=options), fit_head(x, groups, options=options)
    assert not head.weight[:, -1].any()
    np.testing.assert_allclose(head.weight[:, :-1], expected.weight, atol=1e-5)
    assert not np.any(Standardization.of(wide, np.arange(600)).inverse_scale[-1])
