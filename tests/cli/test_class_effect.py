"""The accuracy of one class with and without its spurious feature."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from spurmix import GroupIndex, evaluate
from spurmix.cli.class_effect import class_effect
from spurmix.train.evaluation import Evaluation

LABELS = np.repeat([0, 1, 2], [100, 60, 10])
ATTRIBUTES = np.concatenate([np.repeat([0, 1], [80, 20]), np.repeat([0, 1, -1], [10, 30, 20]), np.zeros(10, int)])
GROUPS = GroupIndex(LABELS, ATTRIBUTES, class_names=["cat", "dog", "fox"], attribute_names=["absent", "present"])


def evaluation(groups: GroupIndex = GROUPS) -> Evaluation:
    """72 of 80 cats without the feature are correct, and 8 of 20 with it."""
    predicted = LABELS.copy()
    predicted[:8] = predicted[80:92] = 1
    return evaluate(nn.Identity(), torch.eye(3)[torch.from_numpy(predicted)], groups)


def test_effect_of_the_feature_on_a_class() -> None:
    found = class_effect(evaluation(), GROUPS, "cat")
    assert [(group.name, group.accuracy) for group in found.groups] == [("cat, present", 0.4), ("cat, absent", 0.9)]
    assert found.difference == pytest.approx(0.5)
    z = norm.ppf(0.975)

    def bounds(correct: int, count: int) -> list[float]:
        p = correct / count
        return [float(x.real) for x in np.sort(np.roots([1 + z * z / count, -2 * p - z * z / count, p * p]))]

    (low1, high1), (low2, high2) = bounds(72, 80), bounds(8, 20)
    assert found.low == pytest.approx(0.5 - math.sqrt((0.9 - low1) ** 2 + (high2 - 0.4) ** 2), abs=1e-3)
    assert found.high == pytest.approx(0.5 + math.sqrt((high1 - 0.9) ** 2 + (0.4 - low2) ** 2), abs=1e-3)
    assert "cat: difference 50.00 points" in str(found) and "cat, present: 40.00% of 20" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["class"] == "cat"


def test_classes_with_unknown_or_single_attributes() -> None:
    assert [group.name for group in class_effect(evaluation(), GROUPS, "dog").groups] == ["dog, absent", "dog, present"]
    single = class_effect(evaluation(), GROUPS, "fox")
    assert math.isnan(single.difference) and "less than two known attributes" in str(single)
    assert single.to_dict()["difference"] is None
    with pytest.raises(ValueError, match="--class must be one of cat, dog, fox, got 'cow'"):
        class_effect(evaluation(), GROUPS, "cow")
    unknown = GroupIndex(LABELS, np.where(LABELS == 0, -1, ATTRIBUTES))
    with pytest.raises(ValueError, match="no examples of class '0' whose attribute is known"):
        class_effect(evaluation(unknown), unknown, "0")
