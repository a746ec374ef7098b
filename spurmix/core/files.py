"""Readers of files that may be damaged, hostile or large. Every error is a `FileError` that names the file."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, NotRequired, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from spurmix.core.limits import MAX_JSON_BYTES, MAX_JSON_DEPTH
from spurmix.core.names import printable, shortened, shown

T = TypeVar("T")


class FileError(ValueError):
    """A file cannot be read, is damaged, or exceeds a limit. Control characters in the message are escaped."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


def read_limited(path: str | Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Read a local file whose size is at most `limit`. The status is taken before reading.

    Raises `FileError`, which does not name the file, if it is too large or not a regular file, which might never end.
    Raises `OSError` if it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe must not wait for a writer
    except ValueError:
        raise FileError("has a path with a NUL character") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise FileError("is not a regular file")
        if status.st_size > limit:
            raise FileError(f"has {status.st_size:,} bytes, the maximum is {limit:,}")
        data = os.read(handle, status.st_size)
        while len(data) < status.st_size and (more := os.read(handle, status.st_size - len(data))):
            data += more
        return data, status
    finally:
        os.close(handle)


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises `FileError` if it cannot be read.
    """
    try:
        return read_limited(path, limit)[0]
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from None
    except FileError as error:
        raise FileError(f"{str(path)!r} {error}" if "\0" in str(path) else f"{path} {error}") from None


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """Read a file of at most `limit` bytes in UTF-8.

    Raises `FileError` if it cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is damaged: byte {error.start:,} is not UTF-8") from None


def read_json(path: Path, form: type[T]) -> T:
    """Read a JSON file of a given form.

    Raises `FileError` if it cannot be read or has another form.
    """
    return parse_json(read_text(path), str(path), form)


def read_json_lines(path: Path, form: type[T]) -> Iterator[T]:
    """Yield the value of each line of a JSON Lines file. Errors name the line, counted from 1.

    Raises `FileError` if a line is not JSON or has another form.
    """
    for number, line in enumerate(read_text(path).splitlines(), 1):
        yield parse_json(line, f"{path}, line {number},", form)


def read_toml(path: Path) -> dict[str, object]:
    """Read a TOML file.

    Raises `FileError` if it cannot be read.
    """
    try:
        found = tomllib.loads(read_text(path))
    except ValueError as error:
        raise FileError(f"{path} is not valid TOML: {_reason(error)}") from None
    except RecursionError:
        raise FileError(f"{path} is damaged: more than {MAX_JSON_DEPTH} nested arrays and tables") from None
    _check_depth(found, str(path))
    return found


def parse_json(text: str | bytes, name: str, form: type[T]) -> T:
    """Parse JSON of a given form.

    Args:
        text: The text.
        name: What the text is, for errors.
        form: Type of the value: a TypedDict, `dict[str, X]`, `list[X]`, a union, `str`, `int`, `float`, `bool` or `object`.
            `float` includes integers. An object may have further keys than its TypedDict.

    Returns:
        The value.

    Raises:
        FileError: If the text is not JSON or has another form. The message names the value.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise FileError(f"{name} is damaged: more than {MAX_JSON_DEPTH} nested arrays and objects") from None
    except (ValueError, TypeError) as error:
        raise FileError(f"{name} is damaged: {_reason(error)}") from None
    _check_depth(value, name)
    return check_form(value, name, form)


def _reason(error: Exception) -> str:
    """Return the message of a parser, without the advice of Python to raise the limit of integers."""
    text = str(error)
    return (
        "Exceeds the limit of 4,300 digits for an integer" if "set_int_max_str_digits" in text else shortened(text, 200)
    )


def check_form(value: object, name: str, form: type[T]) -> T:
    """Return a JSON value, if it has a given form. Arguments and errors are those of `parse_json`."""
    problem = _problem(value, form, "")
    if problem is not None:
        raise FileError(f"{name} is damaged: {problem}")
    return cast(T, value)


_NAMES: dict[object, str] = {
    str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null", list: "an array",
    dict: "an object",
}  # fmt: skip


def _problem(value: object, form: object, path: str) -> str | None:
    """Return why the value at `path` does not have the form, or None if it does."""
    origin, arguments = get_origin(form), get_args(form)
    if form in (object, Any) or type(value) is form or (form is float and type(value) is int):
        return None
    if origin is NotRequired:
        return _problem(value, arguments[0], path)
    if origin in (Union, UnionType):
        problems = [_problem(value, option, path) for option in arguments]
        return None if None in problems else problems[0]
    kind = dict if is_typeddict(form) else origin or form
    if type(value) is not kind:
        return f"{path or 'the content'} must be {_NAMES[kind]}, got {shown(value)}"
    fields: Iterable[tuple[object, object, object]]
    if isinstance(value, list):
        fields = ((n, item, arguments[0]) for n, item in enumerate(value))
    elif isinstance(value, dict) and is_typeddict(form):
        hints = get_type_hints(form, include_extras=True)  # with postponed annotations, only these show NotRequired
        absent = [key for key, hint in hints.items() if get_origin(hint) is not NotRequired and key not in value]
        if absent:
            return f"{path or 'the content'} has no {absent[0]!r}"
        fields = ((key, value[key], hint) for key, hint in hints.items() if key in value)
    elif isinstance(value, dict):
        fields = ((key, item, arguments[1]) for key, item in value.items())
    else:
        fields = ()
    found = (_problem(item, hint, f"{path}[{key!r}]") for key, item, hint in fields)
    return next((problem for problem in found if problem is not None), None)


def _check_depth(value: object, name: str) -> None:
    """Check that arrays and objects are nested at most `MAX_JSON_DEPTH` deep, so that recursive functions are safe."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return
        level = [item for found in containers for item in (found.values() if isinstance(found, dict) else found)]
    raise FileError(f"{name} is damaged: more than {MAX_JSON_DEPTH} nested arrays and objects")


def discard(path: Path) -> None:
    """Remove a file if it is possible. Use it after an error: a second error would hide the first."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
