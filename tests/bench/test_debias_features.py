"""Feature settings of the comparison of debiasing methods."""

from __future__ import annotations

import numpy as np
import pytest

from bench.debias.features import SETTINGS, FeatureData, make_features
from spurmix import HeadOptions, fit_head
from spurmix.core.groups import UNKNOWN

FAST = ["gaussian-2x2-95", "gaussian-10x4-95", "color-2x2-99", "background-10x4-95", "watermark-2x4-95"]


def accuracy(data: FeatureData, attributes: bool) -> float:
    """Accuracy of a logistic regression of the class or of the attribute, on balanced test examples."""
    known = np.array(data.train.groups.attributes) >= 0
    values = [np.array(s.groups.attributes if attributes else s.groups.labels) for s in (data.train, data.test)]
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.01, max_iter=300).fit(data.train.features[known], values[0][known])
    return float(model.score(data.test.features, values[1]))


def test_there_are_17_settings() -> None:
    assert len(SETTINGS) == 17
    assert {(s.classes, s.attributes) for s in SETTINGS.values()} == {(2, 2), (2, 4), (10, 2), (10, 4)}
    assert {s.correlation for s in SETTINGS.values()} == {0.9, 0.95, 0.99}


@pytest.mark.parametrize("name", FAST)
def test_splits_are_as_described(name: str) -> None:
    setting = SETTINGS[name]
    data = make_features(setting, 1, known=8)
    known, hidden = data.train.groups.group_attributes != UNKNOWN, data.train.groups.group_attributes == UNKNOWN
    sizes = data.train.groups.sizes
    assert np.ptp(sizes[known]) == 0 and hidden.sum() == setting.classes
    assert 0 < sizes[known][0] <= 8 and known.sum() == setting.classes * setting.attributes
    for split in (data.validation, data.test):
        assert np.ptp(split.groups.sizes) == 0 and split.groups.num_groups == setting.classes * setting.attributes
        assert split.features.dtype == np.float32 and np.isfinite(split.features).all()
    again = make_features(setting, 1, known=8)
    assert np.array_equal(again.train.features, data.train.features)
    assert not np.array_equal(make_features(setting, 2, known=8).train.features[:50], data.train.features[:50])


@pytest.mark.parametrize("name", ["gaussian-2x2-95", "color-2x2-95", "watermark-2x4-95"])
def test_known_attributes_follow_the_correlation(name: str) -> None:
    setting = SETTINGS[name]
    groups = make_features(setting, 0, known="all").train.groups
    attributes = np.array(groups.attributes)
    assert (attributes >= 0).all()
    cut = np.flatnonzero(np.diff(groups.labels) < 0)[0] + 1  # the bulk precedes the attributed examples
    usual = groups.labels[:cut] % setting.attributes
    assert np.mean(attributes[:cut] == usual) == pytest.approx(setting.correlation, abs=0.02)


@pytest.mark.parametrize("name", ["gaussian-2x2-95", "background-2x2-95"])
def test_a_model_follows_the_attribute(name: str) -> None:
    data = make_features(SETTINGS[name], 0)
    assert accuracy(data, attributes=True) > 0.95 > accuracy(data, attributes=False) > 0.6
    head = fit_head(data.train.features, data.train.groups, "logistic", options=HeadOptions(C=[0.1]))
    import torch

    correct = head.logits(torch.from_numpy(data.test.features)).argmax(dim=1).numpy() == data.test.groups.labels
    usual = data.test.groups.labels == np.array(data.test.groups.attributes)
    assert correct[usual].mean() > correct[~usual].mean() + 0.1
