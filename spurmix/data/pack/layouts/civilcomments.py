"""CivilComments in the layout of WILDS: comments, toxicity, and the identities each comment mentions."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.groups import GroupIndex

FILE = "all_data_with_identities.csv"
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
SPLITS = ("train", "val", "test")
CLASS_NAMES = ("not toxic", "toxic")
THRESHOLD = 0.5
_LONGEST_FIELD = 1 << 17  # characters; a comment has a thousand, so a longer field is a quote that nobody closed


@dataclass(frozen=True)
class CivilComments:
    """Comments of a file, or of one split of it.

    Attributes:
        texts: N comments. labels: uint8 `[N]`, 1 where toxicity is 0.5 or more.
        splits: int8 `[N]`, number in `SPLITS`.
        identities: bool `[N, K]`, whether a comment mentions each of `identity_names`.
        attributes: uint8 `[N]`, the training attribute: 1 where `attribute_name` is mentioned.
        rows: int64 `[N]`, the row of the file each comment stands in, from 0. left_out: rows of empty comments.
    """

    texts: list[str]
    labels: NDArray[np.uint8]
    splits: NDArray[np.int8]
    identities: NDArray[np.bool_]
    attributes: NDArray[np.uint8]
    identity_names: tuple[str, ...]
    attribute_name: str
    rows: NDArray[np.int64]
    left_out: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def split(self, name: str) -> CivilComments:
        """The comments of split "train", "val" or "test", in the file's order."""
        if name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
        rows = np.flatnonzero(self.splits == SPLITS.index(name))
        if rows.size == 0:
            raise ValueError(f"split {name!r} holds no comments")
        return replace(
            self,
            texts=[self.texts[n] for n in rows],
            labels=self.labels[rows],
            splits=self.splits[rows],
            identities=self.identities[rows],
            attributes=self.attributes[rows],
            rows=self.rows[rows],
        )

    @property
    def value_names(self) -> tuple[str, str]:
        """Names of the training attribute's values, such as ("no identity", "any identity")."""
        return f"no {self.attribute_name.removeprefix('any ')}", self.attribute_name

    def groups(self) -> GroupIndex:
        """The training partition: label x whether the training attribute is mentioned, up to four groups."""
        return GroupIndex(self.labels, self.attributes, class_names=CLASS_NAMES, attribute_names=self.value_names)

    @property
    def cell_names(self) -> tuple[str, ...]:
        """Names of the cells that `membership` describes, such as "male, toxic"."""
        return tuple(f"{identity}, {label}" for identity in self.identity_names for label in CLASS_NAMES)

    def membership(self) -> NDArray[np.bool_]:
        """Overlapping cells to evaluate, bool `[N, 2 K]`: cell 2 k + y holds the comments of label y that mention
        identity k. A comment lies in a cell for each identity it mentions, or in none."""
        by_label = self.labels[:, None] == np.arange(2, dtype=np.uint8)
        return (self.identities[:, :, None] & by_label[:, None, :]).reshape(len(self), -1)


def read_civilcomments(
    path: str | Path,
    *,
    attribute: str = "any",
    identities: Sequence[str] = IDENTITIES,
    drop_empty: bool = False,
) -> CivilComments:
    """Read `all_data_with_identities.csv` of WILDS, UTF-8, about half a million comments in some ten seconds.

    Equivalent to::

        frame = pandas.read_csv(path)
        labels, identities = frame["toxicity"] >= 0.5, frame[list(identities)] >= 0.5

    Args:
        path: the file, or the folder it lies in. It has the columns comment_text, split (train, val or test), toxicity
            and one for each identity, shares of annotators in [0, 1]; other columns are passed over. An identity nobody
            annotated (an empty field) counts as not mentioned, as in WILDS.
        attribute: what makes the training groups together with the label: "any" (the comment mentions any of
            `identities`), or a column: "black" gives the groups that WILDS trains with, "identity_any" uses the file's
            own summary, which knows further identities.
        identities: columns of the evaluated cells.
        drop_empty: leave out comments without any text; otherwise they are an error.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming line, row (from 0) and column: broken quoting, another encoding, toxicity that is missing, not
            a number or outside [0, 1], unknown splits, columns the file does not have, empty comments.
    """
    file = checks.path(path, "path")
    if file.is_dir():
        file = file / FILE
    wanted = checks.strings(identities, "identities")
    checks.instance(attribute, "attribute", str)
    checks.flag(drop_empty, "drop_empty")
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"identities must be different column names, got {identities!r}")
    columns = dict.fromkeys(
        ("comment_text", "split", "toxicity", *wanted, *([attribute] if attribute != "any" else []))
    )
    table: dict[str, list[str]] = {name: [] for name in columns}
    lines: list[int] = []
    for line, fields in _records(file, tuple(columns)):
        lines.append(line)
        for column, field in zip(table.values(), fields, strict=True):
            column.append(field)
    if not lines:
        raise ValueError(f"{file}: no comments, only a header")
    where = _Places(file, lines)

    texts = table["comment_text"]
    empty = np.fromiter((not text or text.isspace() for text in texts), dtype=bool, count=len(texts))
    if empty.any() and not drop_empty:
        where.fail(int(empty.argmax()), "comment_text", "is empty; drop_empty=True leaves such comments out")
    numbers = {name: n for n, name in enumerate(SPLITS)}
    splits = np.fromiter((numbers.get(name, -1) for name in table["split"]), dtype=np.int8, count=len(texts))
    if splits.min() < 0:
        row = int(splits.argmin())
        where.fail(row, "split", f"must be one of {', '.join(SPLITS)}, got {table['split'][row]!r}")
    toxicity = where.shares(table, "toxicity", required=True)
    mentioned: NDArray[np.bool_] = np.stack([where.shares(table, name) >= THRESHOLD for name in wanted], axis=1)
    any_of_them: NDArray[np.bool_] = np.logical_or.reduce(mentioned, axis=1)
    chosen = any_of_them if attribute == "any" else where.shares(table, attribute) >= THRESHOLD
    keep = np.flatnonzero(~empty)
    if keep.size == 0:
        raise ValueError(f"{file}: all comments are empty")
    return CivilComments(
        [texts[n] for n in keep] if empty.any() else texts,
        (toxicity >= THRESHOLD)[keep].astype(np.uint8),
        splits[keep],
        mentioned[keep],
        chosen[keep].astype(np.uint8),
        wanted,
        "any identity" if attribute == "any" else attribute,
        keep,
        np.flatnonzero(empty),
    )


@dataclass(frozen=True)
class _Places:
    """Where rows stand in the file, for messages."""

    file: Path
    lines: list[int]

    def fail(self, row: int, column: str, what: str) -> None:
        raise ValueError(f"{self.file}, line {self.lines[row]} (row {row}), column {column!r}: {what}")

    def shares(self, table: dict[str, list[str]], column: str, required: bool = False) -> NDArray[np.float64]:
        """A column of shares in [0, 1], NaN where it is empty."""
        fields = table[column]
        try:
            values = np.fromiter((float(f) if f else np.nan for f in fields), dtype=np.float64, count=len(fields))
        except ValueError:
            row = next(n for n, field in enumerate(fields) if not _is_number(field))
            self.fail(row, column, f"must be a number in [0, 1], got {fields[row]!r}")
        if required and np.isnan(values).any():
            self.fail(int(np.isnan(values).argmax()), column, "is missing (NaN); need a number in [0, 1]")
        outside = (values < 0) | (values > 1)
        if outside.any():
            row = int(outside.argmax())
            self.fail(row, column, f"must be a number in [0, 1], got {fields[row]}")
        return values


def _is_number(field: str) -> bool:
    try:
        return float(field) is not None
    except ValueError:
        return not field


def _records(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line it begins at, the fields of `columns`) of every record after the header."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    line = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader: Any = csv.reader(stream, strict=True)
            header: list[str] = next(reader, [])
            places = _places(file, header, columns)
            line = reader.line_num + 1
            for fields in reader:
                if len(fields) != len(header):
                    if fields:  # an empty line is nothing
                        raise ValueError(
                            f"{file}, line {line}: {len(fields)} fields, the header has {len(header)}; is a quote missing?"
                        )
                else:
                    _check_swallowed(fields, len(header), file, line)
                    yield line, [fields[p] for p in places]
                line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, line {line}: broken quoting in the record that begins here ({error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}, line {_bad_line(file)}: not UTF-8 ({error.reason}); convert the file first"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _check_swallowed(fields: list[str], columns: int, file: Path, line: int) -> None:
    """Raise where a field holds what reads like a record: a quote that was never closed ends at the next one there is."""
    for field in fields:
        for text in field.splitlines()[1:]:
            if text.count(",") >= columns - 1 and any(f",{split}," in text for split in SPLITS):
                raise ValueError(
                    f"{file}, line {line}: a field of the record that begins here holds other records; is a quote missing?"
                )


def _places(file: Path, header: list[str], columns: Sequence[str]) -> list[int]:
    """Position of each of `columns` in the header."""
    if not header:
        raise ValueError(f"{file}: the file is empty")
    for name in columns:
        if header.count(name) != 1:
            problem = "no" if name not in header else f"{header.count(name)} times a"
            raise ValueError(f"{file}: {problem} column {name!r}; the columns are {', '.join(map(repr, header))}")
    return [header.index(name) for name in columns]


def _bad_line(file: Path) -> int:
    """The first line that is not UTF-8."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0
