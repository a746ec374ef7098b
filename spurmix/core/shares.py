"""Attribute shares of classes: what is known, and what is assumed of examples with an unknown attribute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.groups import UNKNOWN, GroupIndex

FloatArray = NDArray[np.float64]


def known_counts(groups: GroupIndex) -> NDArray[np.int64]:
    """Examples of each class with each known attribute, `[C, A]`."""
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


def prior_shares(groups: GroupIndex, prior: Any) -> FloatArray | None:
    """`prior` as shares `[C, A]` with rows that sum to 1 (NaN rows for classes it leaves out), or None.

    Args:
        prior: `[C, A]` shares, or {label: shares `[A]` or {attribute: share}}.

    Raises:
        ValueError: for shares that are negative, not finite or do not sum to 1, and for unknown classes or attributes.
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
        given = _numbers(prior.detach().cpu() if hasattr(prior, "detach") else prior, "prior")
        if given.shape != shape:
            raise ValueError(f"prior must have shape [classes, attributes] = {list(shape)}, got {list(given.shape)}")
        for label in range(shape[0]):
            shares[label] = _prior_row(given[label], label, shape[1])
    return shares


def _numbers(values: Any, name: str) -> FloatArray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold numbers ({error})") from None


def _prior_row(row: Any, label: Any, attributes: int) -> FloatArray:
    values = np.zeros(attributes)
    if isinstance(row, Mapping):
        for attribute, share in row.items():
            if not (isinstance(attribute, (int, np.integer)) and 0 <= attribute < attributes):
                raise ValueError(f"prior[{label}]: there is no attribute {attribute!r}; they are 0 to {attributes - 1}")
            values[attribute] = checks.number(share, f"prior[{label}][{attribute}]")
    else:
        given = _numbers(row, f"prior[{label}]")
        if given.shape != (attributes,):
            raise ValueError(f"prior[{label}] must hold {attributes} shares, got shape {list(given.shape)}")
        values[:] = given
    if not np.all(np.isfinite(values)) or values.min() < 0 or abs(values.sum() - 1) > 1e-6:
        raise ValueError(f"prior[{label}] must be non-negative shares that sum to 1, got {values.tolist()}")
    return values / values.sum()


def unknown_shares(groups: GroupIndex, prior: FloatArray | None) -> FloatArray:
    """What attributes unknown examples of each class are taken to have, `[C, A]`: the prior, else the known shares.

    Rows of classes with neither are NaN.
    """
    counts = known_counts(groups)
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    if prior is not None:
        given = ~np.isnan(prior[:, 0])
        shares[given] = prior[given]
    return shares


def unknown_counts(groups: GroupIndex) -> NDArray[np.int64]:
    """Examples of each class whose attribute is unknown, `[C]`."""
    attributes = groups.spurious_attributes
    counts = np.zeros(groups.num_classes, dtype=np.int64)
    if not groups.custom:
        unknown = groups.group_attributes == UNKNOWN
        np.add.at(counts, groups.group_labels[unknown], groups.sizes[unknown])
    elif attributes is not None:
        np.add.at(counts, groups.labels[attributes == UNKNOWN], 1)
    return counts


def require_shares(shares: FloatArray, classes: NDArray[np.int64]) -> None:
    """Raise where a class in `classes` has unknown attributes but neither a prior nor a known example."""
    missing = classes[np.isnan(shares[classes, 0])]
    if missing.size:
        raise ValueError(
            f"prior: class {missing[0]} has no example of known attribute; give its attribute shares as prior"
        )
