"""Output of commands. Names from datasets and files cannot control the terminal."""

from __future__ import annotations

import os
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


_shown_warnings: set[str] = set()


def _format_once(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning as one message without path and source line, or as "" if it was shown before."""
    text = f"spurmix: warning: {printable(message, keep=chr(10))}\n"
    if text in _shown_warnings or (os.environ.get("RANK", "0") != "0" and category is UserWarning):
        return ""  # all processes warn of the data, and the first one shows it
    _shown_warnings.add(text)
    return text


def format_warnings() -> None:
    """Show each warning that Python prints from now on as one message, once, with escaped control characters."""
    _shown_warnings.clear()
    warnings.formatwarning = _format_once
