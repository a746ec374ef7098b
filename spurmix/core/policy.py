"""`MixPolicy`: which examples are drawn, how they are paired, how strongly they are mixed, and which label they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.audit import Audit, audit_policy
from spurmix.core.deprecation import renamed_attribute
from spurmix.core.groups import GroupIndex
from spurmix.core.lam import LamDistribution, LamLike, as_distribution, quantile_table
from spurmix.core.partners import PartnerRows
from spurmix.core.resolved_policy import (
    Labels,
    PartnerWeights,
    ResolvedPolicy,
    Strata,
    Weights,
    partner_weights,
    stratum_bounds,
    stratum_weights,
)
from spurmix.core.selection import Unknown, checked_unknown, select_examples
from spurmix.core.shares import Prior, UnknownAttributes


@dataclass(frozen=True)
class MixPolicy:
    """How samples are drawn and mixed: a Markov kernel over groups.

    A sample mixes two examples, `lam * x[index] + (1 - lam) * x[partner]`. A schedule goes through the strata and draws
    the index. The partner's group depends on the index's group only. `spurmix.policies` has the published methods.

    Args:
        strata: What the schedule goes through: single "groups", "classes" (all groups of a label), or "all" examples as
            one stratum.
        weights: Share of samples of each stratum, `[S]` non-negative, in the order of the groups. Or a mapping from
            group or class to weight, in which missing strata have weight 0. A group is given by its number or its cell
            (label, attribute). Default: equal weights.
        partner: `[G, G]` non-negative weights. The row is the group of the index, the column the group of the partner.
            Rows are normalized. An all-zero row means no partner, and lam = 1. Or a mapping
            {group: {group: weight}}. Default: no group has a partner.
        lam: Weight of the index: a distribution (`Beta`, `Uniform`, `Fixed`, `InverseCDF`), a number in [0, 1], or an
            inverse CDF. Required if `partner` is given.
        labels: "mix" mixes the labels with the same weights as the inputs. "keep" keeps the label of the index.
        replacement: Draw with replacement. Default: each example of a stratum once per cycle, in random order.
        name: Name shown in the repr.
        notes: Notes shown in the repr.
        recipe: Function that makes the policy for a `GroupIndex`. The functions of `spurmix.policies` set it.
        attribute_shares: `[C, A]` attribute shares that the recipe assumed for examples whose attribute is unknown.
        targets: Example numbers, or a mask `[N]`, of examples that form groups of their own, one for each class. These
            groups follow the others. `spurmix.policies.mixpro` sets it.
        unknown: What happens with examples of unknown attribute. "group": those of a class are a group like any other.
            "bulk": the same, but with strata="groups" and without weights, they are drawn in proportion to their number,
            and the other groups share the rest equally. "exclude": they are left out, and are neither index nor partner.
        subsample: Cut each group to the size of the smallest one. Each seed has another subsample. With unknown="bulk",
            the examples of unknown attribute are not cut.

    Raises:
        TypeError: If an argument has a wrong type. Weights are checked when the policy is used with a `GroupIndex`.
        ValueError: If an argument has an invalid value.

    Example:
        >>> groups = GroupIndex([0, 0, 0, 1], [0, 0, 1, 1])
        >>> policy = MixPolicy(partner={(0, 0): {(0, 1): 1}, (0, 1): {(0, 0): 1}}, lam=0.5)
        >>> round(policy.audit(groups).residual, 2)
        0.58
    """

    strata: Strata = "groups"
    weights: Weights | None = None
    partner: PartnerWeights | PartnerRows | None = None
    lam: LamLike | None = None
    labels: Labels = "mix"
    replacement: bool = False
    name: str = "custom"
    notes: tuple[str, ...] = ()
    recipe: Callable[[GroupIndex], MixPolicy] | None = field(default=None, repr=False, compare=False)
    attribute_shares: FloatArray | None = field(default=None, repr=False, compare=False)
    targets: Int64Array | NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)
    unknown: Unknown = "group"
    subsample: bool = False

    def __post_init__(self) -> None:
        if self.strata not in ("groups", "classes", "all"):
            raise ValueError(f'strata must be "groups", "classes" or "all", got {self.strata!r}')
        if self.labels not in ("mix", "keep"):
            raise ValueError(f'labels must be "mix" or "keep", got {self.labels!r}')
        object.__setattr__(self, "replacement", checks.flag(self.replacement, "replacement"))
        object.__setattr__(self, "subsample", checks.flag(self.subsample, "subsample"))
        checked_unknown(str(self.unknown), None, "group", "MixPolicy")
        checks.instance(self.name, "name", str)
        if self.lam is not None:
            lam = as_distribution(self.lam)
            object.__setattr__(self, "lam", lam)
            quantile_table(lam)
        elif self.partner is not None:
            raise ValueError("lam is required if partner is given, got None")

    def resolve(self, groups: GroupIndex) -> MixPolicy:
        """Make the policy for one `GroupIndex`.

        Args:
            groups: Groups of the dataset.

        Returns:
            The policy with concrete weights. Its repr notes what was adapted to the groups. A policy without a recipe
            is returned as it is.

        Raises:
            TypeError: If `groups` is not a `GroupIndex`.
            ValueError: If the policy does not fit the groups.
        """
        checks.instance(groups, "groups", GroupIndex)
        if self.recipe is None:
            return self
        drawn = select_examples(groups, self.unknown, self.subsample, targets=self.targets).groups
        return replace(
            self.recipe(drawn), name=self.name, unknown=self.unknown, subsample=self.subsample, targets=self.targets
        )

    def resolve_arrays(self, groups: GroupIndex, seed: int = 0) -> ResolvedPolicy:
        """Resolve the policy for one `GroupIndex` and check its weights.

        Args:
            groups: Groups of the dataset.
            seed: Selects the subsample if `subsample` is True, in [0, 2^63).

        Returns:
            The strata, the weights and the quantile table as arrays.

        Raises:
            TypeError: If the weights are not numbers.
            ValueError: If the policy does not fit the groups.
        """
        policy = self.resolve(groups)
        selection = select_examples(groups, policy.unknown, policy.subsample, seed, policy.targets)
        groups = groups if policy.targets is None else selection.groups
        first_group = stratum_bounds(groups, policy.strata)
        lam: LamDistribution = as_distribution(policy.lam if policy.lam is not None else 1.0)
        return ResolvedPolicy(
            first_group=first_group,
            weights=stratum_weights(groups, policy.strata, policy.weights, first_group, selection),
            partner_rows=partner_weights(groups, policy.partner, selection),
            quantile=quantile_table(lam),
            labels=policy.labels,
            replacement=policy.replacement,
            notes=policy.notes,
            attribute_shares=policy.attribute_shares,
            selection=selection,
        )

    parts = renamed_attribute("resolve_arrays")

    def audit(self, groups: GroupIndex, *, prior: Prior | None = None) -> Audit:
        """Compute how much of the correlation between class and attribute is left under this policy.

        Args:
            groups: Groups of the dataset.
            prior: Attribute shares of each class's examples of unknown attribute, `[C, A]`, or {label: shares}. Default:
                the policy's prior if it has one, else the shares of the class's known examples.

        Returns:
            The audit. Print it to see a table.

        Raises:
            TypeError: If `groups` is not a `GroupIndex`, or `prior` does not hold numbers.
            ValueError: If the policy or the prior does not fit the groups. If too few attributes are known to choose
                partners, the audit reports it instead.

        Example:
            >>> from spurmix import policies
            >>> groups = GroupIndex([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0])
            >>> audit = policies.group_balanced().audit(groups)
            >>> round(audit.raw, 2), round(audit.residual, 2)
            (0.33, 0.0)
        """
        problem = ""
        try:
            resolved = self.resolve(groups)
            arrays = resolved.resolve_arrays(groups)
        except UnknownAttributes as error:
            resolved, problem = replace(self, recipe=None, unknown="group", subsample=False, targets=None), str(error)
            arrays = resolved.resolve_arrays(groups)
        return audit_policy(groups, arrays, description=repr(resolved), prior=prior, problem=problem)

    def __repr__(self) -> str:
        parts = [f"strata={self.strata!r}"]
        if self.recipe is None:
            parts += [f"weights={_shape(self.weights)}"] if self.weights is not None else []
            parts += [f"partner={_shape(self.partner)}"] if self.partner is not None else []
        parts += [f"lam={self.lam!r}"] if self.lam is not None else []
        parts += [f"labels={self.labels!r}"]
        parts += ["replacement=True"] if self.replacement else []
        shown = self.unknown == "exclude" or (self.unknown == "bulk" and self.strata == "groups")
        parts += [f"unknown={self.unknown!r}"] if shown else []
        parts += ["subsample=True"] if self.subsample else []
        text = f"MixPolicy<{self.name}>({', '.join(parts)})"
        return text + "".join(f"\n  note: {note}" for note in self.notes)


def _shape(value: Weights | PartnerWeights | PartnerRows) -> str:
    """A short form for the repr, such as "<4x4>"."""
    if isinstance(value, Mapping):
        return f"<{len(value)} groups>"
    return f"<{'x'.join(map(str, np.shape(value) if not isinstance(value, PartnerRows) else value.shape))}>"
