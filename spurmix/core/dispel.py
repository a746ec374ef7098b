"""The policy `dispel`: a class-balanced bulk, mixed with donors of the same class from a group-balanced set."""

from __future__ import annotations

from functools import partial

import numpy as np

from spurmix.core import checks
from spurmix.core.donors import donor_rows
from spurmix.core.groups import GroupIndex
from spurmix.core.lam import LamDistribution, TwoPoint
from spurmix.core.policy import MixPolicy
from spurmix.core.resolved_policy import require_cells
from spurmix.core.selection import Unknown, checked_choice
from spurmix.core.shares import UnknownAttributes, known_counts, missing_attribute, unknown_counts


def dispel(
    s: float = 0.7,
    alpha: float = 1.0,
    *,
    unknown: Unknown | None = None,
    attributed_only: bool | None = None,
    subsample: bool = False,
) -> MixPolicy:
    """Mix examples with group-balanced donors of the same class, (1 - s) example + s donor, and keep the label.

    Classes are drawn equally often, from all examples, including those of unknown attribute. With probability `alpha`, an
    example is mixed with a donor. Donors are the examples of known attribute. All attributes are equally likely, and the
    groups of a class with the same attribute too. If a class has no example of an attribute, the donor is an example of
    another class with this attribute, and the label is still that of the bulk example. With `s=1` and `alpha=1`, only
    donors are seen, as in DFR.

    This is the rule of DISPEL in SpuCo, a package of the authors of arXiv 2305.14521. There it draws the training set of a
    linear head (see `fit_head`), for which donors come from a group-balanced subsample of the attributed examples. On
    average over subsamples, the distribution of pairs is the same. SpuCo's implementation was first committed by the
    paper's first author twelve days after v1 of the paper. Whether it is the method of v1 is not known.

    Args:
        s: Weight of the donor, in [0, 1].
        alpha: Probability that an example is mixed, in [0, 1].
        unknown: What happens with examples of unknown attribute, see `MixPolicy`. Default: "bulk".
        attributed_only: True means `unknown="exclude"`. False means that examples of unknown attribute are drawn.
        subsample: Cut each group to the size of the smallest one, with another subset for each seed.

    Returns:
        The policy. Each group must have a single class and attribute.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range. If a class has no example of known attribute, using the policy
            raises it.

    Example:
        >>> dispel(s=0.9)
        MixPolicy<dispel>(strata='classes', lam=TwoPoint(0.1, 1, 1), labels='keep')

    References:
        SpuCo, https://github.com/BigML-CS-UCLA/SpuCo, `last_layer_retrain/dispel.py`. Xue et al., arXiv 2305.14521 v1,
        2023.
    """
    weight, probability = checks.number(s, "dispel: s", 0, 1), checks.number(alpha, "dispel: alpha", 0, 1)
    lam = TwoPoint(1.0 - weight, 1.0, probability)
    return MixPolicy(
        "classes",
        lam=lam,
        labels="keep",
        name="dispel",
        recipe=partial(_dispel, lam=lam),
        **checked_choice("dispel", "bulk", unknown, attributed_only, subsample),
    )


def _dispel(groups: GroupIndex, lam: LamDistribution) -> MixPolicy:
    require_cells(groups, "dispel")
    counts = known_counts(groups)  # [C, A]
    attributes = np.flatnonzero(counts.any(axis=0))
    if attributes.size == 0:
        raise missing_attribute(groups, "dispel: no example has a known attribute; donors are required")
    classes = np.flatnonzero(counts.sum(axis=1) + unknown_counts(groups) > 0)
    without = classes[counts[classes].sum(axis=1) == 0]
    if without.size:
        name = groups.class_names[without[0]] if groups.class_names else without[0]
        raise UnknownAttributes(
            f"dispel: class {name} has no example whose attribute is known; each class requires attributed examples"
        )
    mass = np.full((classes.size, attributes.size), 1.0 / attributes.size)
    return MixPolicy("classes", None, donor_rows(groups, classes, attributes, mass, even=True), lam, "keep")
