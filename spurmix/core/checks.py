"""Checks of plain arguments: a wrong type or range is an error that names the argument, before anything is computed."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def integer(value: Any, name: str, low: int | None = None, high: int | None = None) -> int:
    """An integer of any kind in [low, high]; a Python one.

    Raises:
        TypeError: for anything else. ValueError: for one outside.
    """
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {_kind(value)}")
    if high is not None and low is not None and not low <= number <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], got {number}")
    if low is not None and number < low:
        raise ValueError(f"{name} must be {low} or more, got {number}")
    return number


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, positive: bool = False) -> float:
    """A finite number of any kind in [low, high], above 0 where it is to be positive; a Python float.

    Raises:
        TypeError: for anything else. ValueError: for one outside.
    """
    try:
        made = None if isinstance(value, (bool, str, bytes, complex)) else float(value)
    except (TypeError, ValueError, RuntimeError):
        made = None
    except OverflowError:
        made = math.inf
    if made is None:
        raise TypeError(f"{name} must be a number, got {_kind(value)}")
    if positive and not 0 < made < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    if low <= made <= high and -math.inf < made < math.inf:  # torch.compile cannot trace math.isfinite
        return made
    if high < math.inf:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value!r}")
    raise ValueError(f"{name} must be {f'{low:g} or more' if low > -math.inf else 'finite'}, got {value!r}")


def flag(value: Any, name: str) -> bool:
    """True or False.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {_kind(value)}")


def strings(value: Any, name: str) -> tuple[str, ...]:
    """A sequence of strings.

    Raises:
        TypeError: for anything else, one string alone included.
    """
    made = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else None
    if made is None or not all(isinstance(one, str) for one in made):
        raise TypeError(f"{name} must be a sequence of strings, got {value!r}")
    return made


def choice(value: Any, name: str, choices: Iterable[str]) -> str:
    """One of some words.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def path(value: Any, name: str) -> Path:
    """A path of this machine.

    Raises:
        TypeError: for what is none.
    """
    if isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str):
        return Path(value)
    raise TypeError(f"{name} must be a path, got {_kind(value)}")


def instance(value: Any, name: str, kind: type, *, optional: bool = False) -> Any:
    """`value`, an object of a class.

    Raises:
        TypeError: for another one.
    """
    if isinstance(value, kind) or (optional and value is None):
        return value
    raise TypeError(f"{name} must be a {kind.__name__}{' or None' if optional else ''}, got {_kind(value)}")


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
