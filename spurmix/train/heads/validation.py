"""Held-out examples that choose the hyperparameters of a head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.group_join import check_name_order, join_sizes
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.train.heads.rows import Features, Standardization
from spurmix.train.heads.samples import HeadSamples


@dataclass(frozen=True)
class HeldOut:
    """Features, class and group of examples of known attribute.

    Attributes:
        features: float32 `[n, D]`.
        labels: Classes, `[n]`.
        groups: Numbers of the groups, `[n]`.
    """

    features: Features
    labels: Int64Array
    groups: Int64Array

    @classmethod
    def of(cls, features: Features, groups: GroupIndex, training: GroupIndex) -> HeldOut:
        """Check that validation examples fit the training groups, and leave out those of unknown attribute.

        Args:
            features: Features of the validation examples.
            groups: Their groups.
            training: Groups of the training examples.

        Returns:
            The examples of known attribute.

        Raises:
            ValueError: If classes have other numbers, or a training group of known attribute has no validation examples.
        """
        check_name_order(training.class_names or (), groups, "validation")
        unknown = {training.group_name(int(g)) for g in np.flatnonzero(training.group_attributes == UNKNOWN)}
        missing = [name for name in join_sizes(groups, training).missing if name not in unknown]
        if missing:
            raise ValueError(
                f"validation has no example of group {missing[0]!r}; every training group of known attribute requires "
                "validation examples"
            )
        group_of = groups.group_ids().astype(np.int64)
        known = np.flatnonzero(groups.group_attributes[group_of] != UNKNOWN)
        labels = groups.labels.astype(np.int64)[known]
        if labels.size and labels.max() >= training.num_classes:
            raise ValueError(
                f"validation has class {labels.max()}, but the training examples have {training.num_classes} classes"
            )
        return cls(features[known], labels, group_of[known])

    def accuracies(self, standardization: Standardization, weights: FloatArray) -> FloatArray:
        """Accuracy of each group for each head.

        Args:
            standardization: Standardization of the features.
            weights: Weights and intercepts, `[T, K, D + 1]`.

        Returns:
            Accuracies `[T, groups]`, of the groups that have examples.
        """
        x = standardization.apply(self.features)
        _, group_of = np.unique(self.groups, return_inverse=True)
        sizes = np.bincount(group_of)
        rows = []
        for weight in weights.astype(np.float32):
            logits = x @ weight[:, :-1].T + weight[:, -1]
            predicted = logits[:, 0] > 0 if len(weight) == 1 else logits.argmax(axis=1)
            rows.append(np.bincount(group_of, weights=predicted == self.labels, minlength=sizes.size) / sizes)
        return np.array(rows)


def halves(samples: HeadSamples, seed: int) -> tuple[HeadSamples, Int64Array]:
    """Split the attributed examples at random, half of each group.

    Args:
        samples: Training examples.
        seed: Random seed.

    Returns:
        The training examples without the held-out half, and the numbers of the held-out examples.

    Raises:
        ValueError: If an attributed group has less than two examples.
    """
    rng = np.random.default_rng([seed, 1])
    held_out = []
    for group, members in samples.attributed.items():
        if members.size < 2:
            raise ValueError(
                f"group {samples.groups.group_name(group)!r} has {members.size} attributed example, and choosing "
                "hyperparameters holds out half of each group; give `validation`, or a single value of each hyperparameter"
            )
        held_out.append(rng.choice(members, members.size // 2, replace=False))
    examples = np.sort(np.concatenate(held_out))
    return HeadSamples(samples.groups, np.setdiff1d(samples.chosen, examples), samples.name), examples
