"""The methods. Each function returns a `MixPolicy`, which adapts to the `GroupIndex` with which it is used.

`balance_attributes` makes the idea of Xue et al. 2023 (arXiv 2305.14521 v1) exact: it balances spurious attributes across
classes by mixing in a small set of examples whose attributes are known. The formulas are those of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from spurmix.core import checks
from spurmix.core.contradicting import contradicting_partners
from spurmix.core.donors import donor_rows
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.lam import (
    Beta,
    Fixed,
    LamDistribution,
    LamLike,
    Scaled,
    Uniform,
    as_distribution,
    moments,
    quantile_table,
)
from spurmix.core.partners import PartnerRows
from spurmix.core.policy import MixPolicy
from spurmix.core.resolved_policy import Labels, Strata, Weights, checked_weights, group_number, require_cells
from spurmix.core.shares import (
    Prior,
    known_counts,
    missing_attribute,
    prior_shares,
    require_shares,
    unknown_counts,
    unknown_shares,
)

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
    """Empirical risk minimization: each example once per epoch, in random order, unmixed.

    Returns:
        The policy.

    Example:
        >>> erm()
        MixPolicy<erm>(strata='all', labels='mix')
    """
    return MixPolicy(strata="all", name="erm")


def class_balanced() -> MixPolicy:
    """Draw each class equally often, unmixed.

    Returns:
        The policy.

    Example:
        >>> class_balanced()
        MixPolicy<class_balanced>(strata='classes', labels='mix')
    """
    return MixPolicy(strata="classes", name="class_balanced")


def group_balanced() -> MixPolicy:
    """Draw each group equally often, unmixed.

    Returns:
        The policy.

    Example:
        >>> group_balanced()
        MixPolicy<group_balanced>(strata='groups', labels='mix')
    """
    return MixPolicy(strata="groups", name="group_balanced")


def mixup(alpha: float = 0.2) -> MixPolicy:
    """Mix each example with a random one, lam ~ Beta(alpha, alpha), and mix the labels.

    Partners are drawn from all examples, including those of unknown attribute.

    Args:
        alpha: Parameter of the Beta distribution, positive.

    Returns:
        The policy.

    Raises:
        TypeError: If `alpha` is not a number.
        ValueError: If `alpha` is not positive and finite.

    Example:
        >>> mixup(0.4)
        MixPolicy<mixup>(strata='all', lam=Beta(0.4, 0.4), labels='mix')

    References:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, arXiv 1710.09412.
    """
    lam = Beta(checks.number(alpha, "mixup: alpha", positive=True))
    return _adaptive_policy("mixup", "all", lam, "mix", partial(_mixup, lam=lam))


def _mixup(groups: GroupIndex, lam: LamDistribution) -> MixPolicy:
    row = groups.sizes.astype(np.float64)
    return MixPolicy("all", partner=PartnerRows.of_rows(row[None, :], np.zeros(row.size, dtype=np.int64)), lam=lam)


def lisa(p: float = 0.5, alpha: float = 2.0) -> MixPolicy:
    """Mix examples that share either the class or the attribute, lam ~ Beta(alpha, alpha), and mix the labels.

    Groups are drawn equally often. With probability `p`, the partner has the same class and another attribute. Otherwise
    it has another class and the same attribute. If one of the two does not exist, the other is always used. Examples of
    unknown attribute are not mixed.

    Args:
        p: Probability of a partner of the same class, in [0, 1].
        alpha: Parameter of the Beta distribution, positive.

    Returns:
        The policy. Each group must have a single class and attribute.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of range.

    Example:
        >>> lisa(p=0.3)
        MixPolicy<lisa>(strata='groups', lam=Beta(2, 2), labels='mix')

    References:
        Yao et al., Improving Out-of-Distribution Robustness via Selective Augmentation, ICML 2022, arXiv 2201.00299.
    """
    share = checks.number(p, "lisa: p", 0, 1)
    lam = Beta(checks.number(alpha, "lisa: alpha", positive=True))
    return _adaptive_policy("lisa", "groups", lam, "mix", partial(_contradicting, name="lisa", p=share, lam=lam))


def _contradicting(groups: GroupIndex, name: str, p: float, lam: LamDistribution, labels: Labels = "mix") -> MixPolicy:
    require_cells(groups, name)
    return MixPolicy("groups", partner=contradicting_partners(groups, p), lam=lam, labels=labels)


def selecmix() -> MixPolicy:
    """Mix contradicting pairs, lam ~ Uniform(0.5, 1), and keep the label of the index.

    Half of the partners have the same class and another attribute, the other half another class and the same attribute.
    Unlike the paper, which trains a biased network to find such pairs, this uses the given attributes.

    Returns:
        The policy. Each group must have a single class and attribute.

    Example:
        >>> selecmix()
        MixPolicy<selecmix>(strata='groups', lam=Uniform(0.5, 1), labels='keep')

    References:
        Hwang et al., SelecMix: Debiased Learning by Contradicting-pair Sampling, NeurIPS 2022, arXiv 2211.02291.
    """
    lam = Uniform(0.5, 1.0)
    build = partial(_contradicting, name="selecmix", p=0.5, lam=lam, labels="keep")
    return _adaptive_policy("selecmix", "groups", lam, "keep", build)


def mixpro(target: int | str = 1, s: float = 0.5) -> MixPolicy:
    """Mix source examples with target examples of the same class, (1 - s) source + s target, and keep the label.

    This is the mixing step of MixPro. The paper mixes embeddings. This policy mixes what the loader reads: images,
    tokens or features. Source examples are drawn in proportion to the group sizes. A class without target examples is
    not mixed.

    Args:
        target: Number or name of the attribute that marks target examples. All other examples are source examples.
        s: Weight of the target example, in [0, 1].

    Returns:
        The policy. Each group must have a single class and attribute.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range. If no example or every example is a target example, using the
            policy raises it.

    Example:
        >>> mixpro(target=1, s=0.25)
        MixPolicy<mixpro>(strata='groups', lam=Fixed(0.75), labels='keep')

    References:
        Xue et al., Few-Shot Adaptation by Mixing (MixPro), ICML 2024, arXiv 2305.14521 v3.
    """
    if not isinstance(target, str):
        target = checks.integer(target, "mixpro: target (number or name of an attribute)", 0)
    lam = Fixed(1.0 - checks.number(s, "mixpro: s", 0, 1))
    return _adaptive_policy("mixpro", "groups", lam, "keep", partial(_mixpro, target=target, lam=lam))


def _mixpro(groups: GroupIndex, target: int | str, lam: LamDistribution) -> MixPolicy:
    require_cells(groups, "mixpro")
    is_target = groups.group_attributes == _attribute_number(groups, target)
    if not is_target.any():
        raise missing_attribute(groups, f"mixpro: no example has the target attribute {target!r}")
    if is_target.all():
        raise ValueError(f"mixpro: every example has the target attribute {target!r}; source examples are required")
    is_source = ~is_target & (groups.group_attributes != UNKNOWN)
    classes, class_of = np.unique(groups.group_labels, return_inverse=True)
    targets = np.flatnonzero(is_target & (groups.sizes > 0))
    targets = targets[np.argsort(class_of[targets], kind="stable")]
    counts = np.bincount(class_of[targets], minlength=classes.size)
    weights = groups.sizes[targets].astype(np.float64)
    partner = PartnerRows.of_entries(np.where(is_source, class_of, -1), counts, targets, weights)
    return MixPolicy("groups", np.where(is_target, 0, groups.sizes), partner, lam, "keep")


def upweight(factors: Weights) -> MixPolicy:
    """Draw groups in proportion to size * factor, unmixed.

    This is the second stage of JTT, with a partition into correctly and incorrectly classified examples.

    Args:
        factors: Non-negative factor of each group, `[G]`, or {group: factor}, in which missing groups have factor 1.

    Returns:
        The policy.

    Raises:
        TypeError: If the factors are not numbers. Raised when the policy is used.
        ValueError: If the factors do not fit the groups. Raised when the policy is used.

    Example:
        >>> groups = GroupIndex([0, 0, 1, 1], groups=[0, 0, 0, 1])
        >>> upweight([1, 3]).audit(groups).groups[1].share
        0.5

    References:
        Liu et al., Just Train Twice, ICML 2021, arXiv 2107.09044.
    """
    return _adaptive_policy("upweight", "groups", None, "mix", partial(_upweight, factors=factors))


def _upweight(groups: GroupIndex, factors: Weights) -> MixPolicy:
    values: object = factors
    if isinstance(factors, Mapping):
        values = by_group = np.ones(groups.num_groups)
        for name, value in factors.items():
            group = group_number(groups, name, "upweight: factors")
            by_group[group] = checks.number(value, f"upweight: factors[{name!r}]")
    checked = checked_weights(values, (groups.num_groups,), "upweight: factors")
    return MixPolicy("groups", groups.sizes * checked)


def balance_attributes(lam: LamLike | None = None, labels: Labels = "mix", prior: Prior | None = None) -> MixPolicy:
    """Mix each example with a donor so that every attribute occurs equally with every class.

    Classes are drawn equally often. With A attributes, m = E[lam] and the attribute shares p(a|y) of class y, the
    attribute of the donor follows q(a|y) = (1/A - m p(a|y)) / (1 - m), so that m p + (1 - m) q = 1/A. This requires
    m <= 1 / (A max p). A larger lam is scaled down to this bound, and the repr of the resolved policy notes it.

    Donors are the examples of class y with known attribute a. A class without such examples uses those of the other
    classes. The balance is then exact only with `labels="keep"`, and the audit reports the remaining correlation.

    Args:
        lam: Weight of the index: a distribution, a number or an inverse CDF. Default: Beta(0.4, 0.4 (A - 1)), which is
            Beta(0.4, 0.4) for two attributes.
        labels: "mix" mixes the labels, "keep" keeps the label of the index.
        prior: Attribute shares of each class's examples of unknown attribute, `[C, A]`, or {label: shares}. Default: the
            shares of the class's known examples.

    Returns:
        The policy. Each group must have a single class and attribute.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If `lam` leaves [0, 1]. If a class has only unknown attributes and no prior, using the policy
            raises it.

    Example:
        >>> groups = GroupIndex([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0])
        >>> audit = balance_attributes().audit(groups)
        >>> round(audit.raw, 2), round(audit.residual, 2)
        (0.5, 0.0)

    References:
        Xue et al., arXiv 2305.14521 v1, 2023, for the idea.
    """
    given = None if lam is None else as_distribution(lam)
    if given is not None:
        quantile_table(given)
    build = partial(_balance, lam=given, labels=labels, prior=prior)
    return _adaptive_policy("balance_attributes", "classes", given, labels, build)


def _adaptive_policy(
    name: str, strata: Strata, lam: LamDistribution | None, labels: Labels, recipe: Callable[[GroupIndex], MixPolicy]
) -> MixPolicy:
    """A policy made for its groups by `recipe`, a function of this module, so that it can be pickled."""
    return MixPolicy(strata, lam=lam, labels=labels, name=name, recipe=recipe)


def _balance(groups: GroupIndex, lam: LamDistribution | None, labels: Labels, prior: Prior | None) -> MixPolicy:
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


def _attribute_number(groups: GroupIndex, target: int | str) -> int:
    if isinstance(target, str):
        if groups.attribute_names is None or target not in groups.attribute_names:
            raise ValueError(
                f"mixpro: target: there is no attribute named {target!r}; the names are {groups.attribute_names}"
            )
        return groups.attribute_names.index(target)
    return target
