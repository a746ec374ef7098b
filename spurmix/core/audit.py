"""The audit: how much of the correlation between class and attribute a policy leaves, computed before any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.lam import moments
from spurmix.core.policy import MixPolicy, Parts, normalised_partner
from spurmix.core.shares import prior_shares, require_shares, unknown_counts, unknown_shares
from spurmix.core.tables import schedule

FloatArray = NDArray[np.float64]
OVERUSE = 20.0
"""Uses of an example per pass over the largest group from which on the audit warns."""


@dataclass(frozen=True)
class GroupUse:
    """How a policy uses one group in an epoch of N samples.

    Attributes:
        share: share of the samples whose index lies in the group.
        distinct: expected number of different examples seen, as index or partner.
        uses: expected uses of each example, as index or partner, per pass over the largest group.
    """

    group: int
    name: str
    count: int
    share: float
    distinct: float
    uses: float


@dataclass(frozen=True)
class Audit:
    """What training under a policy sees.

    Attributes:
        policy: repr of the resolved policy.
        raw: correlation of class and attribute in the data, 0 (none) to 1.
        residual: the same for the mixed samples.
        joint: soft joint table `[classes, attributes]`, E[y a^T] of the mixed samples; sums to 1.
        classes, attributes: names of its rows and columns.
        groups: use of every group.
        warnings: what to think about before training.
    """

    policy: str
    raw: float
    residual: float
    joint: FloatArray
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    groups: tuple[GroupUse, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The audit as plain JSON types."""
        return {
            "policy": self.policy,
            "raw": self.raw,
            "residual": self.residual,
            "joint": self.joint.tolist(),
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
        use = [["group", "examples", "share", "distinct/epoch", "uses/pass"]]
        use += [
            [g.name, f"{g.count:,}", f"{100 * g.share:.2f}%", f"{g.distinct:,.0f}", f"{g.uses:.1f}"]
            for g in self.groups
        ]
        return "\n".join(
            [
                self.policy,
                f"correlation of class and attribute: {self.raw:.4f} in the data, {self.residual:.4f} after mixing",
                "",
                "joint table of mixed samples",
                *_aligned([head, *rows]),
                "",
                *_aligned(use),
                *(f"warning: {w}" for w in self.warnings),
            ]
        )


def _aligned(rows: list[list[str]]) -> list[str]:
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, width, strict=True))
        ).rstrip()
        for row in rows
    ]


@dataclass(frozen=True)
class _Means:
    """Within-group means over the classes and attributes that occur: Y `[G, C]`, A `[G, A]`, Y A^T `[G, C, A]`."""

    label: FloatArray
    attribute: FloatArray
    joint: FloatArray
    classes: NDArray[np.int64]
    attributes: NDArray[np.int64]


def audit(groups: GroupIndex, policy: MixPolicy, *, prior: Any = None) -> Audit:
    """The audit of `policy` on `groups`; see `MixPolicy.audit`."""
    resolved = policy.resolve(groups)
    parts = resolved.parts(groups)
    given = prior_shares(groups, prior) if prior is not None else parts.attribute_shares
    means = _means(groups, given)
    pi = _index_shares(groups, parts)
    kernel = normalised_partner(parts.partner) if parts.partner is not None else None

    raw_pi = groups.sizes / groups.num_examples
    raw, _ = _correlation(means, raw_pi, None, 1.0, 1.0, True)
    m1, m2 = moments(parts.quantile)
    residual, joint = _correlation(means, pi, kernel, m1, m2, parts.labels == "mix")

    use = _group_use(groups, parts, pi, kernel)
    heavy = [g for g in use if g.uses > OVERUSE]
    warnings = [
        f"each of the {g.count:,} examples of {g.name} is used {g.uses:.0f} times per pass over the largest group; "
        "the model may memorise them"
        for g in heavy
    ]
    class_names = groups.class_names or tuple(f"y={c}" for c in range(groups.num_classes))
    attribute_names = groups.attribute_names or tuple(f"a={a}" for a in range(groups.num_attributes))
    return Audit(
        repr(resolved),
        raw,
        residual,
        joint,
        tuple(class_names[c] for c in means.classes),
        tuple(attribute_names[a] for a in means.attributes),
        tuple(use),
        tuple(warnings),
    )


def _index_shares(groups: GroupIndex, parts: Parts) -> FloatArray:
    """Share of samples whose index lies in each group, `[G]`, from the schedule's slots."""
    plan = schedule(parts.weights)
    stratum = np.repeat(np.arange(parts.weights.size), np.diff(parts.first_group))
    size = np.bincount(stratum, weights=groups.sizes, minlength=parts.weights.size)
    rate = plan.share / plan.stratum.size / np.maximum(size, 1)
    return rate[stratum] * groups.sizes


def _means(groups: GroupIndex, prior: FloatArray | None) -> _Means:
    shares = unknown_shares(groups, prior)
    require_shares(shares, np.flatnonzero(unknown_counts(groups) > 0))
    shares = np.nan_to_num(shares)
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
    classes = np.flatnonzero(joint.any(axis=(0, 2)))
    attributes = np.flatnonzero(joint.any(axis=(0, 1)))
    joint = joint[:, classes][:, :, attributes]
    return _Means(joint.sum(axis=2), joint.sum(axis=1), joint, classes, attributes)


def _correlation(
    means: _Means, pi: FloatArray, kernel: FloatArray | None, m1: float, m2: float, mix_labels: bool
) -> tuple[float, FloatArray]:
    """Residual correlation and joint table E[y a^T] of samples with index shares `pi` and partner kernel `kernel`."""
    y_label = means.label
    own_yy = _diagonal(y_label)
    own_aa = _diagonal(means.attribute)
    if kernel is None:
        kernel = np.zeros((pi.size, 0))
        paired = np.zeros(pi.size, dtype=bool)
    else:
        paired = np.asarray(kernel.any(axis=1))

    alone = np.where(paired, 0.0, pi)
    e_y, e_a = alone @ y_label, alone @ means.attribute
    e_ya = np.einsum("g,gca->ca", alone, means.joint)
    e_yy = np.einsum("g,gcd->cd", alone, own_yy)
    e_aa = np.einsum("g,gcd->cd", alone, own_aa)
    if paired.any():
        index = np.where(paired, pi, 0.0)
        partner = index @ kernel  # [G] share of samples whose partner lies in each group
        pairs = index[:, None] * kernel  # [G, G]
        label = _Mixed(mix_labels, m1, m2)
        pixel = _Mixed(True, m1, m2)
        e_y = e_y + label.mean(index @ y_label, partner @ y_label)
        e_a = e_a + pixel.mean(index @ means.attribute, partner @ means.attribute)
        e_yy = e_yy + label.square(index, partner, own_yy, y_label.T @ pairs @ y_label)
        e_aa = e_aa + pixel.square(index, partner, own_aa, means.attribute.T @ pairs @ means.attribute)
        own = np.einsum("g,gca->ca", index, means.joint)
        cross = y_label.T @ pairs @ means.attribute
        if mix_labels:
            reverse = y_label.T @ pairs.T @ means.attribute
            donated = np.einsum("g,gca->ca", partner, means.joint)
            e_ya = e_ya + m2 * own + (m1 - m2) * (cross + reverse) + (1 - 2 * m1 + m2) * donated
        else:
            e_ya = e_ya + m1 * own + (1 - m1) * cross
    return _residual(e_ya, e_yy, e_aa, e_y, e_a), e_ya


@dataclass(frozen=True)
class _Mixed:
    """First and second moments of lam u + (1 - lam) v, or of u alone where it is not mixed."""

    mixed: bool
    m1: float
    m2: float

    def mean(self, own: FloatArray, other: FloatArray) -> FloatArray:
        return self.m1 * own + (1 - self.m1) * other if self.mixed else own

    def square(self, index: FloatArray, partner: FloatArray, own: FloatArray, cross: FloatArray) -> FloatArray:
        first = np.einsum("g,gcd->cd", index, own)
        if not self.mixed:
            return first
        second = np.einsum("g,gcd->cd", partner, own)
        return self.m2 * first + (self.m1 - self.m2) * (cross + cross.T) + (1 - 2 * self.m1 + self.m2) * second


def _diagonal(means: FloatArray) -> FloatArray:
    """E[v v^T] of one-hot v with the given means: diagonal matrices `[G, K, K]`."""
    return means[:, :, None] * np.eye(means.shape[1])


def _residual(e_ya: FloatArray, e_yy: FloatArray, e_aa: FloatArray, e_y: FloatArray, e_a: FloatArray) -> float:
    """||Cov(y)^-1/2 Cov(y, a) Cov(a)^-1/2||_F / sqrt(min rank): Cramer's V where y and a are one-hot."""
    root_y, rank_y = _inverse_root(e_yy - np.outer(e_y, e_y))
    root_a, rank_a = _inverse_root(e_aa - np.outer(e_a, e_a))
    rank = min(rank_y, rank_a)
    if rank == 0:
        return 0.0
    core = root_y @ (e_ya - np.outer(e_y, e_a)) @ root_a
    return float(np.linalg.norm(core) / np.sqrt(rank))


def _inverse_root(covariance: FloatArray) -> tuple[FloatArray, int]:
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > 1e-10 * max(1.0, float(values[-1]))
    inverse = np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    return (vectors * inverse) @ vectors.T, int(kept.sum())


def _group_use(groups: GroupIndex, parts: Parts, pi: FloatArray, kernel: FloatArray | None) -> list[GroupUse]:
    partner = np.zeros_like(pi) if kernel is None else pi @ kernel
    sizes = groups.sizes
    per_example = (pi + partner) / np.maximum(sizes, 1)
    drawn = np.flatnonzero(pi > 0)
    largest = drawn[np.argmax(sizes[drawn])]
    samples = sizes[largest] / pi[largest]  # one pass over the largest group

    epoch = groups.num_examples
    as_index = epoch * pi / np.maximum(sizes, 1)
    missed = np.where(parts.replacement, np.exp(-as_index), np.maximum(0.0, 1.0 - as_index))
    missed = missed * np.exp(-epoch * partner / np.maximum(sizes, 1))
    return [
        GroupUse(
            g,
            groups.group_name(g),
            int(sizes[g]),
            float(pi[g]),
            float(sizes[g] * (1.0 - missed[g])),
            float(samples * per_example[g]),
        )
        for g in range(groups.num_groups)
    ]
