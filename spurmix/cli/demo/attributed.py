"""The few examples whose attribute is known: for training, for validation, and the shares of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spurmix.cli.demo.split import DemoSplit, Examples
from spurmix.core.groups import UNKNOWN, GroupIndex

if TYPE_CHECKING:
    from spurmix.data.sources.arrays import Source

ATTRIBUTED_PER_GROUP = 100
"""Number of training examples per group whose attribute is known."""
VALIDATION_PER_GROUP = 25
"""Number of further examples per group whose attribute is known, which are used for validation only."""


@dataclass(frozen=True)
class DemoData:
    """Training set, validation split and test set of a seed.

    Attributes:
        train: Examples to train on.
        groups: Their groups. Most attributes are unknown.
        train_groups: Their groups with all attributes, to weight the adjusted average.
        validation: Examples of known attribute that are not trained on.
        validation_groups: Their groups.
        test: Test examples.
        test_groups: Their groups.
    """

    train: Source
    groups: GroupIndex
    train_groups: GroupIndex
    validation: Source
    validation_groups: GroupIndex
    test: Source
    test_groups: GroupIndex


def divide(
    train: DemoSplit[Examples],
    test: DemoSplit[Examples],
    seed: int,
    make_source: Callable[[Examples], Source],
    class_names: Sequence[str],
    attribute_names: Sequence[str],
) -> DemoData:
    """Choose the examples of known attribute, and hold some of them out for validation.

    Examples with the same origin as a validation example are removed from the training set.

    Args:
        train: The training set.
        test: The test set.
        seed: Random seed.
        make_source: Function that makes a source of examples.
        class_names: Names of the classes.
        attribute_names: Names of the attributes.

    Returns:
        The data. Small groups have fewer examples of known attribute.
    """
    rng = np.random.default_rng([seed, 7])

    def by_group(split: DemoSplit[Examples]) -> list[np.ndarray]:
        groups = [(y, a) for y in (0, 1) for a in (0, 1)]
        return [rng.permutation(np.flatnonzero((split.label == y) & (split.attribute == a))) for y, a in groups]

    def groups_of(split: DemoSplit[Examples]) -> GroupIndex:
        return GroupIndex(split.label, split.attribute, class_names=class_names, attribute_names=attribute_names)

    held_out = [rows[: max(1, min(VALIDATION_PER_GROUP, rows.size // 4))] for rows in by_group(train)]
    validation = train.take(np.concatenate(held_out))
    train = train.take(np.flatnonzero(~np.isin(train.origin, validation.origin)))
    rows = np.concatenate([rows[:ATTRIBUTED_PER_GROUP] for rows in by_group(train)])
    known = np.full(train.label.size, UNKNOWN)
    known[rows] = train.attribute[rows]
    return DemoData(
        train=make_source(train.examples),
        groups=GroupIndex(train.label, known, class_names=class_names, attribute_names=attribute_names),
        train_groups=groups_of(train),
        validation=make_source(validation.examples),
        validation_groups=groups_of(validation),
        test=make_source(test.examples),
        test_groups=groups_of(test),
    )


def attribute_shares(groups: GroupIndex, inferred: GroupIndex) -> list[list[float]]:
    """Attribute shares of the examples whose attribute is unknown.

    Args:
        groups: Groups of the examples.
        inferred: Their groups with inferred attributes, the result of `infer_groups`.

    Returns:
        For each class, the share of each attribute among the examples whose attribute is unknown. If a class has no such
        examples, its shares have no effect and are those of all its examples.
    """
    label, attribute = np.asarray(groups.labels), np.asarray(inferred.attributes)
    is_known = np.asarray(groups.attributes) != UNKNOWN
    shares = []
    for y in (0, 1):
        rest = attribute[(label == y) & ~is_known]
        rest = rest if rest.size else attribute[label == y]
        shares.append([float(np.mean(rest == a)) for a in (0, 1)])
    return shares
