"""Cases and contenders. A case is a function that builds its contenders, registered by the decorator `case`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any


@dataclass
class Contender:
    """One way to do the work of a case.

    Attributes:
        name: Name in the table.
        run: Function that does the work once. Its result is compared with that of spurmix, unless it is None.
        kind: "ours", "variant", "peer", "baseline" or "limit". See `bench.row.Row`.
        note: Remark for the reader, for example that the contender draws its own lam.
        seconds: Function that does the work once and returns its own measurement in seconds, for example of another
            process. Default: the benchmark measures `run`.
    """

    name: str
    run: Callable[[], Any]
    kind: str = "peer"
    note: str = ""
    seconds: Callable[[], float] | None = None


@dataclass
class Case:
    """Contenders for the same work.

    Attributes:
        contenders: Contenders, in the order of the table.
        items: Number of items per run, for example images.
        tolerance: Largest accepted absolute difference from the result of spurmix.
        repeats: Number of turns of each contender.
        least: Number of turns that are made even if they exceed the time budget.
        absent: Names of contenders that are not installed.
    """

    contenders: list[Contender]
    items: int = 1
    tolerance: float = 1e-4
    repeats: int = 15
    least: int = 3
    absent: list[str] = field(default_factory=list)


Build = Callable[[Any], Case]
"""A function of a `bench.context.Context`."""


@dataclass(frozen=True)
class Registered:
    """A registered case.

    Attributes:
        name: Name of the case.
        build: Function that builds its contenders.
        quick: Whether `--quick` runs it.
        description: First line of the docstring of `build`.
    """

    name: str
    build: Build
    quick: bool
    description: str


CASES: dict[str, Registered] = {}


def case(name: str, *, quick: bool = True) -> Callable[[Build], Build]:
    """Register a case. The first line of its docstring describes it.

    Args:
        name: Unique name.
        quick: Whether `--quick` runs the case.

    Returns:
        A decorator of the function that builds the case.

    Raises:
        ValueError: If the name is taken.
    """

    def register(build: Build) -> Build:
        if name in CASES:
            raise ValueError(f"case {name!r} is registered twice")
        CASES[name] = Registered(name, build, quick, (build.__doc__ or "").strip().split("\n")[0])
        return build

    return register


def selected(patterns: list[str], quick: bool) -> Iterator[Registered]:
    """Select the cases that match any of the patterns.

    Args:
        patterns: Names or shell patterns. Empty: all cases.
        quick: Whether empty `patterns` mean the quick cases only.

    Yields:
        Each case.

    Raises:
        ValueError: If a pattern matches no case.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in CASES):
            raise ValueError(f"--case {pattern!r} matches no case; available: {', '.join(CASES)}")
    for registered in CASES.values():
        chosen = any(fnmatch(registered.name, p) for p in patterns) if patterns else (registered.quick or not quick)
        if chosen:
            yield registered
