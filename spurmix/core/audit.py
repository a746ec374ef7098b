"""The audit: how much of the correlation between class and attribute a policy leaves, computed before any training.

`docs/draw-specification.md`, "Audit", derives the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spurmix.core import memory
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.correlation import MixedSamples, group_means, partner_shares
from spurmix.core.groups import GroupIndex
from spurmix.core.lam import moments
from spurmix.core.names import distinct_names, printable
from spurmix.core.resolved_policy import ResolvedPolicy
from spurmix.core.schedule import make_schedule
from spurmix.core.shares import (
    Prior,
    known_counts,
    prior_shares,
    undetermined_classes,
    unknown_counts,
)

MAX_USES = 20.0
"""The audit warns if an example is used more often than this per pass over the largest group."""
MAX_UNKNOWN = 0.5
"""The audit warns if the attribute is unknown for at least this share of the examples of a class."""


@dataclass(frozen=True)
class GroupUse:
    """How a policy uses one group in an epoch of N samples.

    Attributes:
        group: Number of the group.
        name: Name of the group.
        count: Number of its examples.
        share: Share of samples whose index is in the group.
        distinct: Expected number of distinct examples used, as index or partner. NaN if the partners are not known.
        uses: Expected number of uses of each example, as index or partner, per pass over the largest group. NaN if the
            partners are not known.
    """

    group: int
    name: str
    count: int
    share: float
    distinct: float
    uses: float


@dataclass(frozen=True)
class Audit:
    """What a model sees when it is trained under a policy. Print it to see tables.

    Attributes:
        policy: repr of the resolved policy.
        raw: Correlation of class and attribute in the data, from 0 (none) to 1. NaN if it cannot be determined: less than
            two classes or attributes occur, or a class has examples of unknown attribute, no prior, and less than two
            known attributes.
        residual: Correlation of class and attribute in the mixed samples. NaN if it cannot be determined, also because
            the policy cannot choose partners, its samples have less than two classes or attributes, or the matrices of
            all classes and attributes do not fit in memory.
        joint: Soft joint table `[classes, attributes]` of the mixed samples, E[y a^T]. It sums to 1. NaN if attribute
            shares of a class are not known.
        classes: Names of the rows of `joint`.
        attributes: Names of the columns of `joint`.
        groups: Use of each group.
        warnings: Problems to consider before training.
        residual_given_lam: Correlation of class and attribute among the mixed samples with the same lam, averaged over
            the samples. Samples without a partner have lam = 1. NaN as for `residual`. `residual` can be 0 while this is
            not, because opposite correlations at different lam cancel, and a model may recognize lam from the input.
    """

    policy: str
    raw: float
    residual: float
    joint: FloatArray
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    groups: tuple[GroupUse, ...]
    warnings: tuple[str, ...]
    residual_given_lam: float = float("nan")

    def to_dict(self) -> dict[str, object]:
        """Return the audit as a dict of JSON types. A number that cannot be determined is None."""
        return {
            "policy": self.policy,
            "raw": _json(self.raw),
            "residual": _json(self.residual),
            "residual_given_lam": _json(self.residual_given_lam),
            "joint": [[_json(share) for share in line] for line in self.joint.tolist()],
            "classes": list(self.classes),
            "attributes": list(self.attributes),
            "groups": [{**vars(g), "distinct": _json(g.distinct), "uses": _json(g.uses)} for g in self.groups],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        head = ["", *distinct_names(self.attributes), "all"]
        rows = [
            [name, *(f"{v:.4f}" for v in line), f"{line.sum():.4f}"]
            for name, line in zip(distinct_names(self.classes), self.joint, strict=True)
        ]
        table = ["", "joint table of mixed samples", *_aligned([head, *rows])]
        use = [["group", "examples", "share", "distinct/epoch", "uses/pass"]]
        use += [
            [name, f"{g.count:,}", f"{100 * g.share:.2f}%", _known(g.distinct, ",.0f"), _known(g.uses, ".1f")]
            for g, name in zip(self.groups, distinct_names([g.name for g in self.groups]), strict=True)
        ]
        return "\n".join(
            [
                self.policy,
                f"correlation of class and attribute: {self.correlations()}",
                *([f"({MEANING_OF_ZERO})"] if not np.isnan(self.residual) else []),
                *(table if np.isfinite(self.joint).all() and self.joint.size else []),
                "",
                *_aligned(use),
                *(f"warning: {printable(w)}" for w in self.warnings),
            ]
        )

    def correlations(self, digits: int = 4) -> str:
        """Return the correlations in words.

        Args:
            digits: Number of digits after the point.

        Returns:
            Text such as "0.7000 in the data, 0.0000 after mixing, 0.5231 given lam".
        """
        before, after = correlation_text(self.raw, digits), correlation_text(self.residual, digits)
        if before == after == UNDETERMINED:
            return before
        given = "" if np.isnan(self.residual_given_lam) else f", {self.residual_given_lam:.{digits}f} given lam"
        return f"{before} in the data, {after} after mixing{given}"


def _json(value: float) -> float | None:
    return None if np.isnan(value) else value


def _known(value: float, form: str) -> str:
    return "unknown" if np.isnan(value) else format(value, form)


UNDETERMINED = "cannot be determined"
MEANING_OF_ZERO = (
    "0 after mixing means that class and attribute are uncorrelated over all mixed samples, and 0 given lam that they are "
    "also uncorrelated among samples with the same lam; neither promises that a model ignores the attribute, or ranks "
    "policies"
)
"""What a correlation of 0 promises and what it does not."""


def correlation_text(value: float | None, digits: int = 4) -> str:
    """Format a correlation. NaN and None mean that it cannot be determined."""
    return UNDETERMINED if value is None or np.isnan(value) else f"{value:.{digits}f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    rows = [[printable(cell) for cell in row] for row in rows]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, width, strict=True))
        ).rstrip()
        for row in rows
    ]


def audit_policy(
    groups: GroupIndex, policy: ResolvedPolicy, *, description: str, prior: Prior | None = None, problem: str = ""
) -> Audit:
    """Audit a resolved policy. `MixPolicy.audit` is the public method.

    Args:
        groups: Groups of the dataset.
        policy: The policy resolved for these groups.
        description: Description of the policy.
        prior: Attribute shares of each class's examples of unknown attribute. Default: those of the policy, else the
            shares of the class's known examples.
        problem: Why the policy cannot choose partners. Then `policy` has none, and only what does not depend on them is
            computed.

    Returns:
        The audit.

    Raises:
        ValueError: If the prior does not fit the groups.
    """
    given = prior_shares(groups, prior) if prior is not None else policy.attribute_shares
    undetermined = undetermined_classes(groups, given)
    drawn = policy.selection.groups
    means = group_means(drawn, given)
    index_share = _index_shares(drawn, policy)

    raw = residual = given_lam = float("nan")
    partner_share = None
    memory_warnings: list[str] = []
    joint = np.full((means.classes.size, means.attributes.size), np.nan)
    if not undetermined.size:
        data_share = groups.sizes / groups.num_examples
        data = means if drawn is groups else group_means(groups, given)
        raw, _ = MixedSamples.of(data, data_share, None, True).correlation(1.0, 1.0)
        try:
            samples = MixedSamples.of(means, index_share, policy.partner_rows, policy.labels == "mix")
            mixed, joint = samples.correlation(*moments(policy.quantile))
            residual, given_lam = mixed, samples.correlation_given_lam(policy.quantile)
            partner_share = samples.partner
        except memory.NotEnoughMemory as error:
            memory_warnings.append(f"the correlation after mixing cannot be determined: {error}")

    if partner_share is None:
        partner_share = partner_shares(policy.partner_rows, index_share)
    use = _group_use(groups, drawn.sizes, policy.replacement, index_share, partner_share)
    warnings = [*unknown_warnings(groups, given), *memory_warnings, *_use_warnings(use)]
    if problem:
        residual, given_lam, joint = float("nan"), float("nan"), np.full_like(joint, np.nan)
        use = [replace(g, distinct=float("nan"), uses=float("nan")) for g in use]
        warnings = [*unknown_warnings(groups, given), f"the partners cannot be determined: {problem}"]
    class_names = groups.class_names or tuple(f"y={c}" for c in range(groups.num_classes))
    attribute_names = groups.attribute_names or tuple(f"a={a}" for a in range(groups.num_attributes))
    return Audit(
        description,
        raw,
        residual,
        joint,
        tuple(class_names[c] for c in means.classes),
        tuple(attribute_names[a] for a in means.attributes),
        tuple(use),
        tuple(warnings),
        given_lam,
    )


def _use_warnings(use: list[GroupUse]) -> list[str]:
    return [
        f"each of the {g.count:,} examples of {g.name} is used {g.uses:.0f} times per pass over the largest group; "
        "the model may memorize them"
        for g in use
        if g.uses > MAX_USES
    ]


def unknown_warnings(groups: GroupIndex, prior: FloatArray | None = None) -> list[str]:
    """Describe the classes in which many attributes are unknown, or too many to determine the correlation.

    Args:
        groups: Groups of the dataset.
        prior: Attribute shares of each class's examples of unknown attribute, `[C, A]`. NaN where not given.

    Returns:
        Warnings.
    """
    undetermined = undetermined_classes(groups, prior)
    unknown, known = unknown_counts(groups), known_counts(groups).sum(axis=1)
    much = (unknown > 0) & (unknown >= MAX_UNKNOWN * (unknown + known))
    if prior is not None:
        much &= np.isnan(prior[:, 0])
    much[undetermined] = False
    class_names = groups.class_names or tuple(f"y={c}" for c in range(groups.num_classes))
    warnings = [f"the correlation cannot be determined: {reason}" for reason in _lack_of_values(groups)]
    if undetermined.size:
        warnings.append(
            "the correlation cannot be determined: less than two attributes are known, and some examples are unknown, in "
            f"{_listed(undetermined, class_names, known, unknown)}; label more examples, or give their shares in prior"
        )
    if much.any():
        warnings.append(
            f"many attributes are unknown in {_listed(np.flatnonzero(much), class_names, known, unknown)}; the audit "
            "assumes that their shares are those of the known ones of the class. If not, give their shares in prior"
        )
    return warnings


def _lack_of_values(groups: GroupIndex) -> list[str]:
    """Reasons why classes and attributes cannot be correlated in any sample of the groups."""
    if groups.spurious_attributes is None:
        return ["the groups have no attributes"]
    counts, unknown = known_counts(groups), unknown_counts(groups)
    classes, attributes = np.flatnonzero(counts.sum(axis=1) + unknown), np.flatnonzero(counts.sum(axis=0))
    reasons = []
    if classes.size == 1:
        name = groups.class_names[classes[0]] if groups.class_names else f"y={classes[0]}"
        reasons.append(f"all examples have the class {printable(name)}")
    if attributes.size == 1 and not unknown.any():
        name = groups.attribute_names[attributes[0]] if groups.attribute_names else f"a={attributes[0]}"
        reasons.append(f"all examples have the attribute {printable(name)}")
    return reasons


def _listed(classes: Int64Array, names: Sequence[str], known: Int64Array, unknown: Int64Array, most: int = 4) -> str:
    names = distinct_names(names)
    shown = [f"{names[c]} ({unknown[c]:,} of {unknown[c] + known[c]:,} unknown)" for c in classes[:most].tolist()]
    return ", ".join(shown) + (f" and {classes.size - most:,} more classes" if classes.size > most else "")


def _index_shares(groups: GroupIndex, policy: ResolvedPolicy) -> FloatArray:
    """Share of samples whose index is in each group, `[G]`, by the schedule's slots."""
    plan = make_schedule(policy.weights)
    stratum = np.repeat(np.arange(policy.weights.size), np.diff(policy.first_group))
    size = np.bincount(stratum, weights=groups.sizes, minlength=policy.weights.size)
    rate = plan.share / plan.stratum.size / np.maximum(size, 1)
    return rate[stratum] * groups.sizes


def _group_use(
    groups: GroupIndex, sizes: Int64Array, replacement: bool, index_share: FloatArray, partner_share: FloatArray
) -> list[GroupUse]:
    per_example = (index_share + partner_share) / np.maximum(sizes, 1)
    drawn = np.flatnonzero(index_share > 0)
    largest = drawn[np.argmax(sizes[drawn])]
    pass_samples = sizes[largest] / index_share[largest]  # samples in one pass over the largest group

    epoch = groups.num_examples
    index_uses = epoch * index_share / np.maximum(sizes, 1)
    missed = np.where(replacement, np.exp(-index_uses), np.maximum(0.0, 1.0 - index_uses))
    missed = missed * np.exp(-epoch * partner_share / np.maximum(sizes, 1))
    counts = groups.sizes if sizes.size == groups.num_groups else sizes
    return [
        GroupUse(
            g,
            groups.group_name(g) if g < groups.num_groups else f"target examples {g - groups.num_groups}",
            int(counts[g]),
            float(index_share[g]),
            float(sizes[g] * (1.0 - missed[g])),
            float(pass_samples * per_example[g]),
        )
        for g in range(sizes.size)
    ]
