"""The methods. Each function returns a `MixPolicy`, which adapts to the `GroupIndex` with which it is used.

`balance_attributes` makes the idea of Xue et al. 2023 (arXiv 2305.14521 v1) exact: it balances spurious attributes across
classes by mixing in a small set of examples whose attributes are known. The formulas are those of this project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from spurmix.core import checks
from spurmix.core.balance import balanced_policy
from spurmix.core.contradicting import contradicting_policy
from spurmix.core.dispel import dispel
from spurmix.core.groups import GroupIndex
from spurmix.core.lam import (
    Beta,
    Fixed,
    LamDistribution,
    LamLike,
    Uniform,
    as_distribution,
    quantile_table,
)
from spurmix.core.partners import PartnerRows
from spurmix.core.policy import MixPolicy
from spurmix.core.resolved_policy import Labels, Strata, Weights
from spurmix.core.selection import AS_GROUPS, SelectionOptions, Unknown, checked_choice
from spurmix.core.shares import Prior
from spurmix.core.targets import ATTRIBUTED, DEFAULT_TARGET, Target, checked_target, mixpro_policy
from spurmix.core.upweight import upweight_policy

__all__ = [
    "balance_attributes",
    "class_balanced",
    "dispel",
    "erm",
    "group_balanced",
    "lisa",
    "mixpro",
    "mixup",
    "selecmix",
    "upweight",
]


def erm(
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Empirical risk minimization: each example once per epoch, in random order, unmixed.

    Args:
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default: "bulk".
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

    Returns:
        The policy.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has an invalid value, or two contradict each other.

    Example:
        >>> erm()
        MixPolicy<erm>(strata='all', labels='mix')
    """
    return MixPolicy(strata="all", name="erm", **checked_choice("erm", "bulk", unknown, attributed_only, subsample))


def class_balanced(
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Draw each class equally often, unmixed.

    Args:
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default: "bulk".
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

    Returns:
        The policy.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has an invalid value, or two contradict each other.

    Example:
        >>> class_balanced()
        MixPolicy<class_balanced>(strata='classes', labels='mix')
    """
    return MixPolicy(
        strata="classes",
        name="class_balanced",
        **checked_choice("class_balanced", "bulk", unknown, attributed_only, subsample),
    )


def group_balanced(
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Draw each group equally often, unmixed.

    Args:
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default:
            "exclude", because the published method draws attributed data.
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

    Returns:
        The policy.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has an invalid value, or two contradict each other.

    Example:
        >>> group_balanced()
        MixPolicy<group_balanced>(strata='groups', labels='mix', unknown='exclude')
    """
    return MixPolicy(
        strata="groups",
        name="group_balanced",
        **checked_choice("group_balanced", "exclude", unknown, attributed_only, subsample),
    )


def mixup(
    alpha: float = 0.2,
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Mix each example with a random one, lam ~ Beta(alpha, alpha), and mix the labels.

    Partners are drawn from all examples, including those of unknown attribute.

    Args:
        alpha: Parameter of the Beta distribution, positive.
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default: "bulk".
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

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
    return _adaptive_policy(
        "mixup",
        "all",
        lam,
        "mix",
        partial(_mixup, lam=lam),
        checked_choice("mixup", "bulk", unknown, attributed_only, subsample),
    )


def _mixup(groups: GroupIndex, lam: LamDistribution) -> MixPolicy:
    rows = groups.sizes[None, :].astype(np.float64)
    return MixPolicy("all", partner=PartnerRows.of_rows(rows, np.zeros(rows.size, dtype=np.int64)), lam=lam)


def lisa(
    p: float = 0.5,
    alpha: float = 2.0,
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Mix examples that share either the class or the attribute, lam ~ Beta(alpha, alpha), and mix the labels.

    Groups are drawn equally often. With probability `p`, the partner has the same class and another attribute. Otherwise
    it has another class and the same attribute. If one of the two does not exist, the other is always used. Examples of
    unknown attribute are never mixed.

    Args:
        p: Probability of a partner of the same class, in [0, 1].
        alpha: Parameter of the Beta distribution, positive.
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default:
            "exclude", because the paper mixes attributed data.
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

    Returns:
        The policy. Each group must have a single class and attribute.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of range.

    Example:
        >>> lisa(p=0.3)
        MixPolicy<lisa>(strata='groups', lam=Beta(2, 2), labels='mix', unknown='exclude')

    References:
        Yao et al., Improving Out-of-Distribution Robustness via Selective Augmentation, ICML 2022, arXiv 2201.00299.
    """
    share = checks.number(p, "lisa: p", 0, 1)
    lam = Beta(checks.number(alpha, "lisa: alpha", positive=True))
    return _adaptive_policy(
        "lisa",
        "groups",
        lam,
        "mix",
        partial(contradicting_policy, name="lisa", p=share, lam=lam),
        checked_choice("lisa", "exclude", unknown, attributed_only, subsample),
    )


def selecmix(
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Mix contradicting pairs, lam ~ Uniform(0.5, 1), and keep the label of the index.

    Half of the partners have the same class and another attribute, the other half another class and the same attribute.
    Unlike the paper, which trains a biased network to find such pairs, this uses the given attributes.

    Args:
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default:
            "exclude", because the pairs are chosen by the attribute.
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

    Returns:
        The policy. Each group must have a single class and attribute.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has an invalid value, or two contradict each other.

    Example:
        >>> selecmix()
        MixPolicy<selecmix>(strata='groups', lam=Uniform(0.5, 1), labels='keep', unknown='exclude')

    References:
        Hwang et al., SelecMix: Debiased Learning by Contradicting-pair Sampling, NeurIPS 2022, arXiv 2211.02291.
    """
    lam = Uniform(0.5, 1.0)
    build = partial(contradicting_policy, name="selecmix", p=0.5, lam=lam, labels="keep")
    return _adaptive_policy(
        "selecmix",
        "groups",
        lam,
        "keep",
        build,
        checked_choice("selecmix", "exclude", unknown, attributed_only, subsample),
    )


def mixpro(
    target: Target | None = None,
    s: float = 0.5,
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Mix source examples with target examples of the same class, (1 - s) source + s target, and keep the label.

    This is the mixing step of MixPro, in which the target is a small set of examples. The paper mixes embeddings. This
    policy mixes what the loader reads: images, tokens or features. Source examples are drawn in proportion to the group
    sizes. A class without target examples is not mixed.

    Args:
        target: The target examples: "attributed" for all examples of known attribute, the number or name of an attribute,
            the name of a group, example numbers, or a mask `[N]`, such as that of the examples of one split. All other
            examples are source examples. Default: "attributed" if some attributes are unknown, else attribute 1.
        s: Weight of the target example, in [0, 1].
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default:
            "bulk" if the target is a set of examples, which are mixed into all others, and "exclude" otherwise.
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

    Returns:
        The policy. Each group must have a single class and attribute.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range. If no example or every example is a target example, using the
            policy raises it.

    Example:
        >>> mixpro(target=1, s=0.25)
        MixPolicy<mixpro>(strata='groups', lam=Fixed(0.75), labels='keep', unknown='exclude')

    References:
        Xue et al., Few-Shot Adaptation by Mixing (MixPro), ICML 2024, arXiv 2305.14521 v3.
    """
    lam = Fixed(1.0 - checks.number(s, "mixpro: s", 0, 1))
    chosen = checked_target(target)
    by_attribute = isinstance(chosen, int) or (isinstance(chosen, str) and chosen not in (ATTRIBUTED, DEFAULT_TARGET))
    choice = checked_choice("mixpro", "exclude" if by_attribute else "bulk", unknown, attributed_only, subsample)
    build = partial(mixpro_policy, target=None if isinstance(chosen, np.ndarray) else chosen, lam=lam)
    policy = _adaptive_policy("mixpro", "groups", lam, "keep", build, choice)
    return replace(policy, targets=chosen) if isinstance(chosen, np.ndarray) else policy


def upweight(
    factors: Weights,
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Draw groups in proportion to size * factor, unmixed.

    This is the second stage of JTT, with a partition into correctly and incorrectly classified examples, such as
    `infer_groups(early_model, images, groups, "errors")` with `factors={"misclassified": 20}`.

    Args:
        factors: Non-negative factor of each group, `[G]`, or {group: factor}, in which missing groups have factor 1. A
            group is given by its number or its cell (label, attribute). The name of an attribute means all its groups.
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default: "group".
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

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
    return _adaptive_policy(
        "upweight",
        "groups",
        None,
        "mix",
        partial(upweight_policy, factors=factors),
        checked_choice("upweight", "group", unknown, attributed_only, subsample),
    )


def balance_attributes(
    lam: LamLike | None = None,
    labels: Labels = "mix",
    prior: Prior | None = None,
    *,
    unmixed: float = 0.0,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Mix each example with a donor so that every attribute occurs equally with every class.

    Classes are drawn equally often. With A attributes, m = E[lam] and the attribute shares p(a|y) of class y, the
    attribute of the donor follows q(a|y) = (1/A - m p(a|y)) / (1 - m), so that m p + (1 - m) q = 1/A. This requires
    m <= 1 / (A max p). A larger lam is scaled down to this bound, and the repr of the resolved policy notes it.

    Donors are the examples of class y with known attribute a. A class without such examples uses those of the other
    classes. The balance is then exact only with `labels="keep"`, and the audit reports the remaining correlation.

    With a Beta distribution, attributes are balanced on average over lam, but not among samples with the same lam. With
    `unmixed`, they are balanced given lam too: a share of the samples are unmixed examples of known attribute, each group
    equally often, and the others are examples of unknown attribute that are mixed with the same lam.

    Args:
        lam: Weight of the index: a distribution, a number or an inverse CDF. Default: Beta(0.4, 0.4 (A - 1)), which is
            Beta(0.4, 0.4) for two attributes, and Fixed(0.5) with `unmixed`.
        labels: "mix" mixes the labels, "keep" keeps the label of the index.
        prior: Attribute shares of each class's examples of unknown attribute, `[C, A]`, or {label: shares}. Default: the
            shares of the class's known examples.
        unmixed: Share of samples that are unmixed examples of known attribute, in [0, 1]. If it is positive, each class
            must have examples of each attribute and of unknown attribute, and p(a|y) are the shares of the latter.
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default: "bulk".
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

    Returns:
        The policy. Each group must have a single class and attribute.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If `lam` leaves [0, 1], or `unmixed` does. If `unmixed` is positive and a class lacks examples that it
            requires, using the policy raises it. If a class has only unknown attributes and no prior, using the policy
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
    share = checks.number(unmixed, "balance_attributes: unmixed", 0, 1)
    build = partial(balanced_policy, lam=given, labels=labels, prior=prior, unmixed=share)
    return _adaptive_policy(
        "balance_attributes",
        "classes",
        given,
        labels,
        build,
        checked_choice("balance_attributes", "bulk", unknown, attributed_only, subsample),
    )


def _adaptive_policy(
    name: str,
    strata: Strata,
    lam: LamDistribution | None,
    labels: Labels,
    recipe: Callable[[GroupIndex], MixPolicy],
    choice: SelectionOptions = AS_GROUPS,
) -> MixPolicy:
    """A policy made for its groups by `recipe`, a function of this module, so that it can be pickled."""
    return MixPolicy(strata, lam=lam, labels=labels, name=name, recipe=recipe, **choice)
