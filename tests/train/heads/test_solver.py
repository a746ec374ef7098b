"""The compiled solver of logistic regressions against NumPy, and against scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from spurmix.core.cells import host_module
from spurmix.train.heads import reference
from spurmix.train.heads.problem import HeadProblem
from spurmix.train.heads.rows import HeadRows, Standardization
from spurmix.train.heads.solver import fit_paths

HOST: Any = host_module()


def data(count: int = 300, width: int = 21, classes: int = 2, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((count, 5)).astype(np.float32)
    x = latent @ rng.standard_normal((5, width)).astype(np.float32) + 0.5 * rng.standard_normal((count, width)).astype(
        np.float32
    )
    scores = latent[:, :classes] + 0.7 * rng.standard_normal((count, classes))
    return 3 * x + 1, scores.argmax(axis=1).astype(np.int32)


def problem(x: Any, classes: int, l1: Any, l2: Any = None, **options: Any) -> HeadProblem:
    standardization = Standardization.of(x, np.arange(len(x)))
    return HeadProblem(x, standardization, classes, tuple(l1), tuple(l2 or [0.0] * len(l1)), **options)


def objective(p: HeadProblem, rows: HeadRows, weight: Any, step: int) -> float:
    x = p.standardization.apply(rows.values(p.features)).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    target = rows.label[:, None] == (np.arange(p.num_functions) if p.num_functions > 1 else 1)
    return reference.objective(x, target, weight, p.l1[step], p.l2[step])


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_compiled_solver_finds_the_minimum_of_the_reference(classes: int, mixed: bool) -> None:
    x, y = data(classes=classes)
    rng = np.random.default_rng(1)
    index = rng.integers(0, len(x), 250)
    partner, share = rng.integers(0, len(x), 250), rng.random(250).astype(np.float32)
    rows = HeadRows(index, y[index], partner, share) if mixed else HeadRows(index, y[index])
    p = problem(x, classes, (60.0, 20.0, 5.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0, 2.0), tolerance=1e-9)
    (found,) = fit_paths(p, [rows], name="test")
    expected, values, _ = reference.fit_path(p, rows)
    assert found.weight.shape == (5, p.num_functions, 22)
    np.testing.assert_allclose(found.objective, values, rtol=2e-6 if classes == 2 else 2e-5)
    np.testing.assert_allclose(found.weight, expected, atol=2e-3 if classes == 2 else 2e-2)
    for step in range(5):
        assert abs(objective(p, rows, found.weight[step], step) / found.objective[step] - 1) < 1e-6
    zeros = (found.weight == 0).mean(axis=(1, 2))
    assert zeros[0] > zeros[3] and zeros[4] == 0


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("c", [0.02, 0.5])
def test_two_classes_equal_liblinear(penalty: str, c: float) -> None:
    x, y = data(seed=4)
    p = problem(x, 2, (1 / c if penalty == "l1" else 0.0,), (1 / c if penalty == "l2" else 0.0,), tolerance=1e-10)
    rows = HeadRows(np.arange(len(x)), y)
    (found,) = fit_paths(p, [rows], name="test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn 1.8 deprecates `penalty`
        model = LogisticRegression(penalty=penalty, C=c, solver="liblinear", tol=1e-8, max_iter=1000)
        model.fit(p.standardization.apply(x), y)
    expected = np.append(model.coef_[0], model.intercept_[0])
    np.testing.assert_allclose(found.weight[0, 0], expected, atol=1e-3)
    assert found.objective[0] <= objective(p, rows, expected[None], 0) * (1 + 1e-6)


def test_the_number_of_threads_changes_nothing() -> None:
    import torch

    x, y = data()
    rows = [HeadRows(np.arange(k, 200 + k), y[k : 200 + k]) for k in range(5)]
    p = problem(x, 2, (10.0, 1.0))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append([path.weight for path in fit_paths(p, rows, name="test")])
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("width", [1, 3, 4, 15, 16])
def test_odd_shapes(count: int, width: int) -> None:
    x, y = data(count=40, width=width)
    rows = HeadRows(np.arange(count), y[:count])
    p = problem(x, 2, (2.0, 0.3), tolerance=1e-8)
    (found,) = fit_paths(p, [rows], name="test")
    np.testing.assert_allclose(found.objective, reference.fit_path(p, rows)[1], rtol=1e-4, atol=1e-6)


def test_constant_features_are_ignored() -> None:
    x, y = data()
    x[:, 3] = 7.25
    (found,) = fit_paths(problem(x, 2, (0.5,)), [HeadRows(np.arange(len(x)), y)], name="test")
    assert found.weight[0, 0, 3] == 0 and np.isfinite(found.weight).all()


def test_a_strong_penalty_leaves_nothing() -> None:
    x, y = data(classes=3)
    (found,) = fit_paths(problem(x, 3, (1e6,)), [HeadRows(np.arange(len(x)), y)], name="test")
    assert not found.weight.any()
    np.testing.assert_allclose(found.objective, len(x) * np.log(3), rtol=1e-6)


@pytest.mark.skipif(HOST is None, reason="the compiled module is not built")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(index=np.array([0, 40])), IndexError, "outside x"),
        (dict(index=np.array([-1, 0])), IndexError, "outside x"),
        (dict(label=np.array([0, 2], dtype=np.int32)), IndexError, "not a class"),
        (dict(partner=np.array([0, 99]), share=np.ones(2, np.float32)), IndexError, "outside x"),
        (dict(partner=np.array([0, 1])), ValueError, "both"),
        (dict(mean=np.zeros(3, np.float32)), ValueError, "mean"),
        (dict(l2=[0.0, 1.0]), ValueError, "equally long"),
    ],
)
def test_invalid_arguments_are_rejected(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = dict(
        x=np.zeros((40, 4), np.float32), mean=np.zeros(4, np.float32), inverse_scale=np.ones(4, np.float32),
        index=np.array([0, 1]), partner=None, share=None, label=np.array([0, 1], dtype=np.int32), num_classes=2,
        l1=[1.0], l2=[0.0], tolerance=1e-4, max_iterations=10,
    )  # fmt: skip
    HOST.logistic_path(**arguments)
    with pytest.raises(error, match=message):
        HOST.logistic_path(**(arguments | change))
