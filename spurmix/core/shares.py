"""Attribute shares of classes: those that are known, and those assumed for examples whose attribute is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from spurmix.core import checks
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex

Prior: TypeAlias = ArrayLike | Mapping[int, Any]
"""Attribute shares `[C, A]`, or {label: shares `[A]` or {attribute: share}}."""


def known_counts(groups: GroupIndex) -> Int64Array:
    """Number of examples of each class with each known attribute, `[C, A]`."""
    counts = np.zeros((groups.num_classes, groups.num_attributes), dtype=np.int64)
    if not groups.custom:
        known = groups.group_attributes >= 0
        np.add.at(counts, (groups.group_labels[known], groups.group_attributes[known]), groups.sizes[known])
        return counts
    attributes = groups.spurious_attributes
    if attributes is None:
        np.add.at(counts, (groups.labels, np.zeros_like(groups.labels)), 1)
    else:
        known = attributes >= 0
        np.add.at(counts, (groups.labels[known], attributes[known]), 1)
    return counts


def unknown_counts(groups: GroupIndex) -> Int64Array:
    """Number of examples of each class whose attribute is unknown, `[C]`."""
    attributes = groups.spurious_attributes
    counts = np.zeros(groups.num_classes, dtype=np.int64)
    if not groups.custom:
        unknown = groups.group_attributes == UNKNOWN
        np.add.at(counts, groups.group_labels[unknown], groups.sizes[unknown])
    elif attributes is not None:
        np.add.at(counts, groups.labels[attributes == UNKNOWN], 1)
    return counts


def prior_shares(groups: GroupIndex, prior: Prior | None) -> FloatArray | None:
    """Return `prior` as an array of shares whose rows sum to 1.

    Args:
        groups: Groups of the dataset.
        prior: `[C, A]` shares, or {label: shares `[A]` or {attribute: share}}.

    Returns:
        Shares `[C, A]`, or None if `prior` is None. The rows of classes that a mapping leaves out are NaN.

    Raises:
        TypeError: If the shares are not numbers.
        ValueError: If shares are negative, not finite or do not sum to 1, or there is no such class or attribute.
    """
    if prior is None:
        return None
    shape = (groups.num_classes, groups.num_attributes)
    shares = np.full(shape, np.nan)
    if isinstance(prior, Mapping):
        for label, row in prior.items():
            if not (isinstance(label, (int, np.integer)) and 0 <= label < shape[0]):
                raise ValueError(f"prior: there is no class {label!r}; the classes are 0 to {shape[0] - 1}")
            shares[label] = _prior_row(row, label, shape[1])
    else:
        given = checks.float_array(prior, "prior")
        if given.shape != shape:
            raise ValueError(f"prior must have shape [classes, attributes] = {list(shape)}, got {list(given.shape)}")
        for label in range(shape[0]):
            shares[label] = _prior_row(given[label], label, shape[1])
    return shares


def _prior_row(row: object, label: int, attributes: int) -> FloatArray:
    values = np.zeros(attributes)
    if isinstance(row, Mapping):
        for attribute, share in row.items():
            if not (isinstance(attribute, (int, np.integer)) and 0 <= attribute < attributes):
                raise ValueError(
                    f"prior[{label}]: there is no attribute {attribute!r}; the attributes are 0 to {attributes - 1}"
                )
            values[attribute] = checks.number(share, f"prior[{label}][{attribute}]")
    else:
        given = checks.float_array(row, f"prior[{label}]")
        if given.shape != (attributes,):
            raise ValueError(f"prior[{label}] must have shape {[attributes]}, got {list(given.shape)}")
        values[:] = given
    if not np.all(np.isfinite(values)) or values.min() < 0 or abs(values.sum() - 1) > 1e-6:
        raise ValueError(f"prior[{label}] must be non-negative shares that sum to 1, got {values.tolist()}")
    return values / values.sum()


def unknown_shares(groups: GroupIndex, prior: FloatArray | None) -> FloatArray:
    """Attribute shares assumed for each class's examples of unknown attribute, `[C, A]`.

    These are the prior's shares, or else those of the class's known examples. The row of a class without either is NaN.
    """
    counts = known_counts(groups)
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    if prior is not None:
        given = ~np.isnan(prior[:, 0])
        shares[given] = prior[given]
    return shares


def undetermined_classes(groups: GroupIndex, prior: FloatArray | None) -> Int64Array:
    """Classes in which class and attribute cannot be related, because too few attributes are known.

    Such a class has examples of unknown attribute, no shares in `prior`, and known examples of less than two attributes.
    """
    few = np.count_nonzero(known_counts(groups), axis=1) < 2
    given = ~np.isnan(prior[:, 0]) if prior is not None else np.zeros_like(few)
    return np.flatnonzero((unknown_counts(groups) > 0) & few & ~given)


class UnknownAttributes(ValueError):
    """Too few attributes are known to choose partners. An audit reports it, and training is refused."""


def missing_attribute(groups: GroupIndex, message: str) -> ValueError:
    """Return the error for a missing attribute: `UnknownAttributes` if less than two attributes are known."""
    few = np.count_nonzero(known_counts(groups).any(axis=0)) < 2
    return UnknownAttributes(message) if few else ValueError(message)


def require_shares(shares: FloatArray, classes: Int64Array) -> None:
    """Check that each class in `classes` has shares.

    Raises UnknownAttributes if a class has neither a prior nor an example whose attribute is known.
    """
    missing = classes[np.isnan(shares[classes, 0])]
    if missing.size:
        raise UnknownAttributes(
            f"prior: class {missing[0]} has no example whose attribute is known; give its attribute shares in prior"
        )
