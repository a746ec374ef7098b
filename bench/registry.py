"""Cases and contenders. A case is a function that builds its contenders; `@case` registers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Contender:
    """One way to do a case's work.

    Attributes:
        name: for the table. run: does the work once; its value is compared with ours, None compares nothing.
        kind: "ours", "peer" or "limit". note: what a reader must know, such as a lam of its own.
        seconds: runs once and returns its own measurement, as of another process; None: `run` is timed here.
    """

    name: str
    run: Callable[[], Any]
    kind: str = "peer"
    note: str = ""
    seconds: Callable[[], float] | None = None


@dataclass
class Case:
    """Contenders for the same work. `items` are done per run; `tolerance` is absolute; `absent` names who is missing;
    `least` repetitions are made however long they take."""

    contenders: list[Contender]
    items: int = 1
    tolerance: float = 1e-4
    repeats: int = 15
    least: int = 3
    absent: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Registered:
    name: str
    build: Callable[[Any], Case]
    quick: bool
    description: str


CASES: dict[str, Registered] = {}


def case(name: str, *, quick: bool = True) -> Callable[[Callable[[Any], Case]], Callable[[Any], Case]]:
    """Register a case; `quick` ones run with --quick. Its docstring describes it."""

    def register(build: Callable[[Any], Case]) -> Callable[[Any], Case]:
        if name in CASES:
            raise ValueError(f"case {name!r} is registered twice")
        CASES[name] = Registered(name, build, quick, (build.__doc__ or "").strip().split("\n")[0])
        return build

    return register


def selected(patterns: list[str], quick: bool) -> Iterator[Registered]:
    """Cases that match any of the shell patterns, or all (with `quick`: the quick ones).

    Raises:
        ValueError: for a pattern that matches nothing.
    """
    from fnmatch import fnmatch

    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in CASES):
            raise ValueError(f"--case {pattern!r} matches no case; there are: {', '.join(CASES)}")
    for registered in CASES.values():
        chosen = any(fnmatch(registered.name, p) for p in patterns) if patterns else (registered.quick or not quick)
        if chosen:
            yield registered
