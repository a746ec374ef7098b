"""The correlation of class and attribute in mixed samples. `docs/draw-specification.md`, "Audit", has the formulas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.lam import ONE, moments
from spurmix.core.partners import PartnerRows
from spurmix.core.shares import unknown_counts, unknown_shares

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LAM_BINS, LAM_BINS_LARGE = 64, 8
"""Number of intervals of lam, and their number if there are more than `LARGE` classes or attributes."""
LARGE = 64
"""The time of a correlation grows with the third power of the number of classes and attributes."""
SMALL = 1e-10
"""Variances up to this size count as 0."""


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
    weight = count / np.maximum(groups.sizes[g], 1)
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


@dataclass(frozen=True)
class MixedSamples:
    """Sums over the samples of a policy, from which moments of mixed labels and attributes follow for any lam.

    Attributes:
        means: Means within each group.
        mix_labels: Whether labels are mixed.
        unmixed: Share of samples without a partner whose index is in each group, `[G]`.
        index: Share of samples with a partner whose index is in each group, `[G]`.
        partner: Share of samples whose partner is in each group, `[G]`.
        cross: Moments of index and partner. None: no group has a partner.
    """

    means: GroupMeans
    mix_labels: bool
    unmixed: FloatArray
    index: FloatArray
    partner: FloatArray
    cross: _Cross | None

    @classmethod
    def of(
        cls, means: GroupMeans, index_share: FloatArray, partners: PartnerRows | None, mix_labels: bool
    ) -> MixedSamples:
        """Sum over the samples of a policy.

        Args:
            means: Means within each group.
            index_share: Share of samples whose index is in each group, `[G]`.
            partners: Weights of the partner's group for each group of the index. None: no group has a partner.
            mix_labels: Whether labels are mixed.

        Returns:
            The sums.
        """
        paired = partners.row_of >= 0 if partners is not None else np.zeros(index_share.size, dtype=bool)
        return cls(
            means, mix_labels, np.where(paired, 0.0, index_share), np.where(paired, index_share, 0.0),
            partner_shares(partners, index_share),
            _cross_moments(means, index_share, partners) if partners is not None else None,
        )  # fmt: skip

    def correlation(
        self, m1: float, m2: float, *, unmixed: float = 1.0, mixed: float = 1.0
    ) -> tuple[float, FloatArray]:
        """Correlation and joint table E[y a^T] of the samples, or of a part of them.

        Args:
            m1: E[lam] of the samples with a partner.
            m2: E[lam^2] of the samples with a partner.
            unmixed: Part of the samples without a partner, in [0, 1].
            mixed: Part of the samples with a partner, in [0, 1].

        Returns:
            The correlation, and the joint table `[C, A]`, which sums to 1. The correlation is NaN if less than two classes
            or attributes occur in the samples.
        """
        means, total = self.means, unmixed * self.unmixed.sum() + mixed * self.index.sum()
        alone, index, partner = (
            share / total for share in (unmixed * self.unmixed, mixed * self.index, mixed * self.partner)
        )
        e_y, e_a = alone @ means.label, alone @ means.attribute
        e_ya, e_yy, e_aa = means.joint_table(alone), np.diag(e_y), np.diag(e_a)
        if self.cross is not None:
            cross, part = self.cross, mixed / total
            label, attribute = _MixedMoments(self.mix_labels, m1, m2), _MixedMoments(True, m1, m2)
            index_y, partner_y = index @ means.label, partner @ means.label
            index_a, partner_a = index @ means.attribute, partner @ means.attribute
            e_y, e_a = e_y + label.mean(index_y, partner_y), e_a + attribute.mean(index_a, partner_a)
            e_yy = e_yy + label.square(index_y, partner_y, part * cross.label_label)
            e_aa = e_aa + attribute.square(index_a, partner_a, part * cross.attribute_attribute)
            if self.mix_labels:
                e_ya = e_ya + m2 * means.joint_table(index) + (1 - 2 * m1 + m2) * means.joint_table(partner)
                e_ya = e_ya + (m1 - m2) * part * (cross.label_attribute + cross.attribute_label.T)
            else:
                e_ya = e_ya + m1 * means.joint_table(index) + (1 - m1) * part * cross.label_attribute
        if min(np.count_nonzero(e_y), np.count_nonzero(e_a)) < 2:
            return float("nan"), e_ya
        return _residual(e_ya, e_yy, e_aa, e_y, e_a), e_ya

    def correlation_given_lam(self, quantile: Int64Array) -> float:
        """Mean over the samples of the correlation at their lam.

        Samples without a partner have lam = 1. The distribution of lam is divided into at most `LAM_BINS` intervals. Each
        is replaced by its mean, so that the error decreases with the square of their number.

        Args:
            quantile: The quantile table of lam, int64 `[1025]`.

        Returns:
            The mean correlation, from 0 to 1. NaN if less than two classes or attributes occur in the samples.
        """
        if np.isnan(self.correlation(*moments(quantile))[0]):
            return float("nan")
        lam = (quantile[:-1] + quantile[1:]) / (2 * ONE)
        bins = LAM_BINS if max(self.means.classes.size, self.means.attributes.size) <= LARGE else LAM_BINS_LARGE
        interval = np.where(lam == 0.0, 0, np.where(lam == 1.0, bins + 1, 1 + (lam * bins).astype(np.int64)))
        count = np.bincount(interval, minlength=bins + 2)
        mean = np.bincount(interval, weights=lam, minlength=bins + 2) / np.maximum(count, 1)
        share, alone, paired = count / lam.size, float(self.unmixed.sum()), float(self.index.sum())
        value = 0.0
        for k in np.flatnonzero(share[:-1] * paired):
            m = float(mean[k])
            value += share[k] * paired * _or_zero(self.correlation(m, m * m, unmixed=0.0)[0])
        unmixed = alone + share[-1] * paired
        if unmixed > 0:
            value += unmixed * _or_zero(self.correlation(1.0, 1.0, mixed=float(share[-1]))[0])
        return value / (alone + paired)


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


def _or_zero(correlation: float) -> float:
    """Return 0 for NaN: if lam determines the class or the attribute, they are not correlated given lam."""
    return 0.0 if np.isnan(correlation) else correlation


def _residual(e_ya: FloatArray, e_yy: FloatArray, e_aa: FloatArray, e_y: FloatArray, e_a: FloatArray) -> float:
    """||Cov(y)^-1/2 Cov(y, a) Cov(a)^-1/2||_F / sqrt(min rank). This is Cramer's V if y and a are one-hot."""
    between = e_ya - np.outer(e_y, e_a)
    of_y, rank_y = _solved(e_yy - np.outer(e_y, e_y), between)
    of_a, rank_a = _solved(e_aa - np.outer(e_a, e_a), between.T)
    rank = min(rank_y, rank_a)
    if rank == 0:
        return 0.0
    return float(np.sqrt(max(0.0, np.sum(of_y * of_a.T)) / rank))


def _solved(covariance: FloatArray, right: FloatArray) -> tuple[FloatArray, int]:
    """Pseudo-inverse of a covariance matrix times `right`, and its rank."""
    used = np.flatnonzero(np.diag(covariance) > SMALL)
    if used.size == 0:
        return np.zeros_like(right), 0
    block = covariance[np.ix_(used, used)]
    block = (block + block.T) / 2
    # The rows of a covariance of shares sum to 0. Adding a constant makes it invertible if nothing else is degenerate.
    scale = float(np.diag(block).mean())
    try:
        root = np.linalg.cholesky(block + scale / used.size)
        degenerate = bool(np.square(np.diag(root)).min() < 1e-6 * scale)
    except np.linalg.LinAlgError:
        degenerate = True
    solution = np.zeros_like(right)
    if not degenerate:
        from scipy.linalg import cho_solve

        solution[used] = cho_solve((root, True), right[used])
        return solution, used.size - 1
    values, vectors = np.linalg.eigh(block)
    kept = values > SMALL * max(1.0, float(values[-1]))
    solution[used] = (vectors[:, kept] / values[kept]) @ (vectors[:, kept].T @ right[used])
    return solution, int(kept.sum())
