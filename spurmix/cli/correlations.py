"""The correlation of class and attribute that each policy leaves in a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spurmix.core import policies

if TYPE_CHECKING:
    from spurmix.core.groups import GroupIndex
    from spurmix.core.policy import MixPolicy

NAMES = ("erm", "class_balanced", "group_balanced", "mixup", "lisa", "selecmix", "mixpro", "balance_attributes")
"""Policies that have no required arguments."""


def default_policies() -> dict[str, MixPolicy]:
    """Return the policies that have no required arguments, with default settings."""
    return {name: getattr(policies, name)() for name in NAMES}


def residual_correlations(groups: GroupIndex) -> tuple[float, dict[str, float | str]]:
    """Audit every policy.

    Args:
        groups: The groups to mix.

    Returns:
        The correlation of class and attribute in the data. Then, by policy, the correlation after mixing, or the reason
        why the policy does not apply to these groups.
    """
    raw = 0.0
    residuals: dict[str, float | str] = {}
    for name, policy in default_policies().items():
        try:
            audit = policy.audit(groups)
            raw, residuals[name] = audit.raw, audit.residual
        except ValueError as error:
            residuals[name] = str(error)
    return raw, residuals
