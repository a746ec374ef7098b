"""Deprecated names of public arguments and attributes. They keep working for one release."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(owner: str, old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that a public name has a new name. For command-line flags and keys of files, call it directly.

    Args:
        owner: What the name belongs to: a function, a class, a command or a file. The message starts with it.
        old: The deprecated name.
        new: The name to use instead.
        stacklevel: Frames between the caller of this function and the code to blame, plus 2, as for `warnings.warn`.
    """
    warnings.warn(f"{owner}: {old} is deprecated, use {new}", DeprecationWarning, stacklevel=stacklevel + 1)


def renamed_argument(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: accept the old name of a keyword argument, with a `DeprecationWarning`.

    For a class, decorate its `__init__`. Apply it to a dataclass as
    `Config.__init__ = renamed_argument(old="new")(Config.__init__)`.

    Args:
        **names: The new name for each old one: `renamed_argument(old="new")`.

    Returns:
        The decorator. The decorated function raises TypeError if both names are given.

    Example:
        >>> @renamed_argument(room="reserve")
        ... def source(reserve=0):
        ...     return reserve
        >>> source(room=3)  # DeprecationWarning: source: room is deprecated, use reserve
        3
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        positions = {name: at for at, name in enumerate(inspect.signature(function).parameters)}
        owner = function.__qualname__.removesuffix(".__init__").rsplit(".", 1)[-1]
        for new in names.values():
            if new not in positions:
                raise TypeError(f"renamed_argument: {owner} has no argument {new!r}")

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if not names.keys().isdisjoint(kwargs):
                for old, new in names.items():
                    if old not in kwargs:
                        continue
                    if new in kwargs or len(args) > positions[new]:
                        raise TypeError(f"{owner}: {old} is the deprecated name of {new}, got both; remove {old}")
                    warn_renamed(owner, old, new)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate


class renamed_attribute:
    """Descriptor: a deprecated name of an attribute, property, method or classmethod, with a `DeprecationWarning`.

    Args:
        new: The name to use instead.

    Example:
        >>> class Dataset:
        ...     provenance = "packed"
        ...     made = renamed_attribute("provenance")
        >>> Dataset().made  # DeprecationWarning: Dataset: made is deprecated, use provenance
        'packed'
    """

    def __init__(self, new: str) -> None:
        self._new = new
        self.__doc__ = f"Deprecated name of `{new}`."

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._old = owner.__name__, name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        source = instance
        if instance is None:
            if not isinstance(inspect.getattr_static(owner, self._new, None), classmethod):
                return self
            source = owner
        warn_renamed(self._owner, self._old, self._new)
        return getattr(source, self._new)

    def __set__(self, instance: object, value: object) -> None:
        warn_renamed(self._owner, self._old, self._new)
        setattr(instance, self._new, value)
