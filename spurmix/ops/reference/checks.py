"""Checks of indices."""

from __future__ import annotations

from torch import Tensor


def check_index(index: Tensor, count: int, name: str) -> None:
    """Check that each entry of `index`, of any shape, is in [0, count).

    Raises IndexError if an entry is out of range.
    """
    bad = (index < 0) | (index >= count)
    if bad.numel() and bool(bad.any()):
        position = bad.nonzero()[0].tolist()
        entry = ", ".join(map(str, position))
        raise IndexError(f"{name}[{entry}] = {int(index[tuple(position)])} is out of range [0, {count})")
