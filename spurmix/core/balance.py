"""Balance of attributes: the shares of donors with which every attribute occurs equally with every class."""

from __future__ import annotations

import numpy as np

from spurmix.core.donors import donor_rows
from spurmix.core.groups import GroupIndex
from spurmix.core.lam import Beta, LamDistribution, Scaled, moments, quantile_table
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


def balanced_policy(groups: GroupIndex, lam: LamDistribution | None, labels: Labels, prior: Prior | None) -> MixPolicy:
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
    shares = counts + unknown[:, None] * np.nan_to_num(assumed)
    shares = shares[classes] / shares[classes].sum(axis=1, keepdims=True)
    absent = np.setdiff1d(np.arange(groups.num_attributes), attributes)
    if shares[:, absent].any():
        a = int(absent[shares[:, absent].any(axis=0)][0])
        raise missing_attribute(groups, f"prior: attribute {a} has a positive share, but no known example has it")
    shares = shares[:, attributes]

    wanted = lam if lam is not None else Beta(0.4, 0.4 * max(1, attributes.size - 1))
    used, notes = _within_bound(wanted, 1.0 / (attributes.size * shares.max()))
    mean, _ = moments(quantile_table(used))
    mass = np.zeros_like(shares)
    if mean < 1.0:
        mass = np.maximum((1.0 / attributes.size - mean * shares) / (1.0 - mean), 0.0)
        mass[mass < 1e-12] = 0.0
    partner = donor_rows(groups, classes, attributes, mass)
    return MixPolicy("classes", None, partner, used, labels, notes=notes, attribute_shares=given)


def _within_bound(lam: LamDistribution, bound: float) -> tuple[LamDistribution, tuple[str, ...]]:
    """Scale `lam` so that its mean is at most `bound`. Returns it and a note if it was scaled."""
    mean, _ = moments(quantile_table(lam))
    if mean <= bound:
        return lam, ()
    factor = bound / mean
    note = f"lam {lam!r} (mean {mean:.4g}) scaled by {factor:.4g}: its mean may be at most 1 / (A max p) = {bound:.4g}"
    return Scaled(lam, factor), (note,)
