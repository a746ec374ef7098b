"""Balance of attributes: the shares of donors with which every attribute occurs equally with every class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spurmix.core.array_types import Int64Array
from spurmix.core.donors import donor_rows
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.lam import Beta, Fixed, LamDistribution, Scaled, moments, quantile_table
from spurmix.core.policy import MixPolicy
from spurmix.core.resolved_policy import Labels, require_cells
from spurmix.core.shares import (
    Prior,
    known_counts,
    missing_attribute,
    prior_shares,
    require_shares,
    unknown_counts,
    unknown_shares,
)


def balanced_policy(
    groups: GroupIndex, lam: LamDistribution | None, labels: Labels, prior: Prior | None, unmixed: float = 0.0
) -> MixPolicy:
    """Make the policy `balance_attributes` for its groups."""
    require_cells(groups, "balance_attributes")
    given = prior_shares(groups, prior)
    counts = known_counts(groups)  # [C, A]
    unknown = unknown_counts(groups)  # [C]
    attributes = np.flatnonzero(counts.any(axis=0))
    if attributes.size == 0:
        raise missing_attribute(groups, "balance_attributes: no example has a known attribute; donors are required")
    assumed = unknown_shares(groups, given)
    require_shares(assumed, np.flatnonzero(unknown > 0))
    classes = np.flatnonzero(counts.sum(axis=1) + unknown > 0)
    drawn = counts  # with `unmixed`, the mixed examples are those of unknown attribute
    if unmixed:
        _require_all_cells(classes, counts[np.ix_(classes, attributes)], unknown[classes])
        drawn = np.zeros_like(counts)
    shares = drawn + unknown[:, None] * np.nan_to_num(assumed)
    shares = shares[classes] / shares[classes].sum(axis=1, keepdims=True)
    absent = np.setdiff1d(np.arange(groups.num_attributes), attributes)
    if shares[:, absent].any():
        a = int(absent[shares[:, absent].any(axis=0)][0])
        raise missing_attribute(groups, f"prior: attribute {a} has a positive share, but no known example has it")
    shares = shares[:, attributes]

    default = Fixed(0.5) if unmixed else Beta(0.4, 0.4 * max(1, attributes.size - 1))
    used, notes = _within_bound(lam if lam is not None else default, 1.0 / (attributes.size * shares.max()))
    mean, _ = moments(quantile_table(used))
    mass = np.zeros_like(shares)
    if mean < 1.0:
        mass = np.maximum((1.0 / attributes.size - mean * shares) / (1.0 - mean), 0.0)
        mass[mass < 1e-12] = 0.0
    partner = donor_rows(groups, classes, attributes, mass)
    if not unmixed:
        return MixPolicy("classes", None, partner, used, labels, notes=notes, attribute_shares=given)
    known = groups.group_attributes != UNKNOWN
    cells = np.where(known, counts[groups.group_labels, groups.group_attributes], unknown[groups.group_labels])
    share = np.where(known, unmixed / attributes.size, 1.0 - unmixed) * groups.sizes / cells
    partner = replace(partner, row_of=np.where(known, -1, partner.row_of))
    return MixPolicy("groups", share, partner, used, labels, notes=notes, attribute_shares=given)


def _require_all_cells(classes: Int64Array, counts: Int64Array, unknown: Int64Array) -> None:
    """Check that `unmixed` can be balanced: each class has examples of each attribute and of unknown attribute."""
    missing = np.flatnonzero((counts == 0).any(axis=1) | (unknown == 0))
    if missing.size:
        raise ValueError(
            "balance_attributes: unmixed > 0 requires examples of each attribute, and of unknown attribute, in each class, "
            f"but class {classes[missing[0]]} has no examples of some of these; use unmixed=0"
        )


def _within_bound(lam: LamDistribution, bound: float) -> tuple[LamDistribution, tuple[str, ...]]:
    """Scale `lam` so that its mean is at most `bound`. Returns it and a note if it was scaled."""
    mean, _ = moments(quantile_table(lam))
    if mean <= bound:
        return lam, ()
    factor = bound / mean
    note = f"lam {lam!r} (mean {mean:.4g}) scaled by {factor:.4g}: its mean may be at most 1 / (A max p) = {bound:.4g}"
    return Scaled(lam, factor), (note,)
