"""The audit: how much of the correlation between class and attribute a policy leaves, computed before any training.

`docs/draw-specification.md`, "Audit", derives the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.lam import moments
from spurmix.core.names import printable
from spurmix.core.resolved_policy import ResolvedPolicy, normalized_rows
from spurmix.core.schedule import make_schedule
from spurmix.core.shares import (
    Prior,
    known_counts,
    prior_shares,
    undetermined_classes,
    unknown_counts,
    unknown_shares,
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
        distinct: Expected number of distinct examples used, as index or partner.
        uses: Expected number of uses of each example, as index or partner, per pass over the largest group.
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
            two attributes occur, or a class has examples of unknown attribute, no prior, and less than two known
            attributes.
        residual: Correlation of class and attribute in the mixed samples. NaN if it cannot be determined.
        joint: Soft joint table `[classes, attributes]` of the mixed samples, E[y a^T]. It sums to 1. NaN if attribute
            shares of a class are not known.
        classes: Names of the rows of `joint`.
        attributes: Names of the columns of `joint`.
        groups: Use of each group.
        warnings: Problems to consider before training.
    """

    policy: str
    raw: float
    residual: float
    joint: FloatArray
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    groups: tuple[GroupUse, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the audit as a dict of JSON types. A number that cannot be determined is None."""
        return {
            "policy": self.policy,
            "raw": None if np.isnan(self.raw) else self.raw,
            "residual": None if np.isnan(self.residual) else self.residual,
            "joint": [[None if np.isnan(share) else share for share in line] for line in self.joint.tolist()],
            "classes": list(self.classes),
            "attributes": list(self.attributes),
            "groups": [vars(g).copy() for g in self.groups],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        head = ["", *self.attributes, "all"]
        rows = [
            [name, *(f"{v:.4f}" for v in line), f"{line.sum():.4f}"]
            for name, line in zip(self.classes, self.joint, strict=True)
        ]
        table = ["", "joint table of mixed samples", *_aligned([head, *rows])]
        use = [["group", "examples", "share", "distinct/epoch", "uses/pass"]]
        use += [
            [g.name, f"{g.count:,}", f"{100 * g.share:.2f}%", f"{g.distinct:,.0f}", f"{g.uses:.1f}"]
            for g in self.groups
        ]
        return "\n".join(
            [
                self.policy,
                f"correlation of class and attribute: {self.correlations()}",
                *(table if np.isfinite(self.joint).all() and self.joint.size else []),
                "",
                *_aligned(use),
                *(f"warning: {printable(w)}" for w in self.warnings),
            ]
        )

    def correlations(self, digits: int = 4) -> str:
        """Return both correlations in words.

        Args:
            digits: Number of digits after the point.

        Returns:
            Text such as "0.7000 in the data, 0.0000 after mixing".
        """
        before, after = correlation_text(self.raw, digits), correlation_text(self.residual, digits)
        return before if before == after == UNDETERMINED else f"{before} in the data, {after} after mixing"


UNDETERMINED = "cannot be determined"


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


@dataclass(frozen=True)
class _Means:
    """Means within each group over the classes and attributes that occur.

    Attributes:
        label: Mean of one-hot labels, `[G, C]`.
        attribute: Mean of one-hot attributes, `[G, A]`.
        joint: Mean of their outer product y a^T, `[G, C, A]`.
        classes: The classes that occur, `[C]`.
        attributes: The attributes that occur, `[A]`.
    """

    label: FloatArray
    attribute: FloatArray
    joint: FloatArray
    classes: Int64Array
    attributes: Int64Array


def audit_policy(groups: GroupIndex, policy: ResolvedPolicy, *, description: str, prior: Prior | None = None) -> Audit:
    """Audit a resolved policy. `MixPolicy.audit` is the public method.

    Args:
        groups: Groups of the dataset.
        policy: The policy resolved for these groups.
        description: Description of the policy.
        prior: Attribute shares of each class's examples of unknown attribute. Default: those of the policy, else the
            shares of the class's known examples.

    Returns:
        The audit.

    Raises:
        ValueError: If the prior does not fit the groups.
    """
    given = prior_shares(groups, prior) if prior is not None else policy.attribute_shares
    undetermined = undetermined_classes(groups, given)
    means = _group_means(groups, given)
    index_share = _index_shares(groups, policy)
    kernel = normalized_rows(policy.partner) if policy.partner is not None else None

    raw = residual = float("nan")
    joint = np.full((means.classes.size, means.attributes.size), np.nan)
    if not undetermined.size:
        data_share = groups.sizes / groups.num_examples
        raw, _ = _correlation(means, data_share, None, 1.0, 1.0, True)
        m1, m2 = moments(policy.quantile)
        residual, joint = _correlation(means, index_share, kernel, m1, m2, policy.labels == "mix")
    if means.attributes.size < 2:
        raw = residual = float("nan")

    use = _group_use(groups, policy.replacement, index_share, kernel)
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
        (*unknown_warnings(groups, given), *_use_warnings(use)),
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
    warnings = []
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


def _listed(classes: Int64Array, names: Sequence[str], known: Int64Array, unknown: Int64Array, most: int = 4) -> str:
    shown = [f"{names[c]} ({unknown[c]:,} of {unknown[c] + known[c]:,} unknown)" for c in classes[:most].tolist()]
    return ", ".join(shown) + (f" and {classes.size - most:,} more classes" if classes.size > most else "")


def _index_shares(groups: GroupIndex, policy: ResolvedPolicy) -> FloatArray:
    """Share of samples whose index is in each group, `[G]`, by the schedule's slots."""
    plan = make_schedule(policy.weights)
    stratum = np.repeat(np.arange(policy.weights.size), np.diff(policy.first_group))
    size = np.bincount(stratum, weights=groups.sizes, minlength=policy.weights.size)
    rate = plan.share / plan.stratum.size / np.maximum(size, 1)
    return rate[stratum] * groups.sizes


def _group_means(groups: GroupIndex, prior: FloatArray | None) -> _Means:
    shares = np.nan_to_num(unknown_shares(groups, prior))
    joint = np.zeros((groups.num_groups, groups.num_classes, groups.num_attributes))
    if groups.custom:
        ids = groups.group_ids()
        column = groups.spurious_attributes
        attribute = np.zeros(groups.num_examples, dtype=np.int64) if column is None else column
        cells = np.stack([ids, groups.labels.astype(np.int64), attribute.astype(np.int64)])
        keys, counts = np.unique(cells, axis=1, return_counts=True)
    else:
        keys = np.stack([np.arange(groups.num_groups), groups.group_labels, groups.group_attributes])
        counts = groups.sizes
    for (g, y, a), count in zip(keys.T.tolist(), counts.tolist(), strict=True):
        if a == UNKNOWN:
            joint[g, y] += count * shares[y]
        else:
            joint[g, y, a] += count
    joint /= np.maximum(groups.sizes, 1)[:, None, None]
    classes = np.flatnonzero(joint.any(axis=(0, 2)) | (unknown_counts(groups) > 0))
    attributes = np.flatnonzero(joint.any(axis=(0, 1)))
    joint = joint[:, classes][:, :, attributes]
    return _Means(joint.sum(axis=2), joint.sum(axis=1), joint, classes, attributes)


def _correlation(
    means: _Means, index_share: FloatArray, kernel: FloatArray | None, m1: float, m2: float, mix_labels: bool
) -> tuple[float, FloatArray]:
    """Residual correlation and joint table E[y a^T] of mixed samples.

    Args:
        means: Means within each group.
        index_share: Share of samples whose index is in each group, `[G]`.
        kernel: Probability of the partner's group for each group of the index, `[G, G]`. All-zero: no partner.
        m1: E[lam].
        m2: E[lam^2].
        mix_labels: Whether labels are mixed.

    Returns:
        The residual correlation, and the joint table `[C, A]`.
    """
    label_square = _diagonal(means.label)
    attribute_square = _diagonal(means.attribute)
    if kernel is None:
        kernel = np.zeros((index_share.size, 0))
        has_partner = np.zeros(index_share.size, dtype=bool)
    else:
        has_partner = np.asarray(kernel.any(axis=1))

    unmixed = np.where(has_partner, 0.0, index_share)
    e_y, e_a = unmixed @ means.label, unmixed @ means.attribute
    e_ya = np.einsum("g,gca->ca", unmixed, means.joint)
    e_yy = np.einsum("g,gcd->cd", unmixed, label_square)
    e_aa = np.einsum("g,gcd->cd", unmixed, attribute_square)
    if has_partner.any():
        index = np.where(has_partner, index_share, 0.0)
        partner = index @ kernel  # [G] share of samples whose partner is in each group
        pairs = index[:, None] * kernel  # [G, G] share of samples by the groups of index and partner
        label = _MixedMoments(mix_labels, m1, m2)
        attribute = _MixedMoments(True, m1, m2)
        e_y = e_y + label.mean(index @ means.label, partner @ means.label)
        e_a = e_a + attribute.mean(index @ means.attribute, partner @ means.attribute)
        e_yy = e_yy + label.square(index, partner, label_square, means.label.T @ pairs @ means.label)
        e_aa = e_aa + attribute.square(index, partner, attribute_square, means.attribute.T @ pairs @ means.attribute)
        index_term = np.einsum("g,gca->ca", index, means.joint)
        cross_term = means.label.T @ pairs @ means.attribute
        if mix_labels:
            reverse_term = means.label.T @ pairs.T @ means.attribute
            partner_term = np.einsum("g,gca->ca", partner, means.joint)
            e_ya = e_ya + m2 * index_term + (m1 - m2) * (cross_term + reverse_term) + (1 - 2 * m1 + m2) * partner_term
        else:
            e_ya = e_ya + m1 * index_term + (1 - m1) * cross_term
    return _residual(e_ya, e_yy, e_aa, e_y, e_a), e_ya


@dataclass(frozen=True)
class _MixedMoments:
    """First and second moments of lam u + (1 - lam) v, or of u if it is not mixed."""

    mixed: bool
    m1: float
    m2: float

    def mean(self, of_index: FloatArray, of_partner: FloatArray) -> FloatArray:
        return self.m1 * of_index + (1 - self.m1) * of_partner if self.mixed else of_index

    def square(self, index: FloatArray, partner: FloatArray, within: FloatArray, cross: FloatArray) -> FloatArray:
        of_index = np.einsum("g,gcd->cd", index, within)
        if not self.mixed:
            return of_index
        of_partner = np.einsum("g,gcd->cd", partner, within)
        return self.m2 * of_index + (self.m1 - self.m2) * (cross + cross.T) + (1 - 2 * self.m1 + self.m2) * of_partner


def _diagonal(means: FloatArray) -> FloatArray:
    """E[v v^T] of one-hot vectors v with the given means, `[G, K, K]`."""
    return means[:, :, None] * np.eye(means.shape[1])


def _residual(e_ya: FloatArray, e_yy: FloatArray, e_aa: FloatArray, e_y: FloatArray, e_a: FloatArray) -> float:
    """||Cov(y)^-1/2 Cov(y, a) Cov(a)^-1/2||_F / sqrt(min rank). This is Cramer's V if y and a are one-hot."""
    root_y, rank_y = _inverse_root(e_yy - np.outer(e_y, e_y))
    root_a, rank_a = _inverse_root(e_aa - np.outer(e_a, e_a))
    rank = min(rank_y, rank_a)
    if rank == 0:
        return 0.0
    core = root_y @ (e_ya - np.outer(e_y, e_a)) @ root_a
    return float(np.linalg.norm(core) / np.sqrt(rank))


def _inverse_root(covariance: FloatArray) -> tuple[FloatArray, int]:
    """Pseudo-inverse of the square root of a covariance matrix, and its rank."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > 1e-10 * max(1.0, float(values[-1]))
    inverse = np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    return (vectors * inverse) @ vectors.T, int(kept.sum())


def _group_use(
    groups: GroupIndex, replacement: bool, index_share: FloatArray, kernel: FloatArray | None
) -> list[GroupUse]:
    partner_share = np.zeros_like(index_share) if kernel is None else index_share @ kernel
    sizes = groups.sizes
    per_example = (index_share + partner_share) / np.maximum(sizes, 1)
    drawn = np.flatnonzero(index_share > 0)
    largest = drawn[np.argmax(sizes[drawn])]
    pass_samples = sizes[largest] / index_share[largest]  # samples in one pass over the largest group

    epoch = groups.num_examples
    index_uses = epoch * index_share / np.maximum(sizes, 1)
    missed = np.where(replacement, np.exp(-index_uses), np.maximum(0.0, 1.0 - index_uses))
    missed = missed * np.exp(-epoch * partner_share / np.maximum(sizes, 1))
    return [
        GroupUse(
            g,
            groups.group_name(g),
            int(sizes[g]),
            float(index_share[g]),
            float(sizes[g] * (1.0 - missed[g])),
            float(pass_samples * per_example[g]),
        )
        for g in range(groups.num_groups)
    ]
