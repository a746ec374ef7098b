"""Checks of values: indices, weights and boxes."""

from __future__ import annotations

from torch import Tensor
from torch.func import debug_unwrap


def check_index(index: Tensor, count: int, name: str) -> None:
    """Check that each entry of `index`, of any shape, is in [0, count).

    Raises IndexError if an entry is out of range.
    """
    bad = (index < 0) | (index >= count)
    if bad.numel() and bool(bad.any()):
        position = bad.nonzero()[0].tolist()
        entry = ", ".join(map(str, position))
        raise IndexError(f"{name}[{entry}] = {int(index[tuple(position)])} is out of range [0, {count})")


def _check(valid: Tensor, value: Tensor, name: str, accepted: str) -> None:
    """Check that `valid` is true everywhere. Values inside torch.func.vmap are not known, so they are not checked."""
    if debug_unwrap(valid) is not valid or not valid.numel() or bool(valid.all()):
        return
    position = (~valid).nonzero()[0].tolist()
    entry = ", ".join(map(str, position))
    raise ValueError(f"{name}[{entry}] = {value[tuple(position)].tolist():g} must be {accepted}")


def check_lam(lam: Tensor) -> None:
    """Check that each weight is in [0, 1].

    Raises ValueError if a weight is outside, or NaN.
    """
    lam = lam.detach()
    _check((lam >= 0) & (lam <= 1), lam, "lam", "in [0, 1]")


NORMALIZATION = {"mean": (0.0, 1.0), "std": (0.001, 2.0)}
"""Smallest and largest accepted mean and standard deviation of pixels that are scaled to [0, 1]."""


def normalization_range(name: str) -> str:
    """Describe the accepted values of `mean` or `std`, for the end of an error message."""
    low, high = NORMALIZATION[name]
    return f"in [{low:g}, {high:g}], because pixels are scaled to [0, 1]; divide values for pixels from 0 to 255 by 255"


def check_normalization(mean: Tensor, std: Tensor) -> None:
    """Check that `mean` and `std` are in the ranges of `NORMALIZATION`.

    Raises ValueError if a value is outside, or NaN.
    """
    for name, values in (("mean", mean), ("std", std)):
        low, high = NORMALIZATION[name]
        # The limits have the dtype of the values, as in the compiled operators.
        valid = (values >= values.new_tensor(low)) & (values <= values.new_tensor(high))
        _check(valid, values, name, normalization_range(name))


def check_boxes(boxes: Tensor | None) -> None:
    """Check that no number of the boxes is NaN.

    Raises ValueError if one is.
    """
    if boxes is not None and debug_unwrap(boxes) is boxes and bool(boxes.isnan().any()):
        sample, side, _ = boxes.isnan().nonzero()[0].tolist()
        raise ValueError(f"boxes[{sample}, {side}] must not be NaN")
