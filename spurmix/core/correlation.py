"""The correlation of class and attribute in mixed samples. `docs/draw-specification.md`, "Audit", has the formulas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spurmix.core import memory
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.lam import ONE, moments
from spurmix.core.partners import BLOCK_ENTRIES, PartnerRows
from spurmix.core.residual import Pairs, SecondMoment, residual_correlation
from spurmix.core.shares import unknown_counts, unknown_shares

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LAM_BINS, LAM_BINS_LARGE = 64, 8
"""Number of intervals of lam, and their number if there are more than `LARGE` classes or attributes."""
LARGE = 64
"""The time of a correlation grows with the third power of the number of classes and attributes."""


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
        if partners.even:
            return _even_shares(partners, of_row @ _probability_steps(partners), index_share.size)
        for start, rows in normalized_blocks(partners):
            shares += of_row[start : start + rows.shape[0]] @ rows
    return shares


@dataclass(frozen=True)
class _Cross:
    """Products of index and partner, summed over samples with a partner. The last two are E[u v^T], u of the index."""

    labels: Pairs
    attributes: Pairs
    label_attribute: FloatArray
    attribute_label: FloatArray


def _partner_sums(means: GroupMeans, index_share: FloatArray, partners: PartnerRows) -> tuple[FloatArray, _Cross]:
    """Share of samples whose partner is in each group, `[G]`, and the moments of index and partner.

    Raises NotEnoughMemory if the moments do not fit in memory.
    """
    classes, attributes = means.classes.size, means.attributes.size
    what = f"products of {classes:,} classes and {attributes:,} attributes"
    entries = (classes + attributes) ** 2 + classes**2 + attributes**2
    memory.require(8 * entries, what, "merge classes or attributes")
    from scipy.sparse import csr_array, hstack

    used = np.flatnonzero(partners.row_of >= 0)
    place = (index_share[used], (partners.row_of[used], used))
    by_row = csr_array(place, shape=(partners.count, index_share.size))  # sums groups that share a row
    values = hstack([means.label, means.attribute], format="csr")
    of_index = by_row @ values
    if partners.even:
        shares, products = _even_products(partners, row_shares(partners, index_share), of_index, values)
    else:
        of_row, shares = row_shares(partners, index_share), np.zeros_like(index_share)
        products = np.zeros((values.shape[1],) * 2)
        for start, rows in normalized_blocks(partners):
            block = slice(start, start + rows.shape[0])
            shares += of_row[block] @ rows
            product = (of_index[block].T @ (rows @ values)).tocoo()
            products[product.coords] += product.data
    label, attribute = slice(means.classes.size), slice(means.classes.size, None)
    of_labels, of_attributes = products[label, label], products[attribute, attribute]
    pairs = Pairs(of_labels + of_labels.T), Pairs(of_attributes + of_attributes.T)
    return shares, _Cross(*pairs, products[label, attribute], products[attribute, label])


def _probability_steps(partners: PartnerRows) -> csr_array:
    """Steps of the probability along the list of groups, `[R, L + 1]`, of rows with one weight for each slice."""
    from scipy.sparse import csr_array

    # The probability of a slice is added at its first position in the list of groups, and subtracted after its last one.
    # Running sums of these steps are the probabilities at all positions.
    weight, first, length = partners.slice_weights(slice(None)), partners.slice_first, partners.slice_length
    total = (weight * length).sum(axis=1, keepdims=True)
    probability = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    at, step = np.concatenate([first, first + length], axis=1), np.concatenate([probability, -probability], axis=1)
    begin = np.arange(partners.count + 1) * at.shape[1]
    return csr_array((step.reshape(-1), at.reshape(-1), begin), shape=(partners.count, partners.groups.size + 1))


def _even_shares(partners: PartnerRows, steps: FloatArray, count: int) -> FloatArray:
    """Share of samples whose partner is in each of `count` groups. `steps` are summed over the rows, `[L + 1]`."""
    shares = np.zeros(count)
    np.add.at(shares, partners.groups, np.cumsum(steps)[:-1])
    return shares


def _even_products(
    partners: PartnerRows, of_row: FloatArray, of_index: csr_array, values: csr_array
) -> tuple[FloatArray, FloatArray]:
    """Sums over rows with the same weight for all entries of a slice, without their entries.

    Args:
        partners: The rows. W are their probabilities, `[R, G]`.
        of_row: Share of samples that use each row, `[R]`.
        of_index: Values of the index, summed over the samples that use each row, `[R, K]`.
        values: Values of each group, `[G, K]`.

    Returns:
        of_row W, `[G]`, and of_index^T W values, `[K, K]`.
    """
    probability_steps = _probability_steps(partners)
    shares = _even_shares(partners, of_row @ probability_steps, values.shape[0])
    steps = (of_index.T @ probability_steps).tocsr()
    listed = values[partners.groups]
    products = np.empty((values.shape[1],) * 2)
    size = max(1, BLOCK_ENTRIES // partners.groups.size)
    for start in range(0, len(products), size):
        block = steps[start : start + size].toarray()
        products[start : start + size] = np.cumsum(block, axis=1, out=block)[:, :-1] @ listed
    return shares, products


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
        if partners is None:
            return cls(means, mix_labels, index_share, np.zeros_like(index_share), np.zeros_like(index_share), None)
        paired = partners.row_of >= 0
        index = np.where(paired, index_share, 0.0)
        return cls(means, mix_labels, index_share - index, index, *_partner_sums(means, index_share, partners))

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
        shares = [share / total for share in (unmixed * self.unmixed, mixed * self.index, mixed * self.partner)]
        alone, index, partner = shares
        cross, part, lam = self.cross, mixed / total, _Lam(m1, m2)
        e_ya = means.joint_table(alone)
        if cross is not None and self.mix_labels:
            e_ya = e_ya + m2 * means.joint_table(index) + (1 - 2 * m1 + m2) * means.joint_table(partner)
            e_ya = e_ya + (m1 - m2) * part * (cross.label_attribute + cross.attribute_label.T)
        elif cross is not None:
            e_ya = e_ya + m1 * means.joint_table(index) + (1 - m1) * part * cross.label_attribute
        label = (lam if self.mix_labels else _Lam(1.0, 1.0)).moment(
            [share @ means.label for share in shares], cross.labels if cross is not None else None, part
        )
        attribute = lam.moment(
            [share @ means.attribute for share in shares], cross.attributes if cross is not None else None, part
        )
        if min(np.count_nonzero(label.mean), np.count_nonzero(attribute.mean)) < 2:
            return float("nan"), e_ya
        return residual_correlation(e_ya, label, attribute), e_ya

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
class _Lam:
    """E[lam] and E[lam^2]. lam is 1 if nothing is mixed."""

    m1: float
    m2: float

    def moment(self, means: list[FloatArray], pairs: Pairs | None, part: float) -> SecondMoment:
        """Moments of u in samples without a partner, and of lam u + (1 - lam) v in others. u and v are one-hot.

        `means` are those of u without a partner, of u and of v. `pairs` is multiplied by `part`.
        """
        alone, of_index, of_partner = means
        return SecondMoment(
            alone + self.m1 * of_index + (1 - self.m1) * of_partner,
            alone + self.m2 * of_index + (1 - 2 * self.m1 + self.m2) * of_partner,
            pairs,
            (self.m1 - self.m2) * part,
        )


def _or_zero(correlation: float) -> float:
    """Return 0 for NaN: if lam determines the class or the attribute, they are not correlated given lam."""
    return 0.0 if np.isnan(correlation) else correlation
