"""Draws of the rows of a fit: group-balanced subsets, and a class-balanced bulk mixed with group-balanced donors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spurmix.core.array_types import Int64Array
from spurmix.core.groups import MIXED, UNKNOWN, GroupIndex
from spurmix.train.heads.rows import HeadRows


@dataclass(frozen=True)
class HeadSamples:
    """Draws rows for the fits of a head.

    Attributes:
        groups: Groups of the examples.
        chosen: Numbers of the examples that rows are drawn from, ascending.
        name: Name of the method, for messages.
    """

    groups: GroupIndex
    chosen: Int64Array
    name: str

    @cached_property
    def labels(self) -> Int64Array:
        """Class of each example of the dataset, `[N]`."""
        return self.groups.labels.astype(np.int64)

    @cached_property
    def attributed(self) -> dict[int, Int64Array]:
        """Chosen examples of each group whose attribute is known and that is not empty."""
        group_of, known = self.groups.group_ids()[self.chosen], self.groups.group_attributes != UNKNOWN
        order = np.argsort(group_of, kind="stable")
        present, first = np.unique(group_of[order], return_index=True)
        parts = np.split(self.chosen[order], first[1:])
        return {int(g): part for g, part in zip(present, parts, strict=True) if known[g]}

    @property
    def known(self) -> Int64Array:
        """Chosen examples whose attribute is known, ascending."""
        return np.sort(np.concatenate([*self.attributed.values(), np.empty(0, dtype=np.int64)]))

    def check(self) -> None:
        """Check that a balanced subset exists.

        Raises:
            ValueError: If no attribute is known, or a class has no attributed example.
        """
        if not self.attributed:
            raise ValueError(f"{self.name}: no example has a known attribute; attributed examples are required")
        present = np.concatenate([np.unique(self.labels[part]) for part in self.attributed.values()])
        missing = np.setdiff1d(np.unique(self.labels), present)
        if missing.size:
            raise ValueError(
                f"{self.name}: class {self._class_name(int(missing[0]))} has no example whose attribute is known; "
                "each class requires attributed examples"
            )

    def _class_name(self, label: int) -> str:
        names = self.groups.class_names
        return repr(names[label]) if names else str(label)

    def rows_of(self, examples: Int64Array) -> HeadRows:
        """Return unmixed rows."""
        return HeadRows(examples, self.labels[examples].astype(np.int32))

    def balanced(self, rng: np.random.Generator) -> Int64Array:
        """Draw the size of the smallest attributed group from each attributed group, without replacement."""
        size = min(part.size for part in self.attributed.values())
        return np.sort(np.concatenate([rng.choice(part, size, replace=False) for part in self.attributed.values()]))

    def balanced_rows(self, rng: np.random.Generator) -> HeadRows:
        """Draw unmixed rows, see `balanced`."""
        return self.rows_of(self.balanced(rng))

    def repeated(self, rng: np.random.Generator, most: int) -> Int64Array:
        """Draw equally many of each attributed group: the size of the largest, up to `most`. Small groups are repeated."""
        size = min(max(part.size for part in self.attributed.values()), most)
        parts = [np.resize(rng.permutation(part), size) for part in self.attributed.values()]
        return np.sort(np.concatenate(parts))

    def class_balanced(self, rng: np.random.Generator) -> Int64Array:
        """Draw the size of the smallest class from each class, without replacement. Unknown attributes are included."""
        labels = self.labels[self.chosen]
        parts = [self.chosen[labels == label] for label in np.unique(labels)]
        size = min(part.size for part in parts)
        return np.sort(np.concatenate([rng.choice(part, size, replace=False) for part in parts]))

    def dispel(self, rng: np.random.Generator, s: float, alpha: float) -> HeadRows:
        """Mix a class-balanced bulk with donors from a balanced subset of the attributed examples.

        With probability `alpha`, a bulk example becomes s * donor + (1 - s) * itself, and keeps its label. The donor is
        drawn evenly over the groups of the class. A group that is missing lends its attribute's examples of the other
        classes.

        Args:
            rng: Source of randomness.
            s: Weight of the donor.
            alpha: Probability of mixing.

        Returns:
            The rows.
        """
        bulk = self.class_balanced(rng)
        pools = self._donor_pools(self.balanced(rng))
        mixed = rng.random(bulk.size) < alpha
        partner = bulk.copy()
        for label, by_attribute in pools.items():
            own = np.flatnonzero(mixed & (self.labels[bulk] == label))
            attribute = rng.integers(0, len(by_attribute), own.size)
            for k, pool in enumerate(by_attribute):
                at = own[attribute == k]
                partner[at] = pool[rng.integers(0, pool.size, at.size)]
        share = np.where(mixed, 1.0 - s, 1.0).astype(np.float32)
        return HeadRows(bulk, self.labels[bulk].astype(np.int32), partner, share)

    def _donor_pools(self, balanced: Int64Array) -> dict[int, list[Int64Array]]:
        """Donors of each class, one pool for each attribute."""
        groups = self.groups.group_ids()[balanced]
        attribute_of, label_of = self.groups.group_attributes[groups], self.labels[balanced]
        if (attribute_of == MIXED).any():
            raise ValueError(f"{self.name} requires groups of a single attribute")
        pools: dict[int, list[Int64Array]] = {}
        for label in np.unique(self.labels[self.chosen]):
            pools[int(label)] = []
            for attribute in np.unique(attribute_of):
                same = balanced[(attribute_of == attribute) & (label_of == label)]
                pools[int(label)].append(same if same.size else balanced[attribute_of == attribute])
        return pools
