"""The correlation of class and attribute in mixed samples. `docs/draw-specification.md`, "Audit", has the formulas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.partners import PartnerRows
from spurmix.core.shares import unknown_counts, unknown_shares

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class GroupMeans:
    """Means within each group over the classes and attributes that occur.

    Attributes:
        label: Mean of one-hot labels, sparse `[G, C]`.
        attribute: Mean of one-hot attributes, sparse `[G, A]`.
        joint: Mean of their outer product y a^T, sparse `[G, C * A]`.
        classes: The classes that occur, `[C]`.
        attributes: The attributes that occur, `[A]`.
    """

    label: csr_array
    attribute: csr_array
    joint: csr_array
    classes: Int64Array
    attributes: Int64Array

    def joint_table(self, share: FloatArray) -> FloatArray:
        """E[y a^T] of unmixed samples whose group has the given shares, `[C, A]`."""
        return np.asarray(share @ self.joint).reshape(self.classes.size, self.attributes.size)


def group_means(groups: GroupIndex, prior: FloatArray | None) -> GroupMeans:
    """Compute the means of each group. Examples of unknown attribute have the shares of `prior`, or of their class."""
    from scipy.sparse import csr_array

    shares = np.nan_to_num(unknown_shares(groups, prior))
    if groups.custom:
        column = groups.spurious_attributes
        attribute = np.zeros(groups.num_examples, dtype=np.int64) if column is None else column
        cells = np.stack([groups.group_ids(), groups.labels.astype(np.int64), attribute.astype(np.int64)])
        (g, y, a), count = np.unique(cells, axis=1, return_counts=True)
    else:
        g, y, a = np.arange(groups.num_groups), groups.group_labels, groups.group_attributes
        count = groups.sizes
    weight = count / groups.sizes[g]
    known = a != UNKNOWN
    g_of_share, a_of_share = np.nonzero(shares[y[~known]])
    g, y, a, weight = (
        np.concatenate([values[known], more])
        for values, more in (
            (g, g[~known][g_of_share]),
            (y, y[~known][g_of_share]),
            (a, a_of_share),
            (weight, weight[~known][g_of_share] * shares[y[~known][g_of_share], a_of_share]),
        )
    )
    classes = np.union1d(np.unique(y), np.flatnonzero(unknown_counts(groups) > 0))
    attributes, attribute = np.unique(a, return_inverse=True)
    label = np.searchsorted(classes, y)

    def sparse(columns: Int64Array, width: int) -> csr_array:
        return csr_array((weight, (g, columns)), shape=(groups.num_groups, width))

    return GroupMeans(
        sparse(label, classes.size),
        sparse(attribute, attributes.size),
        sparse(label * attributes.size + attribute, classes.size * attributes.size),
        classes,
        attributes,
    )


def normalized_blocks(partners: PartnerRows) -> Iterator[tuple[int, csr_array]]:
    """Yield the number of the first row of each block, and its rows as probabilities."""
    for start, rows in partners.blocks():
        total = np.asarray(rows.sum(axis=1))
        inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        rows.data *= np.repeat(inverse, np.diff(rows.indptr))
        yield start, rows


def row_shares(partners: PartnerRows, index_share: FloatArray) -> FloatArray:
    """Share of samples that use each row of partner weights, `[R]`."""
    has_partner = partners.row_of >= 0
    shares = np.zeros(partners.count)
    np.add.at(shares, partners.row_of[has_partner], index_share[has_partner])
    return shares


def partner_shares(partners: PartnerRows | None, index_share: FloatArray) -> FloatArray:
    """Share of samples whose partner is in each group, `[G]`."""
    shares = np.zeros_like(index_share)
    if partners is not None:
        of_row = row_shares(partners, index_share)
        for start, rows in normalized_blocks(partners):
            shares += of_row[start : start + rows.shape[0]] @ rows
    return shares


@dataclass(frozen=True)
class _Cross:
    """E[u v^T] for u of the index and v of the partner, over samples with a partner."""

    label_label: FloatArray
    attribute_attribute: FloatArray
    label_attribute: FloatArray
    attribute_label: FloatArray


def _cross_moments(means: GroupMeans, index_share: FloatArray, partners: PartnerRows) -> _Cross:
    from scipy.sparse import csr_array

    used = np.flatnonzero(partners.row_of >= 0)
    place = (index_share[used], (partners.row_of[used], used))
    by_row = csr_array(place, shape=(partners.count, index_share.size))  # sums groups that share a row
    label, attribute = by_row @ means.label, by_row @ means.attribute
    classes, attributes = means.classes.size, means.attributes.size
    cross = _Cross(
        np.zeros((classes, classes)), np.zeros((attributes, attributes)), np.zeros((classes, attributes)),
        np.zeros((attributes, classes)),
    )  # fmt: skip
    for start, rows in normalized_blocks(partners):
        block = slice(start, start + rows.shape[0])
        partner_label, partner_attribute = (rows @ means.label).toarray(), (rows @ means.attribute).toarray()
        cross.label_label[:] += label[block].T @ partner_label
        cross.attribute_attribute[:] += attribute[block].T @ partner_attribute
        cross.label_attribute[:] += label[block].T @ partner_attribute
        cross.attribute_label[:] += attribute[block].T @ partner_label
    return cross


def mixed_correlation(
    means: GroupMeans, index_share: FloatArray, partners: PartnerRows | None, m1: float, m2: float, mix_labels: bool
) -> tuple[float, FloatArray]:
    """Residual correlation and joint table E[y a^T] of mixed samples.

    Args:
        means: Means within each group.
        index_share: Share of samples whose index is in each group, `[G]`.
        partners: Weights of the partner's group for each group of the index. None: no group has a partner.
        m1: E[lam].
        m2: E[lam^2].
        mix_labels: Whether labels are mixed.

    Returns:
        The residual correlation, and the joint table `[C, A]`.
    """
    has_partner = partners.row_of >= 0 if partners is not None else np.zeros(index_share.size, dtype=bool)
    unmixed = np.where(has_partner, 0.0, index_share)
    e_y, e_a = unmixed @ means.label, unmixed @ means.attribute
    e_ya, e_yy, e_aa = means.joint_table(unmixed), np.diag(e_y), np.diag(e_a)
    if partners is not None:
        index, partner = np.where(has_partner, index_share, 0.0), partner_shares(partners, index_share)
        cross = _cross_moments(means, index_share, partners)
        label, attribute = _MixedMoments(mix_labels, m1, m2), _MixedMoments(True, m1, m2)
        index_y, partner_y = index @ means.label, partner @ means.label
        index_a, partner_a = index @ means.attribute, partner @ means.attribute
        e_y, e_a = e_y + label.mean(index_y, partner_y), e_a + attribute.mean(index_a, partner_a)
        e_yy = e_yy + label.square(index_y, partner_y, cross.label_label)
        e_aa = e_aa + attribute.square(index_a, partner_a, cross.attribute_attribute)
        if mix_labels:
            e_ya = e_ya + m2 * means.joint_table(index) + (1 - 2 * m1 + m2) * means.joint_table(partner)
            e_ya = e_ya + (m1 - m2) * (cross.label_attribute + cross.attribute_label.T)
        else:
            e_ya = e_ya + m1 * means.joint_table(index) + (1 - m1) * cross.label_attribute
    return _residual(e_ya, e_yy, e_aa, e_y, e_a), e_ya


@dataclass(frozen=True)
class _MixedMoments:
    """First and second moments of lam u + (1 - lam) v, or of u if it is not mixed. u and v are one-hot."""

    mixed: bool
    m1: float
    m2: float

    def mean(self, of_index: FloatArray, of_partner: FloatArray) -> FloatArray:
        return self.m1 * of_index + (1 - self.m1) * of_partner if self.mixed else of_index

    def square(self, of_index: FloatArray, of_partner: FloatArray, cross: FloatArray) -> FloatArray:
        if not self.mixed:
            return np.diag(of_index)
        own = self.m2 * of_index + (1 - 2 * self.m1 + self.m2) * of_partner
        return np.diag(own) + (self.m1 - self.m2) * (cross + cross.T)


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
