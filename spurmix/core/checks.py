"""Checks of plain arguments. An argument of a wrong type or value raises an error that names it."""

from __future__ import annotations

import difflib
import math
import operator
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar, overload

import numpy as np

from spurmix.core.array_types import FloatArray
from spurmix.core.names import listed, shown, similarity_notes

T = TypeVar("T")

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4096
"""Maximum sizes of a name and of a path on Linux."""


def integer(value: object, name: str, low: int | None = None, high: int | None = None) -> int:
    """Return `value`, an integer of any type in [low, high], as a Python int.

    Raises TypeError if it is not an integer, and ValueError if it is outside the range.
    """
    number = None
    if not isinstance(value, bool):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            pass
    if number is None:
        raise TypeError(f"{name} must be an integer, got {_type_name(value)}")
    if high is not None and low is not None and not low <= number <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {number}")
    if low is not None and number < low:
        raise ValueError(f"{name} must be {low} or more, got {number}")
    return number


def number(
    value: object, name: str, low: float = -math.inf, high: float = math.inf, *, positive: bool = False
) -> float:
    """Return `value`, a finite number of any type in [low, high], as a Python float. `positive` also rejects 0.

    Raises TypeError if it is not a number, and ValueError if it is not finite or outside the range.
    """
    try:
        converted = None if isinstance(value, (bool, str, bytes, complex)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        converted = None
    except OverflowError:
        converted = math.inf
    if converted is None:
        raise TypeError(f"{name} must be a number, got {_type_name(value)}")
    if positive and not 0 < converted < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    if low <= converted <= high and -math.inf < converted < math.inf:  # torch.compile cannot trace math.isfinite
        return converted
    if high < math.inf:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
    raise ValueError(f"{name} must be {f'{low:g} or more' if low > -math.inf else 'finite'}, got {value!r}")


def flag(value: object, name: str) -> bool:
    """Return `value`, True or False.

    Raises TypeError if it is anything else.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {_type_name(value)}")


def strings(value: object, name: str) -> tuple[str, ...]:
    """Return `value`, a sequence of strings, as a tuple.

    Raises TypeError if it is anything else. A single string is also rejected.
    """
    converted = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else None
    if converted is None or not all(isinstance(one, str) for one in converted):
        raise TypeError(f"{name} must be a sequence of strings, got {value!r}")
    return converted


def choice(value: object, name: str, choices: Iterable[str]) -> str:
    """Return `value`, one of `choices`.

    Raises ValueError if it is anything else. The message lists all choices, and suggests a similar one.
    """
    accepted = tuple(choices)
    if isinstance(value, str) and value in accepted:
        return value
    similar = difflib.get_close_matches(str(value), accepted, 1)
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    raise ValueError(f"{name} must be one of {listed(accepted, [str(value)])}, got {value!r}{hint}")


def names(values: object, name: str) -> tuple[str, ...]:
    """Return `values`, a sequence of strings, as a tuple. Warns if some look the same.

    Raises TypeError if they are not strings.
    """
    given = strings(values, name)
    for note in similarity_notes(given, f"{name}:"):
        warnings.warn(note, UserWarning, stacklevel=4)
    return given


def path(value: object, name: str) -> Path:
    """Return `value`, a path of the file system, as a Path.

    Raises TypeError if it is not a path, and ValueError if it has a NUL character.
    """
    if isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str):
        if "\0" in os.fspath(value):
            raise ValueError(f"{name} must not have a NUL character, got {os.fspath(value)!r}")
        return Path(value)
    raise TypeError(f"{name} must be a path, got {_type_name(value)}")


def new_path(value: object, name: str, room: int = 0) -> Path:
    """Return `value`, the path of a file or folder to write, as a Path.

    Temporary files beside it have names that are up to `room` bytes longer.

    Raises TypeError if it is not a path, and ValueError if it has a NUL character or is too long.
    """
    new = path(value, name)
    for part in new.parts:
        size = len(os.fsencode(part)) + (room if part == new.name else 0)
        if size > MAX_NAME_BYTES:
            raise ValueError(
                f"{name} must have names of at most {MAX_NAME_BYTES - room} bytes, got one of "
                f"{len(os.fsencode(part)):,} bytes: {shown(part)}"
            )
    if len(os.fsencode(new.absolute())) + room >= MAX_PATH_BYTES:
        raise ValueError(
            f"{name} must be shorter than {MAX_PATH_BYTES - room:,} bytes, got {len(os.fsencode(new.absolute())):,}"
        )
    return new


@overload
def instance(value: object, name: str, kind: type[T], *, optional: Literal[False] = False) -> T: ...
@overload
def instance(value: object, name: str, kind: type[T], *, optional: Literal[True]) -> T | None: ...
def instance(value: object, name: str, kind: type[T], *, optional: bool = False) -> T | None:
    """Return `value`, an instance of a class.

    Raises TypeError if it is an instance of another class.
    """
    if isinstance(value, kind):
        return value
    if optional and value is None:
        return None
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    raise TypeError(
        f"{name} must be {article} {kind.__name__}{' or None' if optional else ''}, got {_type_name(value)}"
    )


def on_host(values: object) -> object:
    """Return `values`. A PyTorch tensor is detached and copied to the host."""
    return values.detach().cpu() if hasattr(values, "detach") else values


def float_array(values: object, name: str) -> FloatArray:
    """Return `values`, an array, tensor or nested sequence of numbers, as a float64 array.

    Raises TypeError if they are not numbers, or the sequences have different lengths.
    """
    if np.ma.is_masked(values):
        raise TypeError(f"{name} must be an array of numbers, got masked values")
    try:
        return np.asarray(on_host(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers ({error})") from None


def _type_name(value: object) -> str:
    return "None" if value is None else type(value).__name__
