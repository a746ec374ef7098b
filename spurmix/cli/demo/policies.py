"""Policies that the demos of images and texts share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spurmix.core import policies
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.lam import Beta
from spurmix.core.policy import MixPolicy

COMPARED = ("erm", "group_balanced", "lisa", "selecmix", "mixpro", "balance_attributes")
"""Policies that `--compare` trains."""
LAM = Beta(0.4, 0.4)
"""Distribution of lam of balance_attributes."""


def demo_policies(groups: GroupIndex, prior: list[list[float]]) -> dict[str, MixPolicy]:
    """Return every policy with arguments for the demo.

    group_balanced, lisa and selecmix draw only examples of known attribute, as in their papers. mixpro mixes each other
    example with one of known attribute. upweight triples the weight of the groups whose attribute contradicts the class.

    Args:
        groups: Groups of the training examples.
        prior: For each class, the share of each attribute among the examples whose attribute is unknown.

    Returns:
        The policies by name.
    """
    return {
        "erm": policies.erm(),
        "class_balanced": policies.class_balanced(),
        "group_balanced": _without_unknown(policies.group_balanced(), groups),
        "mixup": policies.mixup(),
        "lisa": _without_unknown(policies.lisa(), groups),
        "selecmix": _without_unknown(policies.selecmix(), groups),
        "mixpro": _mixpro(groups),
        "balance_attributes": policies.balance_attributes(lam=LAM, prior=prior),
        "upweight": policies.upweight({(0, 1): 3.0, (1, 0): 3.0}),
    }


def _without_unknown(policy: MixPolicy, groups: GroupIndex) -> MixPolicy:
    """A policy that draws each group of known attribute equally often, and no example of unknown attribute."""
    return replace(policy.resolve(groups), weights=(groups.group_attributes != UNKNOWN).astype(float))


def _mixpro(groups: GroupIndex) -> MixPolicy:
    """MixPro: the examples of unknown attribute are the source, those of known attribute are the target."""
    unknown = groups.group_attributes == UNKNOWN
    same_class = groups.group_labels[:, None] == groups.group_labels[None, :]
    partner = (unknown[:, None] & ~unknown[None, :] & same_class).astype(float)
    weights = np.where(unknown, groups.sizes, 0).astype(float)
    return MixPolicy("groups", weights, partner, 0.5, "keep", name="mixpro")
