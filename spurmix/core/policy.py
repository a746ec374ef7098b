"""MixPolicy: who is drawn, with whom it is mixed, how strongly, and what happens to the label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spurmix.core import checks
from spurmix.core.groups import MIXED, GroupIndex
from spurmix.core.lam import LamDistribution, as_distribution, quantile_table

if TYPE_CHECKING:
    from spurmix.core.audit import Audit

Strata = Literal["groups", "classes", "all"]
Labels = Literal["mix", "keep"]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """A policy made concrete for one GroupIndex: plain arrays, checked.

    Attributes:
        first_group: int64 `[S + 1]`, stratum s consists of groups first_group[s] to first_group[s + 1].
        weights: float64 `[S]`, the share of samples each stratum receives (not normalised).
        partner: float64 `[G, G]` weights of the partner's group given the index's; an all-zero row means no partner.
            None where no group has one.
        quantile: int64 `[1025]`, the table of lam.
        notes: what the policy had to adapt to these groups.
    """

    first_group: NDArray[np.int64]
    weights: FloatArray
    partner: FloatArray | None
    quantile: NDArray[np.int64]
    labels: Labels
    replacement: bool
    notes: tuple[str, ...] = ()
    attribute_shares: FloatArray | None = None
    """Shares `[C, A]` assumed of unknown attributes, where the policy was given some."""


@dataclass(frozen=True)
class MixPolicy:
    """A Markov kernel over groups: a schedule of strata, partner weights, a distribution of lam, a label rule.

    Args:
        strata: what the schedule goes round: single "groups", "classes" (all groups of a label), or "all" examples.
        weights: how often each stratum comes, `[S]` non-negative, in group order; or a mapping from group to weight
            (others 0). A group is named by its number or by its cell (label, attribute). None: equally often.
        partner: `[G, G]` non-negative weights, row = group of the index, column = group of the partner; or a mapping
            {group: {group: weight}}. Rows are normalised; an all-zero row means no partner. None: nobody has one.
        lam: weight of the index in the mix: a distribution (`Beta`, `Uniform`, `Fixed`, `InverseCDF`), a number or an
            inverse CDF. Required with `partner`.
        labels: "mix" mixes labels like inputs, "keep" keeps the label of the index.
        replacement: draw with replacement instead of going through each stratum in random order, cycle by cycle.

    Raises:
        TypeError, ValueError: at construction for what can be told without groups, else when it first meets groups
            (`resolve`, `audit`, `draw`, `MixLoader`), naming the argument.

    Example, group-balanced sampling mixed with other attributes of the class:
        >>> policy = MixPolicy(partner={(0, 0): {(0, 1): 1}, (0, 1): {(0, 0): 1}}, lam=Beta(2))  # doctest: +SKIP
    """

    strata: Strata = "groups"
    weights: Any = None
    partner: Any = None
    lam: Any = None
    labels: Labels = "mix"
    replacement: bool = False
    name: str = "custom"
    notes: tuple[str, ...] = ()
    recipe: Callable[[GroupIndex], MixPolicy] | None = field(default=None, repr=False, compare=False)
    attribute_shares: FloatArray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.strata not in ("groups", "classes", "all"):
            raise ValueError(f'strata must be "groups", "classes" or "all", got {self.strata!r}')
        if self.labels not in ("mix", "keep"):
            raise ValueError(f'labels must be "mix" or "keep", got {self.labels!r}')
        object.__setattr__(self, "replacement", checks.flag(self.replacement, "replacement"))
        checks.instance(self.name, "name", str)
        if self.lam is not None:
            object.__setattr__(self, "lam", as_distribution(self.lam))
            quantile_table(self.lam)
        elif self.partner is not None:
            raise ValueError("lam is required where partner is given")

    def resolve(self, groups: GroupIndex) -> MixPolicy:
        """This policy with concrete weights for `groups`; its repr notes what had to be adapted to them."""
        if not isinstance(groups, GroupIndex):
            raise TypeError(f"groups must be a GroupIndex, got {type(groups).__name__}")
        return self if self.recipe is None else replace(self.recipe(groups), name=self.name)

    def parts(self, groups: GroupIndex) -> Parts:
        """The four parts as checked arrays for `groups`."""
        policy = self.resolve(groups)
        first_group = stratum_bounds(groups, policy.strata)
        weights = _stratum_weights(groups, policy, first_group)
        partner = _partner_weights(groups, policy.partner)
        lam: LamDistribution = policy.lam if policy.lam is not None else as_distribution(1.0)
        return Parts(
            first_group,
            weights,
            partner,
            quantile_table(lam),
            policy.labels,
            policy.replacement,
            policy.notes,
            policy.attribute_shares,
        )

    def audit(self, groups: GroupIndex, *, prior: Any = None) -> Audit:
        """How much of the correlation between class and attribute is left when training follows this policy.

        Args:
            groups: the dataset's groups.
            prior: attribute shares of each class's unknown examples, `[C, A]` or {label: shares}; defaults to the
                policy's own prior, else to the class's known shares.
        """
        from spurmix.core.audit import audit

        return audit(groups, self, prior=prior)

    def __repr__(self) -> str:
        parts = [f"strata={self.strata!r}"]
        if self.recipe is None:
            parts += [f"weights={_short(self.weights)}"] if self.weights is not None else []
            parts += [f"partner={_short(self.partner)}"] if self.partner is not None else []
        parts += [f"lam={self.lam!r}"] if self.lam is not None else []
        parts += [f"labels={self.labels!r}"]
        parts += ["replacement=True"] if self.replacement else []
        text = f"MixPolicy<{self.name}>({', '.join(parts)})"
        return text + "".join(f"\n  note: {note}" for note in self.notes)


def _short(value: Any) -> str:
    array = np.asarray(value) if not isinstance(value, Mapping) else None
    return f"<{len(value)} groups>" if array is None else f"<{'x'.join(map(str, array.shape))}>"


def stratum_bounds(groups: GroupIndex, strata: Strata) -> NDArray[np.int64]:
    """Group numbers where strata start, `[S + 1]`: strata are contiguous runs of groups."""
    if strata == "groups":
        return np.arange(groups.num_groups + 1, dtype=np.int64)
    if strata == "all":
        return np.array([0, groups.num_groups], dtype=np.int64)
    labels = groups.group_labels
    mixed = np.flatnonzero((labels == MIXED) & (groups.sizes > 0))
    if mixed.size:
        raise ValueError(f'strata="classes": group {mixed[0]} holds examples of several classes')
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [groups.num_groups]]).astype(np.int64)
    if np.unique(labels[starts[:-1]]).size != starts.size - 1:
        raise ValueError('strata="classes": the groups of a class must follow each other; number the groups by class')
    return starts


def group_number(groups: GroupIndex, name: Any, what: str) -> int:
    """The group that `name` means: a group number, or a cell (label, attribute, ...).

    Raises:
        ValueError: for a group that does not exist.
    """
    if isinstance(name, (int, np.integer)) and not isinstance(name, bool):
        if 0 <= name < groups.num_groups:
            return int(name)
        raise ValueError(f"{what}: there is no group {name}; the groups are 0 to {groups.num_groups - 1}")
    if isinstance(name, tuple) and groups.cells is not None:
        cells = groups.cells if groups.attributes is not None else np.c_[groups.cells, np.zeros_like(groups.cells)]
        if len(name) == cells.shape[1]:
            found = np.flatnonzero((cells == np.asarray(name)).all(axis=1))
            if found.size:
                return int(found[0])
        listed = ", ".join(str(tuple(c)) for c in cells[:8].tolist()) + (", ..." if len(cells) > 8 else "")
        raise ValueError(f"{what}: no example has the cell {name}; the groups are {listed}")
    raise ValueError(f"{what}: a group is named by its number or its cell (label, attribute), got {name!r}")


def _checked(values: ArrayLike, shape: tuple[int, ...], name: str) -> FloatArray:
    try:
        array = np.array(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers ({error})") from None
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)} for these groups, got {list(array.shape)}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: weights must be finite, found {array[~np.isfinite(array)][0]}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name}: weights must not be negative, found {array.min():g}")
    return array


def _stratum_weights(groups: GroupIndex, policy: MixPolicy, first_group: NDArray[np.int64]) -> FloatArray:
    count = first_group.size - 1
    given = policy.weights
    if given is None:
        weights = np.ones(count)
    elif isinstance(given, Mapping):
        if policy.strata == "all":
            raise ValueError('weights: there is one stratum with strata="all", nothing to weigh')
        weights = np.zeros(count)
        labels = groups.group_labels[first_group[:-1]].tolist()
        for name, value in given.items():
            if policy.strata == "groups":
                weights[group_number(groups, name, "weights")] = checks.number(value, f"weights[{name!r}]")
            elif name in labels:
                weights[labels.index(name)] = checks.number(value, f"weights[{name!r}]")
            else:
                raise ValueError(f"weights: there is no class {name!r}; the classes are {labels}")
        weights = _checked(weights, (count,), "weights")
    else:
        weights = _checked(given, (count,), "weights")
    if not weights.any():
        raise ValueError("weights: every stratum has weight 0, nothing could be drawn")
    empty = np.flatnonzero((np.add.reduceat(groups.sizes, first_group[:-1]) == 0) & (weights > 0))
    if empty.size:
        raise ValueError(f"weights: stratum {empty[0]} has a positive weight but no examples")
    return weights


def _partner_weights(groups: GroupIndex, given: Any) -> FloatArray | None:
    count = groups.num_groups
    if given is None:
        return None
    if isinstance(given, Mapping):
        matrix = np.zeros((count, count))
        for row, targets in given.items():
            if not isinstance(targets, Mapping):
                raise TypeError(
                    f"partner[{row!r}] must be a mapping from group to weight, got {type(targets).__name__}"
                )
            for column, value in targets.items():
                pair = group_number(groups, row, "partner"), group_number(groups, column, f"partner[{row!r}]")
                matrix[pair] = checks.number(value, f"partner[{row!r}][{column!r}]")
        given = matrix
    partner = _checked(given, (count, count), "partner")
    bad = np.argwhere((groups.sizes == 0)[None, :] & (partner > 0))
    if bad.size:
        raise ValueError(f"partner: row {bad[0][0]} gives weight to group {bad[0][1]}, which has no examples")
    return partner if partner.any() else None


def normalised_partner(partner: FloatArray) -> FloatArray:
    """Rows of `partner` as probabilities; all-zero rows stay zero."""
    total = partner.sum(axis=1, keepdims=True)
    return np.divide(partner, total, out=np.zeros_like(partner), where=total > 0)
