"""JTT, composed of `finetune`, `infer_groups` and `policies.upweight`, agrees with an implementation in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spurmix import GroupIndex, MixLoader, finetune, infer_groups, policies

FACTOR, RATE, DECAY = 6, 0.1, 0.01
RNG = np.random.default_rng(9)
LABELS = RNG.integers(0, 2, 500)
ATTRIBUTES = np.where(RNG.random(500) < 0.92, LABELS, 1 - LABELS)
FEATURES = RNG.standard_normal((500, 4)).astype(np.float32)
FEATURES[:, 0] += 1.5 * LABELS
FEATURES[:, 1] += 3 * ATTRIBUTES
TEST = RNG.standard_normal((2000, 4)) + np.array([0.75, 1.5, 0, 0])


def sgd(theta: NDArray[Any], batches: list[NDArray[Any]]) -> NDArray[Any]:
    """Train a linear model with the examples of each batch. `theta` has weights and biases, `[2, 5]`."""
    x = np.c_[FEATURES, np.ones(500)].astype(np.float64)
    for examples in batches:
        exponential = np.exp(x[examples] @ theta.T)
        error = exponential / exponential.sum(axis=1, keepdims=True) - np.eye(2)[LABELS[examples]]
        decayed = DECAY * np.c_[theta[:, :-1], np.zeros(2)]
        theta = theta - RATE * (error.T @ x[examples] / len(examples) + decayed)
    return theta


def predictions(theta: NDArray[Any]) -> NDArray[Any]:
    return (np.c_[TEST, np.ones(len(TEST))] @ theta.T).argmax(axis=1)


def values(model: nn.Linear) -> NDArray[Any]:
    return torch.cat([model.weight, model.bias[:, None]], dim=1).detach().numpy().astype(np.float64)


def test_jtt_agrees_with_numpy() -> None:
    torch.manual_seed(3)
    early, final = nn.Linear(4, 2), nn.Linear(4, 2)
    start = values(early), values(final)
    options: Any = dict(optimizer="sgd", momentum=0, learning_rate=RATE, weight_decay=DECAY, schedule="constant")

    groups = GroupIndex(LABELS)
    data = MixLoader(FEATURES, groups, policies.erm(), 50, epochs=3)
    finetune(early, data, **options)
    identified = sgd(start[0], [data.batch(n).index.numpy() for n in range(30)])
    np.testing.assert_allclose(values(early), identified, atol=1e-4)
    errors = (np.c_[FEATURES, np.ones(500)] @ identified.T).argmax(axis=1) != LABELS

    inferred = infer_groups(early, FEATURES, groups, "errors")
    assert np.array_equal(inferred.attributes, errors) and 10 < errors.sum() < 250
    upsampled = np.sort(np.concatenate([np.arange(500), np.repeat(np.flatnonzero(errors), FACTOR - 1)]))
    size = 10
    epoch = len(upsampled)
    data = MixLoader(FEATURES, inferred, policies.upweight({"misclassified": FACTOR}), size, steps=10 * epoch // size)
    drawn = np.concatenate([data.batch(n).index.numpy() for n in range(len(data))])
    for k in range(9):  # each epoch is the upsampled dataset of the paper
        assert np.array_equal(np.sort(drawn[k * epoch : (k + 1) * epoch]), upsampled)

    finetune(final, data, **options)
    expected = sgd(start[1], np.split(drawn, len(data)))
    np.testing.assert_allclose(values(final), expected, atol=1e-3)
    assert (predictions(values(final)) == predictions(expected)).mean() >= 0.999
    plain = sgd(start[1], np.split(RNG.integers(0, 500, drawn.size), len(data)))
    assert (predictions(plain) == predictions(expected)).mean() < 0.95  # upsampling matters
