"""Donors of attributes: equal to the definition, for classes with and without donors."""

from __future__ import annotations

import numpy as np
import pytest

from spurmix import GroupIndex
from spurmix.core.array_types import FloatArray
from spurmix.core.donors import donor_rows


def definition(groups: GroupIndex, mass: FloatArray) -> FloatArray:
    """Weights `[C, G]`."""
    weights = np.zeros((len(mass), groups.num_groups))
    for (y, a), probability in np.ndenumerate(mass):
        donors = np.where(groups.group_attributes == a, groups.sizes, 0).astype(np.float64)
        own = np.where(groups.group_labels == y, donors, 0.0)
        if own.any():
            weights[y] += probability * (own / own.sum())
            continue
        per_class = np.bincount(groups.group_labels, weights=donors, minlength=len(mass))
        share = donors / np.maximum(per_class[groups.group_labels], 1.0) / np.count_nonzero(per_class)
        weights[y] += probability * share
    return weights


@pytest.mark.parametrize("custom", [False, True])
def test_weights_are_those_of_the_definition(custom: bool, rng: np.random.Generator) -> None:
    for classes, attributes in ((1, 1), (3, 2), (4, 7)):
        # Every attribute and every class occurs, and some pairs do not.
        label = np.concatenate([np.arange(classes), np.zeros(attributes, dtype=np.int64), rng.integers(0, classes, 9)])
        attribute = np.concatenate(
            [np.zeros(classes, dtype=np.int64), np.arange(attributes), rng.integers(-1, attributes, 9)]
        )
        groups = GroupIndex(label, attribute)
        if custom:
            attribute = np.maximum(attribute, 0)
            number = np.unique(label * attributes + attribute, return_inverse=True)[1]
            groups = GroupIndex(label, attribute, groups=rng.permutation(number.max() + 1)[number])
        mass = rng.random((classes, attributes)) * (rng.random((classes, attributes)) < 0.8)
        rows = donor_rows(groups, np.arange(classes), np.arange(attributes), mass)
        expected = definition(groups, mass)
        used = expected.any(axis=1)[groups.group_labels]
        assert ((rows.row_of >= 0) == used).all()
        assert rows.matrix()[used].tolist() == expected[groups.group_labels][used].tolist()
