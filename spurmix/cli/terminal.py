"""Output of commands. Names from datasets and files cannot control the terminal."""

from __future__ import annotations

import sys
import warnings

from spurmix.core.names import printable


def show(text: object, *, lines: bool = False, error: bool = False) -> None:
    r"""Print a text with escaped control characters.

    Args:
        text: The text.
        lines: Whether the text has several lines. Otherwise, a line break is escaped, because it is part of a name.
        error: Whether to print to stderr.
    """
    escaped = printable(text, keep="\n" if lines else "")
    print(escaped, file=sys.stderr if error else sys.stdout, flush=True)


def cell(text: object) -> str:
    """Return a text for a table of rich: control characters and markup are escaped."""
    from rich.markup import escape

    return escape(printable(text))


_format_warning = warnings.formatwarning


def _format_escaped(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return _format_warning(printable(message, keep="\n"), category, filename, lineno, line)


def escape_warnings() -> None:
    """Escape control characters in the warnings that Python prints from now on."""
    warnings.formatwarning = _format_escaped
