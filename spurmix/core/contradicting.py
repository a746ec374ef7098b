"""Partners that share either the class or the attribute of the index, but not both, for `lisa` and `selecmix`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.lam import LamDistribution
from spurmix.core.partners import PartnerRows, expand, require_memory
from spurmix.core.policy import MixPolicy
from spurmix.core.resolved_policy import Labels, require_cells
from spurmix.core.table_layout import ROW_SLICES


def contradicting_policy(
    groups: GroupIndex, name: str, p: float, lam: LamDistribution, labels: Labels = "mix"
) -> MixPolicy:
    """Make a policy that mixes pairs of the same class and another attribute, or the converse, for its groups."""
    require_cells(groups, name)
    return MixPolicy("groups", partner=contradicting_partners(groups, p), lam=lam, labels=labels)


def contradicting_partners(groups: GroupIndex, p: float) -> PartnerRows:
    """Partner weights: p for the same class and another attribute, 1 - p for the converse, evenly within.

    If one of the two does not exist, the weight of the other is 1. Groups of unknown attribute have no partner.

    Args:
        groups: Groups, each of a single class and attribute.
        p: Weight of the same class, in [0, 1].

    Returns:
        One row for each cell (label, attribute).
    """
    known = np.flatnonzero(groups.group_attributes != UNKNOWN)
    _, label = np.unique(groups.group_labels[known], return_inverse=True)
    values, attribute = np.unique(groups.group_attributes[known], return_inverse=True)
    cell = label * values.size + attribute
    cells, cell_of = np.unique(cell, return_inverse=True)
    same_class = _Neighbors.of(known, label, attribute, *np.divmod(cells, max(1, values.size)))
    same_attribute = _Neighbors.of(known, attribute, label, *np.divmod(cells, max(1, values.size))[::-1])
    within, across = same_class.length.sum(axis=1), same_attribute.length.sum(axis=1)
    mass = np.where(across == 0, 1.0, np.where(within == 0, 0.0, p))
    weight_within, weight_across = mass / np.maximum(within, 1), (1 - mass) / np.maximum(across, 1)
    # Slices in the order of the groups: classes before that of the cell, its class, classes after it.
    first = np.stack([part.first[:, side] for part, side in _in_order(same_class, same_attribute)], axis=1)
    first[:, 1:3] += known.size
    weight = np.stack([weight_across, weight_within, weight_within, weight_across], axis=1)
    length = np.stack([part.length[:, side] for part, side in _in_order(same_class, same_attribute)], axis=1)
    length *= weight > 0
    row_of = np.full(groups.num_groups, -1)
    row_of[known] = np.where(length.sum(axis=1)[cell_of] > 0, cell_of, -1)
    lists = np.concatenate([same_attribute.groups, same_class.groups])
    if (np.diff(cell) < 0).any():
        return _sorted_entries(row_of, lists, first, length, weight)
    return PartnerRows(row_of, weight.reshape(-1), np.arange(len(weight)) * ROW_SLICES, lists, first, length, even=True)


class _Neighbors(NamedTuple):
    """The groups that share one value with each cell, but not the other one, as two slices of a list."""

    groups: Int64Array
    """The list: all groups, by shared value, then by the other one, then by number."""
    first: Int64Array
    """First positions of the slices of each cell, `[R, 2]`."""
    length: Int64Array
    """Their lengths, `[R, 2]`."""

    @classmethod
    def of(
        cls, known: Int64Array, shared: Int64Array, other: Int64Array, cell_shared: Int64Array, cell_other: Int64Array
    ) -> _Neighbors:
        order = np.lexsort((other, shared))
        width = int(other.max(initial=0)) + 1
        pair, cell = (shared * width + other)[order], cell_shared * width + cell_other
        bounds = [(shared[order], cell_shared, "left"), (pair, cell, "left"), (pair, cell, "right")]
        bounds.append((shared[order], cell_shared, "right"))
        first, own, after, stop = (np.searchsorted(a, v, side=side) for a, v, side in bounds)  # type: ignore[call-overload]
        return cls(known[order], np.stack([first, after], axis=1), np.stack([own - first, stop - after], axis=1))


def _in_order(same_class: _Neighbors, same_attribute: _Neighbors) -> list[tuple[_Neighbors, int]]:
    return [(same_attribute, 0), (same_class, 0), (same_class, 1), (same_attribute, 1)]


def _sorted_entries(
    row_of: Int64Array, lists: Int64Array, first: Int64Array, length: Int64Array, weight: FloatArray
) -> PartnerRows:
    """Rows for groups that are not in the order of their cells: their slices are merged by group number."""
    counts = length.sum(axis=1)
    require_memory(int(counts.sum()))
    group = lists[expand(first, length)]
    order = np.lexsort((group, np.repeat(np.arange(counts.size), counts)))
    weights = np.repeat(weight.reshape(-1), length.reshape(-1))
    return PartnerRows.of_entries(row_of, counts, group[order], weights[order])
