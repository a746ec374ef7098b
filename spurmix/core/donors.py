"""Donors of attributes, for `balance_attributes`."""

from __future__ import annotations

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import GroupIndex
from spurmix.core.partners import PartnerRows, expand, require_memory


def donor_rows(groups: GroupIndex, classes: Int64Array, attributes: Int64Array, mass: FloatArray) -> PartnerRows:
    """Partner weights for which the donor of an example of class y has attribute a with a given probability.

    Donors have the attribute and the class. If the class has none, the other classes with donors are equally likely.

    Args:
        groups: Groups, each of a single class and attribute.
        classes: The classes, `[C]`.
        attributes: Attributes of donors, `[A]`. Each occurs.
        mass: Probability of each attribute for each class, `[C, A]`.

    Returns:
        One row for each class.
    """
    class_at = np.full(groups.num_classes, -1)
    class_at[classes] = np.arange(classes.size)
    attribute_at = np.full(groups.num_attributes, -1)
    attribute_at[attributes] = np.arange(attributes.size)
    donor = np.flatnonzero((groups.sizes > 0) & (groups.group_attributes >= 0))
    row, column, size = (
        class_at[groups.group_labels[donor]],
        attribute_at[groups.group_attributes[donor]],
        groups.sizes[donor],
    )
    count = np.zeros(mass.shape)
    np.add.at(count, (row, column), size)
    own = mass[row, column] * (size / count[row, column])

    missing_row, missing_column = np.nonzero((count == 0) & (mass > 0))
    by_attribute = np.argsort(column, kind="stable")
    donors = np.bincount(column, minlength=attributes.size)
    lent = donors[missing_column]
    require_memory(int(lent.sum()))
    at = by_attribute[expand((np.cumsum(donors) - donors)[missing_column], lent)]
    lending = np.count_nonzero(count, axis=0)
    borrowed = np.repeat(mass[missing_row, missing_column], lent) * (size / count[row, column] / lending[column])[at]

    rows = np.concatenate([row, np.repeat(missing_row, lent)])
    partner = np.concatenate([donor, donor[at]])
    weights = np.concatenate([own, borrowed])
    order = np.lexsort((partner, rows))
    order = order[weights[order] > 0]
    of_class = np.where(groups.group_labels >= 0, class_at[np.maximum(groups.group_labels, 0)], -1)
    counts = np.bincount(rows[order], minlength=classes.size)
    return PartnerRows.of_entries(of_class, counts, partner[order], weights[order])
