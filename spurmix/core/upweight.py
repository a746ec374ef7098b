"""The policy of `upweight`: groups in proportion to size times factor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spurmix.core import checks
from spurmix.core.array_types import Int64Array
from spurmix.core.groups import GroupIndex
from spurmix.core.names import listed, without_inferred
from spurmix.core.policy import MixPolicy
from spurmix.core.resolved_policy import Weights, checked_weights, group_number


def upweight_policy(groups: GroupIndex, factors: Weights) -> MixPolicy:
    """Make the policy of `upweight` for one `GroupIndex`.

    Args:
        groups: Groups of the dataset.
        factors: Factors, see `policies.upweight`.

    Returns:
        The policy.

    Raises:
        TypeError: If the factors are not numbers.
        ValueError: If the factors do not fit the groups.
    """
    values: object = factors
    if isinstance(factors, Mapping):
        values = by_group = np.ones(groups.num_groups)
        for name, value in factors.items():
            by_group[_groups_of(groups, name)] = checks.number(value, f"upweight: factors[{name!r}]")
    checked = checked_weights(values, (groups.num_groups,), "upweight: factors")
    return MixPolicy("groups", groups.sizes * checked)


def _groups_of(groups: GroupIndex, name: object) -> Int64Array:
    """Numbers of the groups of an attribute, given by its name, or of a single group."""
    if not isinstance(name, str):
        return np.array([group_number(groups, name, "upweight: factors")])
    names = [without_inferred(other) for other in groups.attribute_names or ()]
    if without_inferred(name) not in names:
        known = f"the attributes are {listed(names)}" if names else "the groups have no attribute names"
        raise ValueError(f"upweight: factors: there is no attribute {name!r}; {known}")
    return np.flatnonzero(groups.group_attributes == names.index(without_inferred(name)))
