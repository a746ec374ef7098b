"""The policies that `inspect`, `audit` and reports show."""

from __future__ import annotations

import math

import numpy as np

from spurmix import GroupIndex, policies
from spurmix.cli.correlations import attribute_notes, default_policies, residual_correlations
from spurmix.data.dataset.format import Metadata


def test_default_policies_are_all_without_required_arguments() -> None:
    assert set(default_policies()) == {*policies.__all__} - {"upweight"}


def test_correlations_that_cannot_be_determined() -> None:
    raw, audits = residual_correlations(GroupIndex([0, 0, 1, 1], [0, 1, None, None]))
    assert math.isnan(raw)
    for audit in audits.values():
        assert not isinstance(audit, str) and math.isnan(audit.residual) and math.isnan(audit.residual_given_lam)


def test_notes_on_attributes_of_the_training_split() -> None:
    labels, splits = np.array([0, 0, 1, 1, 0, 1]), ["test"] * 2 + ["train"] * 4
    attributes = {"place": np.array([0, 1, 1, 1, 0, 0]), "time": np.array([0, 1, 1, 0, -1, 0])}
    metadata = Metadata(
        labels, splits, [""] * 6, attributes, ("cat", "dog"), {"place": ("in", "out"), "time": ("a", "b")}
    )
    place, time, warning = attribute_notes(metadata)
    assert place == "correlation of class and place in train: 0.577"
    assert time == "correlation of class and time in train: cannot be determined"
    assert warning.startswith("the correlation cannot be determined") and "in cat (1 of 1 unknown)" in warning
