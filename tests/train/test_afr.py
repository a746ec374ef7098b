"""AFR: weights and solution against gradient descent, the search, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spurmix import GroupIndex, evaluate, models, retrain_afr

RNG = np.random.default_rng(6)


def data(count: int, correlation: float) -> tuple[np.ndarray[Any, Any], GroupIndex]:
    """Three classes with three attributes. The attribute is easier to see than the class."""
    labels = RNG.integers(0, 3, count)
    attributes = np.where(RNG.random(count) < correlation, labels, RNG.integers(0, 3, count))
    features = RNG.standard_normal((count, 8)).astype(np.float32)
    features[np.arange(count), labels] += 2
    features[np.arange(count), 3 + attributes] += 4
    return features, GroupIndex(labels, attributes)


TRAIN, GROUPS = data(600, 0.9)
HELD_OUT = data(300, 0.0)


def biased_head() -> nn.Linear:
    """A head that predicts mostly by the attribute."""
    layer = nn.Linear(8, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([0.3 * torch.eye(3), torch.eye(3), torch.zeros(3, 2)], dim=1))
        layer.bias.zero_()
    return layer


@pytest.mark.parametrize(("gamma", "l2"), [(0.0, 0.1), (4.0, 0.02), (10.0, 0.3)])
def test_afr_agrees_with_gradient_descent(gamma: float, l2: float) -> None:
    model = biased_head()
    x, y = np.c_[TRAIN, np.ones(600)].astype(np.float64), GROUPS.labels
    initial = torch.cat([model.weight, model.bias[:, None]], dim=1).detach().double().numpy()
    exponential = np.exp(x @ initial.T)
    weights = np.array([
        np.exp(-gamma * exponential[n, y[n]] / exponential[n].sum()) / (y == y[n]).sum() for n in range(600)
    ])  # fmt: skip
    weights /= weights.sum()
    theta = initial.copy()
    for _ in range(4000):
        exponential = np.exp(x @ theta.T)
        error = exponential / exponential.sum(axis=1, keepdims=True) - np.eye(3)[y]
        theta -= 0.05 * ((weights[:, None] * error).T @ x + 2 * l2 * (theta - initial))
    head = retrain_afr(model, TRAIN, GROUPS, gamma=[gamma], l2=[l2])
    assert head.best is None and head.trials == () and head.method == "afr"
    np.testing.assert_allclose(head.weight, theta[:, :-1], atol=1e-4)
    np.testing.assert_allclose(head.bias, theta[:, -1], atol=1e-4)
    assert torch.equal(model.weight, head.weight)
    assert np.abs(theta - initial).max() > 0.01


def test_the_search_chooses_by_the_worst_group_and_improves_it() -> None:
    model = biased_head()
    before = evaluate(model, *HELD_OUT).worst_group
    unattributed = GroupIndex(GROUPS.labels)
    head = retrain_afr(model, TRAIN, unattributed, gamma=[0, 8], l2=[0.01, 10], validation=HELD_OUT)
    assert [trial.settings for trial in head.trials] == [{"gamma": g, "l2": k} for g in (0, 8) for k in (0.01, 10)]
    assert head.best is not None and head.best.settings == {"gamma": 8, "l2": 0.01}
    after = evaluate(model, *HELD_OUT).worst_group
    assert after == pytest.approx(head.best.worst_group) and after > before + 0.2
    assert "chosen gamma=8, l2=0.01 of 4 settings" in str(head)


def test_only_the_last_layer_changes() -> None:
    torch.manual_seed(0)
    model = models.small_resnet(2, width=4)
    images = RNG.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    retrain_afr(model, images, GroupIndex(RNG.integers(0, 2, 60)), gamma=[2], l2=[0.1])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}


def test_bad_arguments() -> None:
    bad = torch.from_numpy(TRAIN.copy())
    bad[3, 1] = torch.inf
    cases: list[tuple[dict[str, Any], str]] = [
        ({"l2": [0.0]}, "l2 must be a positive finite number, got 0"),
        ({"gamma": [-1.0]}, "gamma must be 0 or more"),
        ({"gamma": []}, "gamma and l2 must have one value or more"),
        ({}, "validation is required to choose"),
        ({"gamma": [1], "l2": [1], "features": bad}, "features must be finite, but row 3 is not"),
        (
            {"gamma": [1], "l2": [1], "features": bad[:, :5].nan_to_num()},
            "features must have 8 columns like the head, got 5",
        ),
    ]
    for options, text in cases:
        with pytest.raises(ValueError, match=text):
            retrain_afr(biased_head(), TRAIN, GROUPS, **options)
    more = TRAIN[:4], GroupIndex([0, 1, 2, 3])
    with pytest.raises(ValueError, match="validation has class 3, but the head has no output for it"):
        retrain_afr(biased_head(), TRAIN, GROUPS, validation=more)
    with pytest.raises(ValueError, match="the head has 2 outputs, but the groups have 3 classes"):
        retrain_afr(nn.Linear(8, 2), TRAIN, GROUPS, gamma=[1], l2=[1])
