"""Names of classes, attributes, groups, files and datasets: how they are shown, and which of them look the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_CONTROL_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, invisible formatting (such as bidirectional overrides), surrogates, and line
and paragraph separators."""


def _is_control(character: str) -> bool:
    return not character.isprintable() and unicodedata.category(character) in _CONTROL_CATEGORIES


def printable(text: object, keep: str = "") -> str:
    r"""Return a text in which control characters are escaped as in `repr`, so that a terminal shows and does not obey them.

    Args:
        text: The text. Other values are converted.
        keep: Control characters to keep, such as "\n" in a table.

    Returns:
        The text.

    Example:
        >>> printable("cat\x1b[31m\n")
        'cat\\x1b[31m\\n'
    """
    given = str(text)
    if given.isprintable():
        return given
    return "".join(repr(c)[1:-1] if _is_control(c) and c not in keep else c for c in given)


INFERRED = " (inferred)"
"""End of the names of attributes that were not given but inferred."""


def without_inferred(name: str) -> str:
    """Return the name of an attribute without the end that says that it was inferred.

    Args:
        name: The name.

    Returns:
        The name of the attribute that was inferred.

    Example:
        >>> without_inferred("water (inferred)")
        'water'
    """
    return name.removesuffix(INFERRED)


MAX_SHOWN = 80
"""Maximum number of characters of a value in a message."""


def shortened(text: str, limit: int = MAX_SHOWN) -> str:
    """Return a text of at most `limit` characters. A longer one ends with "…"."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def shown(value: object, escape: bool = False) -> str:
    """Return the repr of a value for a message, at most `MAX_SHOWN` characters.

    Args:
        value: The value. Only the beginning of a string is formatted, because it may be long.
        escape: Whether to escape all characters that are not ASCII.

    Returns:
        The text.

    Example:
        >>> shown("cat ")
        "'cat '"
    """
    part = value[: MAX_SHOWN + 1] if isinstance(value, (str, bytes)) else value
    return shortened(ascii(part) if escape else repr(part))


def without_controls(text: object, keep: str = "") -> str:
    """Return a text without control characters, for HTML and images. Arguments are those of `printable`."""
    given = str(text)
    if given.isprintable():
        return given
    return "".join(c for c in given if not _is_control(c) or c in keep)


def similar_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Find names that differ only by white space, invisible characters or Unicode form.

    Args:
        names: The names. Repetitions are ignored.

    Returns:
        The names that look the same as another one, together with it.

    Example:
        >>> similar_names(["cat", "cat ", "dog"])
        [('cat', 'cat ')]
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        key = name
        if not (name.isascii() and name.isprintable() and " " not in name):
            normalized = unicodedata.normalize("NFKC", name)
            key = "".join(c for c in normalized if not c.isspace() and not _is_control(c))
        found.setdefault(key, []).append(name)
    return [tuple(alike) for alike in found.values() if len(alike) > 1]


def similarity_notes(names: Iterable[str], what: str) -> list[str]:
    """Return a note for each set of names that look the same. `what` is the plural of what they name."""
    return [_similarity_note(alike, what) for alike in similar_names(names)]


def join_similarity_notes(first: Iterable[str], second: Iterable[str], what: str) -> list[str]:
    """Return a note for each set of names of two datasets that look the same and are not joined.

    Args:
        first: Names of one dataset.
        second: Names of the other one.
        what: Plural of what they name.

    Returns:
        The notes. Names of one dataset that look the same have been noted when it was opened, and are left out.
    """
    only_first, only_second = set(first) - set(second), set(second) - set(first)
    alike = similar_names([*first, *second])
    return [_similarity_note(n, what) for n in alike if not only_first.isdisjoint(n) and not only_second.isdisjoint(n)]


def _escaped(names: Iterable[str]) -> list[str]:
    return [shown(name, escape=True) for name in names]


def _similarity_note(alike: Iterable[str], what: str) -> str:
    return (
        f"{what} {' and '.join(_escaped(alike))} differ only by white space or Unicode form; give them one name if they "
        "mean the same"
    )


MISSING_SPELLINGS = frozenset(
    {
        "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
        "NAN", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null",
    }
)  # fmt: skip
"""Strings that pandas and pyarrow read as a missing value, and variants of them."""
_ANY_CASE = frozenset(text.casefold() for text in MISSING_SPELLINGS)


def spells_missing(name: str, any_case: bool = False) -> bool:
    """Whether a name is one of `MISSING_SPELLINGS`, apart from white space around it.

    Args:
        name: The name.
        any_case: Whether upper and lower case are ignored, as in "none", which is more often a name.

    Returns:
        True if it is.
    """
    return name.strip().casefold() in _ANY_CASE if any_case else name.strip() in MISSING_SPELLINGS


def missing_notes(names: Iterable[str], what: str, remedy: str, any_case: bool = True) -> list[str]:
    """Return a note on names that spell a missing value, or no note.

    Args:
        names: The names.
        what: Plural of what they name.
        remedy: What to do if they mean that the value is missing.
        any_case: See `spells_missing`.

    Returns:
        At most one note.
    """
    spelled = [name for name in names if spells_missing(name, any_case)]
    if not spelled:
        return []
    return [f"{what} {', '.join(_escaped(spelled))} can mean a missing value and are read as names; if so, {remedy}"]


def distinct_names(names: Iterable[str], others: Iterable[str] = ()) -> list[str]:
    """Return names for a message, with repr if one has white space around it or looks the same as another one.

    The parts of names of groups, such as "cat, water", are compared too.

    Args:
        names: The names to show.
        others: Further names that they are compared with.

    Returns:
        The texts.

    Example:
        >>> distinct_names(["cat", "dog"], others=["cat "])
        ["'cat'", 'dog']
    """
    given, compared = list(names), list(others)
    parts = {part for name in (*given, *compared) for part in (name, *name.split(", "))}
    marked = {name for alike in similar_names(parts) for name in alike} | {n for n in parts if n != n.strip()}
    return [
        shown(name, escape=True) if marked.intersection((name, *name.split(", "))) else shortened(name)
        for name in given
    ]


def listed(names: Iterable[str], others: Iterable[str] = ()) -> str:
    """Join names for a message, see `distinct_names`."""
    return ", ".join(distinct_names(names, others))
