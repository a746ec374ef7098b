"""The correlation of class and attribute that each policy leaves in a dataset."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from spurmix.core import policies
from spurmix.core.audit import correlation_text, unknown_warnings
from spurmix.core.groups import UNKNOWN, GroupIndex

if TYPE_CHECKING:
    from spurmix.core.audit import Audit
    from spurmix.core.policy import MixPolicy
    from spurmix.data.dataset.format import Metadata

NAMES = (
    "erm", "class_balanced", "group_balanced", "mixup", "lisa", "selecmix", "mixpro", "dispel", "balance_attributes"
)  # fmt: skip
"""Policies that have no required arguments."""

MAX_VALUES = 1000
"""Maximum number of classes or attributes for a note. The time of an audit grows with their third power."""


def default_policies() -> dict[str, MixPolicy]:
    """Return the policies that have no required arguments, with default settings."""
    return {name: getattr(policies, name)() for name in NAMES}


def residual_correlations(groups: GroupIndex) -> tuple[float, dict[str, Audit | str]]:
    """Audit every policy.

    Args:
        groups: The groups to mix.

    Returns:
        The correlation of class and attribute in the data. Then, by policy, the audit, or the reason why the policy does
        not apply to these groups. A correlation that cannot be determined is NaN.
    """
    raw = math.nan
    audits: dict[str, Audit | str] = {}
    for name, policy in default_policies().items():
        try:
            audits[name] = audit = policy.audit(groups)
            raw = audit.raw
        except ValueError as error:
            audits[name] = str(error)
    return raw, audits


def attribute_notes(metadata: Metadata) -> list[str]:
    """Describe the correlation of class and attribute in the split "train", or else the first split, before mixing.

    Args:
        metadata: Metadata of a dataset.

    Returns:
        A line for each attribute, and warnings about unknown attributes.
    """
    notes = []
    split = "train" if "train" in metadata.splits else metadata.splits[0]
    rows = np.array([name == split for name in metadata.splits])
    for name, values in metadata.attributes.items():
        known = np.ma.MaskedArray(values[rows], mask=values[rows] == UNKNOWN)
        with warnings.catch_warnings():  # the notes of the manifest include names that look the same
            warnings.simplefilter("ignore", UserWarning)
            groups = GroupIndex(metadata.labels[rows], known, class_names=metadata.class_names)
        if max(groups.num_classes, groups.num_attributes) <= MAX_VALUES:
            raw = correlation_text(policies.erm().audit(groups).raw, 3)
            notes.append(f"correlation of class and {name} in {split}: {raw}")
        notes += unknown_warnings(groups)
    return notes
