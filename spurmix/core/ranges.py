"""Ranges of row numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def chunks(count: int, size: int) -> Iterator[range]:
    """Split [0, count) into ranges of at most `size`."""
    for begin in range(0, count, size):
        yield range(begin, min(begin + size, count))


def contiguous(names: Iterable[str]) -> bool:
    """Whether equal names are next to each other."""
    seen: set[str] = set()
    last = None
    for name in names:
        if name != last and name in seen:
            return False
        seen.add(name)
        last = name
    return True
