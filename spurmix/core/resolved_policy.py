"""A policy resolved for one `GroupIndex`: the checked arrays from which the tables and the audit are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from spurmix.core import checks
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import MIXED, UNKNOWN, GroupIndex
from spurmix.core.partners import PartnerRows
from spurmix.core.selection import SelectedExamples

Strata: TypeAlias = Literal["groups", "classes", "all"]
Labels: TypeAlias = Literal["mix", "keep"]
Weights: TypeAlias = ArrayLike | Mapping[Any, float]
"""Weights in order, or by group (its number or its cell) or class."""
PartnerWeights: TypeAlias = ArrayLike | Mapping[Any, Mapping[Any, float]]

MAX_SUM = 1e290
"""Maximum sum of a row of partner weights. It is multiplied by 2^32."""


@dataclass(frozen=True)
class ResolvedPolicy:
    """The arguments of a policy as checked arrays.

    Attributes:
        first_group: int64 `[S + 1]`. Stratum s consists of the groups first_group[s] to first_group[s + 1] - 1.
        weights: float64 `[S]`. Share of samples of each stratum, not normalized.
        partner_rows: Weights of the partner's group for each group of the index. None if no group has a partner.
        quantile: int64 `[1025]`. The quantile table of lam.
        labels: "mix" or "keep".
        replacement: Whether examples are drawn with replacement.
        selection: The examples that are drawn.
        notes: What was adapted to the groups.
        attribute_shares: float64 `[C, A]`. The given attribute shares of examples whose attribute is unknown, or None.
    """

    first_group: Int64Array
    weights: FloatArray
    partner_rows: PartnerRows | None
    quantile: Int64Array
    labels: Labels
    replacement: bool
    selection: SelectedExamples
    notes: tuple[str, ...] = ()
    attribute_shares: FloatArray | None = None

    @property
    def partner(self) -> FloatArray | None:
        """The partner weights as a matrix, float64 `[G, G]`. An all-zero row means no partner. None if all are 0."""
        return self.partner_rows.matrix() if self.partner_rows is not None else None


def stratum_bounds(groups: GroupIndex, strata: Strata) -> Int64Array:
    """First group of each stratum, and the number of groups, `[S + 1]`. A stratum is a contiguous run of groups.

    Raises ValueError if `strata` is "classes" and a group has examples of several classes, or classes are not
    contiguous.
    """
    if strata == "groups":
        return np.arange(groups.num_groups + 1, dtype=np.int64)
    if strata == "all":
        return np.array([0, groups.num_groups], dtype=np.int64)
    labels = groups.group_labels
    mixed = np.flatnonzero((labels == MIXED) & (groups.sizes > 0))
    if mixed.size:
        raise ValueError(f'strata="classes" requires groups of a single class, but group {mixed[0]} has several')
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [groups.num_groups]]).astype(np.int64)
    if np.unique(labels[starts[:-1]]).size != starts.size - 1:
        raise ValueError('strata="classes" requires groups in the order of their classes; renumber the groups')
    return starts


def require_cells(groups: GroupIndex, name: str) -> None:
    """Check that each group has a single class and attribute. Errors name the policy.

    Raises ValueError if a group has several.
    """
    filled = groups.sizes > 0
    mixed = filled & ((groups.group_labels == MIXED) | (groups.group_attributes == MIXED))
    if mixed.any():
        g = int(np.flatnonzero(mixed)[0])
        raise ValueError(f"{name} requires groups of a single class and attribute, but group {g} has several")


def group_number(groups: GroupIndex, name: object, argument: str) -> int:
    """The group that `name` refers to: its number, or its cell (label, attribute, ...).

    Raises ValueError if there is no such group.
    """
    if isinstance(name, (int, np.integer)) and not isinstance(name, bool):
        if 0 <= name < groups.num_groups:
            return int(name)
        raise ValueError(f"{argument}: there is no group {name}; the groups are 0 to {groups.num_groups - 1}")
    if isinstance(name, tuple) and groups.cells is not None:
        cells = groups.cells if groups.attributes is not None else np.c_[groups.cells, np.zeros_like(groups.cells)]
        if len(name) == cells.shape[1]:
            found = np.flatnonzero((cells == np.asarray(name)).all(axis=1))
            if found.size:
                return int(found[0])
        listed = ", ".join(str(tuple(c)) for c in cells[:8].tolist()) + (", ..." if len(cells) > 8 else "")
        raise ValueError(f"{argument}: no example has the cell {name}; the groups are {listed}")
    raise ValueError(f"{argument}: a group must be given by its number or its cell (label, attribute), got {name!r}")


def checked_weights(values: object, shape: tuple[int, ...], name: str) -> FloatArray:
    """Return `values` as a float64 array of `shape`, all finite and not negative.

    Raises TypeError if they are not numbers, and ValueError if the shape or a value is invalid.
    """
    array = checks.float_array(values, name)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)} for these groups, got {list(array.shape)}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: weights must be finite, got {array[~np.isfinite(array)][0]}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name}: weights must not be negative, got {array.min():g}")
    return array


def stratum_weights(
    groups: GroupIndex, strata: Strata, given: Weights | None, first_group: Int64Array, selection: SelectedExamples
) -> FloatArray:
    """The weight of each stratum, `[S]`. Default: equal weights. Strata without selected examples have weight 0.

    Raises TypeError if the weights are not numbers, and ValueError if they do not fit the groups, are all 0, or an
    empty stratum has a positive weight.
    """
    count = first_group.size - 1
    if given is None:
        weights = np.ones(count)
    elif isinstance(given, Mapping):
        weights = checked_weights(_weights_by_name(groups, strata, given, first_group), (count,), "weights")
    else:
        weights = checked_weights(given, (count,), "weights")
    if not weights.any():
        raise ValueError("weights must not all be 0: no example could be drawn")
    empty = np.flatnonzero((np.add.reduceat(groups.sizes, first_group[:-1]) == 0) & (weights > 0))
    if empty.size:
        raise ValueError(f"weights: stratum {empty[0]} has a positive weight but no examples")
    selected = np.where(np.add.reduceat(selection.groups.sizes, first_group[:-1]) > 0, weights, 0.0)
    if not selected.any():
        raise ValueError("weights must not all be 0 for strata with examples that are not left out")
    unknown = groups.group_attributes == UNKNOWN
    if strata != "groups" or not selection.bulk or given is not None or not unknown.any() or unknown.all():
        return selected
    bulk = np.where(unknown, groups.sizes / groups.num_examples, 0.0)
    return np.where(unknown, bulk, selected * (1.0 - bulk.sum()) / selected[~unknown].sum())


def _weights_by_name(
    groups: GroupIndex, strata: Strata, given: Mapping[Any, float], first_group: Int64Array
) -> FloatArray:
    if strata == "all":
        raise ValueError('weights cannot be a mapping with strata="all", which has one stratum')
    weights = np.zeros(first_group.size - 1)
    labels = groups.group_labels[first_group[:-1]].tolist()
    for name, value in given.items():
        if strata == "groups":
            weights[group_number(groups, name, "weights")] = checks.number(value, f"weights[{name!r}]")
        elif name in labels:
            weights[labels.index(name)] = checks.number(value, f"weights[{name!r}]")
        else:
            raise ValueError(f"weights: there is no class {name!r}; the classes are {labels}")
    return weights


def partner_weights(
    groups: GroupIndex, given: PartnerWeights | PartnerRows | None, selection: SelectedExamples
) -> PartnerRows | None:
    """The weights of partner groups, or None if all are 0. Groups without selected examples have weight 0.

    Raises TypeError if the weights are not numbers, or a row of a mapping is not a mapping, and ValueError if they do
    not fit the groups, or an empty group has a positive weight.
    """
    count = groups.num_groups
    if given is None:
        return None
    if isinstance(given, Mapping):
        matrix = np.zeros((count, count))
        for row, targets in given.items():
            if not isinstance(targets, Mapping):
                raise TypeError(
                    f"partner[{row!r}] must be a mapping from group to weight, got {type(targets).__name__}"
                )
            for column, value in targets.items():
                pair = group_number(groups, row, "partner"), group_number(groups, column, f"partner[{row!r}]")
                matrix[pair] = checks.number(value, f"partner[{row!r}][{column!r}]")
        given = matrix
    if not isinstance(given, PartnerRows):
        matrix = checked_weights(given, (count, count), "partner")
        with np.errstate(over="ignore"):
            large = np.flatnonzero(matrix.sum(axis=1) >= MAX_SUM)
        if large.size:
            raise ValueError(
                f"partner: the weights of row {large[0]} are too large, their sum must be less than {MAX_SUM:g}; divide "
                "the row by its largest weight"
            )
        given = PartnerRows.of_matrix(np.where((selection.groups.sizes == 0) & (groups.sizes > 0), 0.0, matrix))
    empty = np.flatnonzero(selection.groups.sizes == 0)
    for start, rows in given.blocks() if empty.size else ():
        bad = np.argwhere(rows[:, empty].toarray() > 0)
        for at, column in bad[np.isin(start + bad[:, 0], given.row_of)][:1]:
            row = int(np.flatnonzero(given.row_of == start + at)[0])
            raise ValueError(f"partner: row {row} has a weight for group {empty[column]}, which has no examples")
    return given if (given.row_of >= 0).any() else None


def normalized_rows(weights: FloatArray) -> FloatArray:
    """Rows of `weights` as probabilities. All-zero rows stay 0."""
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
