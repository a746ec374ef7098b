"""Partners that share the class or the attribute: equal to the definition, in any order of the groups."""

from __future__ import annotations

import numpy as np
import pytest

from spurmix import GroupIndex
from spurmix.core.array_types import FloatArray
from spurmix.core.contradicting import contradicting_partners


def definition(groups: GroupIndex, p: float) -> FloatArray:
    """The weights of each pair of groups, `[G, G]`."""
    label, attribute = groups.group_labels, groups.group_attributes
    known = attribute >= 0
    same_class, same_attribute = label[:, None] == label, attribute[:, None] == attribute
    within, across = same_class & ~same_attribute & known, ~same_class & same_attribute & known
    weights = np.zeros(within.shape)
    for g in np.flatnonzero(known):
        mass = p if within[g].any() and across[g].any() else float(within[g].any())
        weights[g] += within[g] * (mass / max(1, within[g].sum())) + across[g] * ((1 - mass) / max(1, across[g].sum()))
    return weights


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["all cells", "some cells", "unknown", "custom"])
def test_weights_are_those_of_the_definition(kind: str, p: float, rng: np.random.Generator) -> None:
    for classes, attributes in ((1, 1), (1, 4), (3, 1), (2, 2), (5, 6)):
        number = np.arange(classes * attributes)
        if kind != "all cells":
            number = rng.choice(number, max(1, number.size * 2 // 3), replace=False)
        label, attribute = number // attributes, number % attributes
        if kind == "unknown":
            attribute = np.where(rng.random(number.size) < 0.3, -1, attribute)
        groups = GroupIndex(label, attribute)
        if kind == "custom":  # two groups for each cell, in random order
            label, attribute = np.tile(label, 2), np.tile(attribute, 2)
            groups = GroupIndex(label, attribute, groups=rng.permutation(label.size))
        rows = contradicting_partners(groups, p)
        expected = definition(groups, p)
        assert rows.matrix().tolist() == expected.tolist()
        assert ((rows.row_of >= 0) == expected.any(axis=1)).all()
