"""Policies that the demos of images and texts share."""

from __future__ import annotations

from spurmix.core import policies
from spurmix.core.policy import MixPolicy

COMPARED = ("erm", "group_balanced", "lisa", "selecmix", "mixpro", "dispel", "balance_attributes")
"""Policies that `--compare` trains."""


def demo_policies(prior: list[list[float]], unmixed: float = 0.0) -> dict[str, MixPolicy]:
    """Return every policy with arguments for the demo.

    By default, group_balanced, lisa and selecmix draw only examples of known attribute, and mixpro mixes each other example
    with one of known attribute. upweight triples the weight of the groups whose attribute contradicts the class.

    Args:
        prior: For each class, the share of each attribute among the examples whose attribute is unknown.
        unmixed: Share of unmixed samples of balance_attributes. 0 mixes all samples with Beta(0.4, 0.4).

    Returns:
        The policies by name.
    """
    return {
        "erm": policies.erm(),
        "class_balanced": policies.class_balanced(),
        "group_balanced": policies.group_balanced(),
        "mixup": policies.mixup(),
        "lisa": policies.lisa(),
        "selecmix": policies.selecmix(),
        "mixpro": policies.mixpro("attributed"),
        "dispel": policies.dispel(),
        "balance_attributes": policies.balance_attributes(prior=prior, unmixed=unmixed),
        "upweight": policies.upweight({(0, 1): 3.0, (1, 0): 3.0}),
    }
