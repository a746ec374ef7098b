"""The target of MixPro: a set of examples, which are mixed into all others of their class."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spurmix.core import checks
from spurmix.core.array_types import Int64Array
from spurmix.core.groups import MIXED, UNKNOWN, GroupIndex
from spurmix.core.lam import LamDistribution
from spurmix.core.partners import PartnerRows
from spurmix.core.policy import MixPolicy
from spurmix.core.resolved_policy import require_cells
from spurmix.core.shares import missing_attribute

Target: TypeAlias = int | str | ArrayLike
"""An attribute (number or name), a group (name), "attributed", example numbers, or a mask `[N]`."""
ATTRIBUTED = "attributed"
"""Target of all examples of known attribute."""
DEFAULT_TARGET = ""
"""`ATTRIBUTED` if some attributes are unknown, else attribute 1."""
ARGUMENT = "mixpro: target (an attribute, a group or examples)"


def checked_target(target: Target | None) -> int | str | Int64Array | NDArray[np.bool_]:
    """Return the target as a number, a name, example numbers or a mask.

    Raises TypeError or ValueError if it is anything else, or empty.
    """
    if target is None:
        return DEFAULT_TARGET
    if isinstance(target, str):
        if not target:
            raise ValueError(f"{ARGUMENT} must not be empty")
        return target
    if np.ndim(target) == 0:
        return checks.integer(target, ARGUMENT, 0)
    array = np.asarray(target)
    if array.ndim != 1 or (array.size and array.dtype != bool and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"{ARGUMENT} must be a mask or example numbers in one dimension, got {array.dtype} {list(array.shape)}"
        )
    if not (array.any() if array.dtype == bool else array.size):
        raise ValueError(f"{ARGUMENT} must have at least one example, got none")
    return array if array.dtype == bool else array.astype(np.int64)


def mixpro_policy(groups: GroupIndex, target: int | str | None, lam: LamDistribution) -> MixPolicy:
    """Make the policy `mixpro` for its groups. If `target` is None, the last groups have the target examples."""
    is_target, is_source = _by_examples(groups) if target is None else _by_group(groups, target)
    classes, class_of = np.unique(groups.group_labels, return_inverse=True)
    targets = np.flatnonzero(is_target & (groups.sizes > 0))
    targets = targets[np.argsort(class_of[targets], kind="stable")]
    counts = np.bincount(class_of[targets], minlength=classes.size)
    weights = groups.sizes[targets].astype(np.float64)
    partner = PartnerRows.of_entries(np.where(is_source, class_of, -1), counts, targets, weights)
    return MixPolicy("groups", np.where(is_target, 0, groups.sizes), partner, lam, "keep")


def _by_examples(groups: GroupIndex) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Target groups and source groups, if target examples are in groups of their own."""
    is_target = np.arange(groups.num_groups) >= groups.num_groups - groups.target_groups
    is_source = ~is_target & (groups.sizes > 0)
    mixed = np.flatnonzero(is_source & (groups.group_labels == MIXED))
    if mixed.size:
        raise ValueError(f"mixpro requires groups of a single class, but group {mixed[0]} has several")
    if not groups.target_groups:
        raise ValueError(
            "mixpro: all target examples are left out; give targets of known attribute, or another unknown"
        )
    if not is_source.any():
        raise ValueError("mixpro: every example is a target example; source examples are required")
    return is_target, is_source


def _by_group(groups: GroupIndex, target: int | str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Target groups and source groups, if the target is an attribute, a group, or all examples of known attribute."""
    require_cells(groups, "mixpro")
    known = (groups.group_attributes != UNKNOWN) & (groups.sizes > 0)
    names = groups.attribute_names or ()
    if target == DEFAULT_TARGET:
        target = ATTRIBUTED if ((groups.group_attributes == UNKNOWN) & (groups.sizes > 0)).any() else 1
    elif target == ATTRIBUTED and ATTRIBUTED in names:
        target = names.index(ATTRIBUTED)
    if target == ATTRIBUTED:
        if not known.any():
            raise missing_attribute(groups, "mixpro: no example has a known attribute; target examples are required")
        if known.sum() == np.count_nonzero(groups.sizes):
            raise ValueError(
                'mixpro: every example has a known attribute, so target="attributed" leaves no source examples; give an '
                "attribute, a group or examples as the target, or draw the examples of unknown attribute"
            )
        return known, ~known & (groups.sizes > 0)
    if isinstance(target, str) and target not in names:
        found = [groups.group_name(g) == target for g in range(groups.num_groups)]
        if not any(found):
            raise ValueError(
                f"mixpro: target: there is no attribute or group named {target!r}; the attributes are "
                f"{groups.attribute_names}"
            )
        is_target = np.array(found)
    else:
        is_target = groups.group_attributes == (names.index(target) if isinstance(target, str) else target)
    if not is_target.any():
        raise missing_attribute(groups, f"mixpro: no example has the target attribute {target!r}")
    if is_target.all():
        raise ValueError(f"mixpro: every example has the target attribute {target!r}; source examples are required")
    return is_target, ~is_target & (groups.group_attributes != UNKNOWN)
