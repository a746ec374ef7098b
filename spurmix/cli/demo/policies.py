"""Groups and policies that the demos of images and texts share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.train.checkpoint import check_writable

KNOWN_PER_GROUP = 100
"""Number of examples per group whose attribute is known when the model is debiased."""


def hide_attributes(
    label: NDArray[np.int64],
    attribute: NDArray[np.int64],
    seed: int,
    class_names: Sequence[str],
    attribute_names: Sequence[str],
) -> tuple[GroupIndex, list[list[float]]]:
    """Make groups in which most attributes are unknown.

    Args:
        label: Classes, int64 `[N]`.
        attribute: Attributes, int64 `[N]`.
        seed: Random seed.
        class_names: Names of the classes.
        attribute_names: Names of the attributes.

    Returns:
        The groups, with at most `KNOWN_PER_GROUP` known attributes each. Then, for each class, the share of each
        attribute among the examples whose attribute is unknown.
    """
    rng = np.random.default_rng([seed, 7])
    known = np.full(label.size, -1)
    for y in (0, 1):
        for a in (0, 1):
            rows = np.flatnonzero((label == y) & (attribute == a))
            known[rng.permutation(rows)[:KNOWN_PER_GROUP]] = a
    hidden = known == -1
    prior = []
    for y in (0, 1):
        rest = attribute[hidden & (label == y)]
        rest = rest if rest.size else attribute[label == y]  # if all are known, the shares have no effect
        prior.append([float(np.mean(rest == a)) for a in (0, 1)])
    return GroupIndex(label, known, class_names=class_names, attribute_names=attribute_names), prior


def demo_policies(prior: list[list[float]]) -> dict[str, MixPolicy]:
    """Return every policy with arguments for the demo.

    The target of mixpro is attribute 1. upweight triples the weight of the groups whose attribute contradicts the class.

    Args:
        prior: For each class, the share of each attribute among the examples whose attribute is unknown.

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
        "mixpro": policies.mixpro(target=1),
        "balance_attributes": policies.balance_attributes(prior=prior),
        "upweight": policies.upweight({(0, 1): 3.0, (1, 0): 3.0}),
    }


def check_options(out: Path, policy: str) -> None:
    """Check the options that all tasks share.

    Args:
        out: Folder of the results.
        policy: Name of the policy.

    Raises:
        ValueError: If the policy does not exist or the folder cannot be written.
    """
    if policy not in policies.__all__:
        raise ValueError(f"--policy must be one of {', '.join(policies.__all__)}, got {policy!r}")
    check_writable(out)
