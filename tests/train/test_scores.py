"""Calibration error, AUROC per attribute, and the interval of the worst group."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from spurmix import GroupIndex, evaluate
from spurmix.train import scores
from spurmix.train.evaluation import Evaluation
from spurmix.train.metrics import evaluate_logits


def data(classes: int, count: int = 600, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits float32 `[N, C]`, labels and attributes. Some attributes are unknown."""
    rng = np.random.default_rng(classes)
    labels, attributes = rng.integers(0, classes, count), rng.integers(-1, 2, count)
    logits = rng.standard_normal((count, classes)) + 1.5 * np.eye(classes)[labels] + 0.5 * attributes[:, None]
    return (scale * logits).astype(np.float32), labels, attributes


def probabilities(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(1).numpy()


def calibration_by_hand(logits: np.ndarray, labels: np.ndarray) -> float:
    """Equation 3 of Guo et al. 2017."""
    p = probabilities(logits)
    confidence, correct = p.max(1), p.argmax(1) == labels
    error = 0.0
    for m in range(15):
        chosen = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if chosen.any():
            error += chosen.mean() * abs(correct[chosen].mean() - confidence[chosen].mean())
    return error


@pytest.mark.parametrize("classes", [2, 5])
def test_calibration_error_against_a_count_by_hand(classes: int) -> None:
    logits, labels, attributes = data(classes, scale=2.0)
    result = evaluate_logits(logits, GroupIndex(labels, attributes))
    assert result.ece == pytest.approx(calibration_by_hand(logits, labels), abs=1e-6)
    for row in result.groups:
        chosen = (labels == row.label) & (attributes == row.attribute)
        assert row.ece == pytest.approx(calibration_by_hand(logits[chosen], labels[chosen]), abs=1e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_auroc_agrees_with_scikit_learn(classes: int, scale: float) -> None:
    logits, labels, attributes = data(classes, scale=scale)
    result = evaluate_logits(logits, GroupIndex(labels, attributes, attribute_names=["land", "water"]))

    def expected(chosen: np.ndarray) -> float:
        p = probabilities(logits[chosen])
        return roc_auc_score(labels[chosen], p[:, 1] if classes == 2 else p, multi_class="ovr")

    assert result.auroc == pytest.approx(expected(np.ones(labels.size, dtype=bool)), abs=1e-3)
    assert [row.name for row in result.attributes] == ["unknown", "land", "water"]
    for row in result.attributes:
        chosen = attributes == row.attribute
        assert row.count == chosen.sum() and row.auroc == pytest.approx(expected(chosen), abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_model_and_logits_give_the_same_scores(classes: int) -> None:
    logits, labels, attributes = data(classes, scale=30.0)  # probabilities of 1 in float64
    members = np.random.default_rng(0).random((labels.size, 3)) < 0.4
    groups = GroupIndex(labels, attributes)
    result = evaluate(nn.Identity(), logits, groups, membership=members, batch_size=17)
    expected = evaluate_logits(logits, groups, membership=members)
    assert result.to_dict() == expected.to_dict()
    for k, cell in enumerate(result.cells):
        chosen = members[:, k]
        assert cell.ece == pytest.approx(calibration_by_hand(logits[chosen], labels[chosen]), abs=1e-6)


def test_values_that_cannot_be_determined() -> None:
    logits, labels, _ = data(2)
    same = evaluate_logits(logits, GroupIndex(labels, labels))  # each attribute value has one class
    assert [math.isnan(row.auroc) for row in same.attributes] == [True, True] and not math.isnan(same.auroc)
    assert "within a=0 not determined, a=1 not determined" in str(same)
    stored = json.loads(json.dumps(same.to_dict(), allow_nan=False))
    assert stored["attributes"][0]["auroc"] is None
    assert evaluate_logits(logits, GroupIndex(labels)).attributes == ()
    one = evaluate_logits(np.zeros((3, 1)), GroupIndex([0, 0, 0]))
    assert math.isnan(one.auroc) and one.ece == 0
    many = GroupIndex(np.arange(2000) % 1000)
    assert math.isnan(evaluate_logits(np.random.default_rng(0).random((2000, 1000)), many).auroc)


def test_custom_groups_have_the_scores_of_their_attributes() -> None:
    logits, labels, attributes = data(2)
    cells = evaluate_logits(logits, GroupIndex(labels, attributes))
    custom = evaluate_logits(logits, GroupIndex(labels, attributes, groups=np.arange(labels.size) % 3))
    assert custom.attributes == cells.attributes and custom.ece == cells.ece


def test_interval_of_the_minimum() -> None:
    correct, counts = np.array([45, 45, 45, 99]), np.array([50, 50, 50, 100])
    low, high = scores.resample_minimum(correct, counts, resamples=4000)
    rng = np.random.default_rng(1)
    minima = (rng.binomial(counts, correct / counts, (4000, 4)) / counts).min(axis=1)
    assert (low, high) == pytest.approx(np.quantile(minima, [0.025, 0.975]), abs=0.021)  # one example is 0.02
    assert scores.resample_minimum(correct, counts) == scores.resample_minimum(correct, counts)
    wide, _ = scores.resample_minimum(correct[:1], counts[:1])
    assert low < wide  # the minimum of several groups is lower
    assert scores.resample_minimum(np.array([5, 7]), np.array([5, 7])) == (1.0, 1.0)


def test_groups_that_cannot_be_the_worst_do_not_change_the_interval() -> None:
    correct, counts = np.array([30, *[990] * 300]), np.array([60, *[1000] * 300])
    assert scores.resample_minimum(correct, counts) == scores.resample_minimum(correct[:1], counts[:1])


def test_evaluation_shows_interval_calibration_and_auroc() -> None:
    logits, labels, attributes = data(2)
    result = evaluate_logits(logits, GroupIndex(labels, attributes), min_group_size=2)
    low, high = result.worst_interval
    assert low <= result.worst_group <= high
    text = str(result)
    assert "95% interval    ECE" in text and f"worst group: {100 * low:.1f} to {100 * high:.1f} (bootstrap)" in text
    assert f"(ECE) {result.ece:.3f}, AUROC {result.auroc:.3f}; within unknown" in text
    stored = result.to_dict()
    assert stored["worst_interval"] == [low, high] and stored["ece"] == result.ece
    assert [row["ece"] for row in stored["groups"]] == [row.ece for row in result.groups]  # type: ignore[union-attr]


def test_evaluation_of_an_earlier_version_has_no_scores() -> None:
    logits, labels, attributes = data(2)
    full = evaluate_logits(logits, GroupIndex(labels, attributes))
    names = ("groups", "worst_group", "worst_name", "average", "adjusted_average", "weights_from", "num_groups", "pairs",
             "predictions")  # fmt: skip
    old = Evaluation(**{name: getattr(full, name) for name in names})
    assert old.worst_interval == full.worst_interval and "AUROC not determined" in str(old)
    json.dumps(old.to_dict(), allow_nan=False)
