"""Accuracy of one class with and without its spurious feature."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from spurmix.core.groups import GroupIndex
from spurmix.core.names import listed
from spurmix.train.evaluation import Evaluation, GroupAccuracy


@dataclass(frozen=True)
class ClassEffect:
    """Accuracies of the examples of one class, by attribute.

    Attributes:
        name: Name of the class.
        groups: Groups of the class whose attribute is known, by ascending accuracy.
        difference: Highest minus lowest accuracy. NaN if there are less than two groups.
        low: Lower bound of the 95% interval of the difference between these two groups (Newcombe's method 10).
        high: Upper bound.
    """

    name: str
    groups: tuple[GroupAccuracy, ...]
    difference: float
    low: float
    high: float

    def to_dict(self) -> dict[str, object]:
        """Return the result as a dict of JSON types."""
        numbers = {
            name: None if math.isnan(value) else value
            for name, value in asdict(self).items()
            if isinstance(value, float)
        }
        return {"class": self.name, **numbers, "groups": [group.to_dict() for group in self.groups]}

    def __str__(self) -> str:
        lines = [
            f"{group.name}: {100 * group.accuracy:.2f}% of {group.count:,} ({100 * group.low:.1f} to {100 * group.high:.1f})"
            for group in self.groups
        ]
        if math.isnan(self.difference):
            return "\n".join(
                [*lines, f"{self.name}: no difference, because examples have less than two known attributes"]
            )
        interval = f"{100 * self.low:.1f} to {100 * self.high:.1f}"
        return "\n".join([*lines, f"{self.name}: difference {100 * self.difference:.2f} points ({interval})"])


def class_effect(evaluation: Evaluation, groups: GroupIndex, name: str) -> ClassEffect:
    """Compare the accuracies of the examples of a class with different attributes.

    Args:
        evaluation: Evaluation of a model.
        groups: Groups of the evaluated examples.
        name: Name of the class, or its number.

    Returns:
        The comparison.

    Raises:
        ValueError: If there is no such class, or it has no examples of known attribute.

    References:
        Newcombe, Interval Estimation for the Difference Between Independent Proportions, Statistics in Medicine 17, 1998,
        method 10.
    """
    names = list(groups.class_names or map(str, range(groups.num_classes)))
    if name not in names:
        raise ValueError(f"--class must be one of {listed(names, [name])}, got {name!r}")
    label = names.index(name)
    own = [group for group in evaluation.groups if group.label == label and group.attribute >= 0]
    if not own:
        raise ValueError(f"--class: the split has no examples of class {name!r} whose attribute is known")
    own.sort(key=lambda group: group.accuracy)
    worst, best = own[0], own[-1]
    if len(own) == 1:
        return ClassEffect(name, tuple(own), math.nan, math.nan, math.nan)
    difference = best.accuracy - worst.accuracy
    low = difference - math.hypot(best.accuracy - best.low, worst.high - worst.accuracy)
    high = difference + math.hypot(best.high - best.accuracy, worst.accuracy - worst.low)
    return ClassEffect(name, tuple(own), difference, low, high)
