"""The methods: every function returns a `MixPolicy` that fits any GroupIndex it later meets.

Sources: mixup (Zhang et al. 2018, arXiv 1710.09412); LISA (Yao et al. 2022, arXiv 2201.00299); SelecMix (Hwang et al.
2022, arXiv 2211.02291); MixPro (Xue et al. 2024, arXiv 2305.14521 v3); JTT (Liu et al. 2021, arXiv 2107.09044).
`balance_attributes` makes the idea of Xue et al. 2023 (arXiv 2305.14521 v1) exact: it balances spurious attributes
across classes by mixing in a small set of examples with known attributes. Its formulas are ours, not their protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from spurmix.core import checks
from spurmix.core.groups import MIXED, UNKNOWN, GroupIndex
from spurmix.core.lam import Beta, Fixed, Scaled, Uniform, as_distribution, moments, quantile_table
from spurmix.core.policy import FloatArray, Labels, MixPolicy, Strata, _checked, group_number
from spurmix.core.shares import known_counts, prior_shares, require_shares, unknown_counts, unknown_shares

__all__ = [
    "balance_attributes",
    "class_balanced",
    "erm",
    "group_balanced",
    "lisa",
    "mixpro",
    "mixup",
    "selecmix",
    "upweight",
]


def erm() -> MixPolicy:
    """Plain training: every example once per pass, in random order, unmixed."""
    return MixPolicy(strata="all", name="erm")


def class_balanced() -> MixPolicy:
    """Every class equally often, unmixed."""
    return MixPolicy(strata="classes", name="class_balanced")


def group_balanced() -> MixPolicy:
    """Every group equally often, unmixed."""
    return MixPolicy(strata="groups", name="group_balanced")


def mixup(alpha: float = 0.2) -> MixPolicy:
    """Any example with any other, lam ~ Beta(alpha, alpha), labels mixed: mixup (arXiv 1710.09412).

    Partners are drawn like indices: groups by their size, those of unknown attribute included.
    """
    lam = Beta(checks.number(alpha, "mixup: alpha", positive=True))
    return _recipe("mixup", "all", lam, "mix", partial(_mixup, lam=lam))


def _mixup(groups: GroupIndex, lam: Any) -> MixPolicy:
    row = groups.sizes.astype(np.float64)
    return MixPolicy("all", partner=np.tile(row, (groups.num_groups, 1)), lam=lam)


def lisa(p: float = 0.5, alpha: float = 2.0) -> MixPolicy:
    """LISA (arXiv 2201.00299): with probability p a partner of the same class and another attribute, else of another
    class and the same attribute; lam ~ Beta(alpha, alpha), labels mixed, groups drawn equally often.

    An empty branch gives its mass to the other. Examples of unknown attribute get no partner and are none.
    """
    share = checks.number(p, "lisa: p", 0, 1)
    lam = Beta(checks.number(alpha, "lisa: alpha", positive=True))
    return _recipe("lisa", "groups", lam, "mix", partial(_contradicting, name="lisa", p=share, lam=lam))


def _contradicting(groups: GroupIndex, name: str, p: float, lam: Any, labels: Labels = "mix") -> MixPolicy:
    return MixPolicy("groups", partner=_two_branches(groups, p, name), lam=lam, labels=labels)


def selecmix() -> MixPolicy:
    """Contradicting pairs, after SelecMix (arXiv 2211.02291): half the partners share the class but not the attribute,
    half the attribute but not the class; lam ~ U(0.5, 1), the label of the index is kept.

    Pairs come from given attributes, not from the paper's biased network.
    """
    lam = Uniform(0.5, 1.0)
    build = partial(_contradicting, name="selecmix", p=0.5, lam=lam, labels="keep")
    return _recipe("selecmix", "groups", lam, "keep", build)


def mixpro(target: int | str = 1, s: float = 0.5) -> MixPolicy:
    """Source examples mixed with target examples of their class, (1 - s) source + s target, label kept: the mixing
    step of MixPro (arXiv 2305.14521 v3), on whatever the loader mixes.

    Args:
        target: the attribute value (number or name) that marks target examples. All others are source, drawn by size.
        s: weight of the target example, in [0, 1].

    A class without target examples gets no partner.
    """
    if not isinstance(target, str):
        target = checks.integer(target, "mixpro: target, an attribute's number or name,", 0)
    lam = Fixed(1.0 - checks.number(s, "mixpro: s", 0, 1))
    return _recipe("mixpro", "groups", lam, "keep", partial(_mixpro, target=target, lam=lam))


def _mixpro(groups: GroupIndex, target: int | str, lam: Any) -> MixPolicy:
    _need_cells(groups, "mixpro")
    mark = _attribute_number(groups, target)
    is_target = groups.group_attributes == mark
    if not is_target.any():
        raise ValueError(f"mixpro: target attribute {target!r} does not occur")
    if is_target.all():
        raise ValueError(f"mixpro: every example has the target attribute {target!r}, none is left as source")
    same_class = groups.group_labels[:, None] == groups.group_labels[None, :]
    has_row = (~is_target & (groups.group_attributes != UNKNOWN))[:, None]
    partner = np.where(same_class & is_target[None, :] & has_row, groups.sizes[None, :], 0)
    return MixPolicy("groups", np.where(is_target, 0, groups.sizes), partner, lam, "keep")


def upweight(factors: Any) -> MixPolicy:
    """Groups drawn in proportion to size * factor, unmixed: the second stage of JTT (arXiv 2107.09044) and its kin,
    where the partition is error / correct.

    Args:
        factors: `[G]` non-negative factors, or {group: factor} (others 1).
    """
    return _recipe("upweight", "groups", None, "mix", partial(_upweight, factors=factors))


def _upweight(groups: GroupIndex, factors: Any) -> MixPolicy:
    if isinstance(factors, Mapping):
        values = np.ones(groups.num_groups)
        for name, value in factors.items():
            group = group_number(groups, name, "upweight: factors")
            values[group] = checks.number(value, f"upweight: factors[{name!r}]")
    else:
        values = factors
    checked = _checked(values, (groups.num_groups,), "upweight: factors")
    return MixPolicy("groups", groups.sizes * checked)


def balance_attributes(lam: Any = None, labels: Labels = "mix", prior: Any = None) -> MixPolicy:
    """Classes drawn equally often, each example mixed with a donor whose attribute is drawn so that, after mixing,
    every attribute occurs equally with every class.

    With A attributes, m = E[lam] and p(a|y) the attribute shares of class y, the donor's attribute follows
    q(a|y) = (1/A - m p(a|y)) / (1 - m), hence m p + (1 - m) q = 1/A. That needs m <= 1 / (A max p); a larger lam has its
    quantile table scaled down to the bound, which the resolved policy's repr notes. Donors are the examples of class y
    with known attribute a; a class that has none borrows them from the other classes, which is exact only with
    labels="keep" (the audit tells by how much it misses).

    Args:
        lam: weight of the index; default Beta(0.4, 0.4) for two attributes, Beta(0.4, 0.4 (A - 1)) for A.
        labels: "mix" or "keep".
        prior: attribute shares of each class's unknown examples, `[C, A]` or {label: shares}; default: the class's
            known shares.

    Raises:
        ValueError: (on use) for a class with unknown attributes only and no prior.
    """
    if lam is not None:
        lam = as_distribution(lam)
        quantile_table(lam)
    build = partial(_balance, lam=lam, labels=labels, prior=prior)
    return _recipe("balance_attributes", "classes", lam, labels, build)


def _recipe(name: str, strata: Strata, lam: Any, labels: Labels, build: Callable[[GroupIndex], MixPolicy]) -> MixPolicy:
    """A policy that is made for the groups it meets, by a function of this module, so that it can be pickled."""
    return MixPolicy(strata, lam=lam, labels=labels, name=name, recipe=build)


def _balance(groups: GroupIndex, lam: Any, labels: Labels, prior: Any) -> MixPolicy:
    _need_cells(groups, "balance_attributes")
    given = prior_shares(groups, prior)
    counts = known_counts(groups)  # [C, A]
    unknown = unknown_counts(groups)  # [C]
    attributes = np.flatnonzero(counts.any(axis=0))
    if attributes.size == 0:
        raise ValueError("balance_attributes: no example has a known attribute, nobody can be a donor")
    assumed = unknown_shares(groups, given)
    require_shares(assumed, np.flatnonzero(unknown > 0))
    classes = np.flatnonzero(counts.sum(axis=1) + unknown > 0)
    shares = counts + unknown[:, None] * np.nan_to_num(assumed)
    shares = shares[classes] / shares[classes].sum(axis=1, keepdims=True)
    absent = np.setdiff1d(np.arange(groups.num_attributes), attributes)
    if shares[:, absent].any():
        a = int(absent[shares[:, absent].any(axis=0)][0])
        raise ValueError(f"prior: attribute {a} has a share but no example of it is known, so there is no donor")
    shares = shares[:, attributes]

    lam = lam if lam is not None else Beta(0.4, 0.4 * max(1, attributes.size - 1))
    lam, notes = _within_bound(lam, 1.0 / (attributes.size * shares.max()))
    mean, _ = moments(quantile_table(lam))
    partner = np.zeros((groups.num_groups, groups.num_groups))
    if mean < 1.0:
        q = np.maximum((1.0 / attributes.size - mean * shares) / (1.0 - mean), 0.0)
        q[q < 1e-12] = 0.0
        for y, row in zip(classes, q, strict=True):
            donors = sum(mass * _donors(groups, int(y), int(a)) for a, mass in zip(attributes, row, strict=True))
            partner[groups.group_labels == y] = donors
    return MixPolicy("classes", None, partner, lam, labels, notes=notes, attribute_shares=given)


def _within_bound(lam: Any, bound: float) -> tuple[Any, tuple[str, ...]]:
    """`lam`, its quantile table scaled so that its mean is at most `bound`, with a note where that was needed."""
    mean, _ = moments(quantile_table(lam))
    if mean <= bound:
        return lam, ()
    factor = bound / mean
    note = f"lam {lam!r} (mean {mean:.4g}) scaled by {factor:.4g}: its mean may be at most 1 / (A max p) = {bound:.4g}"
    return Scaled(lam, factor), (note,)


def _donors(groups: GroupIndex, label: int, attribute: int) -> FloatArray:
    """Donor weights over groups `[G]`, sum 1: the class's examples of the attribute, else the other classes' alike."""
    donors = np.where(groups.group_attributes == attribute, groups.sizes, 0).astype(np.float64)
    own = np.where(groups.group_labels == label, donors, 0.0)
    if own.any():
        return own / own.sum()
    per_class = np.bincount(groups.group_labels, weights=donors, minlength=groups.num_classes)
    lending = np.count_nonzero(per_class)
    return donors / np.maximum(per_class[groups.group_labels], 1.0) / lending


def _two_branches(groups: GroupIndex, p: float, name: str) -> FloatArray:
    """Partner weights: p to groups of the same class and another attribute, 1 - p to the converse, evenly within."""
    _need_cells(groups, name)
    label, attribute = groups.group_labels, groups.group_attributes
    known = attribute != UNKNOWN
    pairs = known[:, None] & known[None, :]
    same_class = label[:, None] == label[None, :]
    same_attribute = attribute[:, None] == attribute[None, :]
    within = (pairs & same_class & ~same_attribute).astype(np.float64)
    across = (pairs & ~same_class & same_attribute).astype(np.float64)
    n_within, n_across = within.sum(axis=1, keepdims=True), across.sum(axis=1, keepdims=True)
    mass = np.where(n_across == 0, 1.0, np.where(n_within == 0, 0.0, p))
    return mass * within / np.maximum(n_within, 1) + (1 - mass) * across / np.maximum(n_across, 1)


def _need_cells(groups: GroupIndex, name: str) -> None:
    filled = groups.sizes > 0
    mixed = filled & ((groups.group_labels == MIXED) | (groups.group_attributes == MIXED))
    if mixed.any():
        g = int(np.flatnonzero(mixed)[0])
        raise ValueError(f"{name} needs groups of one class and one attribute each; group {g} mixes them")


def _attribute_number(groups: GroupIndex, target: int | str) -> int:
    if isinstance(target, str):
        if groups.attribute_names is None or target not in groups.attribute_names:
            raise ValueError(
                f"mixpro: target: there is no attribute named {target!r}; names are {groups.attribute_names}"
            )
        return groups.attribute_names.index(target)
    return target
