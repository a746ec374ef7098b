"""Donors of attributes, for `balance_attributes`."""

from __future__ import annotations

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import GroupIndex
from spurmix.core.partners import PartnerRows, expand, require_memory


def donor_rows(
    groups: GroupIndex, classes: Int64Array, attributes: Int64Array, mass: FloatArray, *, even: bool = False
) -> PartnerRows:
    """Partner weights for which the donor of an example of class y has attribute a with a given probability.

    Donors have the attribute and the class. If the class has none, the other classes with donors are equally likely.

    Args:
        groups: Groups, each of a single class and attribute.
        classes: The classes, `[C]`.
        attributes: Attributes of donors, `[A]`. Each occurs.
        mass: Probability of each attribute for each class, `[C, A]`.
        even: Whether groups of the same class and attribute are equally likely. Otherwise, their examples are.

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
        np.ones(donor.size, dtype=np.int64) if even else groups.sizes[donor],
    )
    count = np.zeros(mass.shape)
    np.add.at(count, (row, column), size)
    own = mass[row, column] * (size / count[row, column])

    # The classes that borrow each attribute. An entry for each donor and its own class, and for each class that borrows.
    borrowed, borrower = np.nonzero(((count == 0) & (mass > 0)).T)
    borrowers = np.bincount(borrowed, minlength=attributes.size)
    entries = 1 + borrowers[column]
    require_memory(int(entries.sum()))
    own_at = np.cumsum(entries) - entries
    at = expand((np.cumsum(borrowers) - borrowers)[column] - 1, entries)
    at[own_at] = 0
    rows = borrower[at] if borrower.size else np.empty_like(at)
    rows[own_at] = row
    entry = np.repeat(np.arange(donor.size), entries)
    lending = np.count_nonzero(count, axis=0)
    weights = mass[rows, column[entry]] * (size / count[row, column] / lending[column])[entry]
    weights[own_at] = own
    # The entries are in the order of the donors. NumPy sorts integers of 16 bits in linear time.
    order = np.argsort(rows.astype(np.uint16) if classes.size <= 1 << 16 else rows, kind="stable")
    order = order[weights[order] > 0]
    of_class = np.where(groups.group_labels >= 0, class_at[np.maximum(groups.group_labels, 0)], -1)
    counts = np.bincount(rows[order], minlength=classes.size)
    return PartnerRows.of_entries(of_class, counts, donor[entry[order]], weights[order])
