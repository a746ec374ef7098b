"""Layout `civilcomments`: CivilComments in the format of WILDS (Koh et al. 2021, arXiv 2012.07421)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.files import FileError
from spurmix.core.groups import GroupIndex
from spurmix.core.limits import MAX_VALUE_BYTES
from spurmix.core.names import shown
from spurmix.data.dataset import tables
from spurmix.data.dataset.format import Metadata
from spurmix.data.pack.job import counted
from spurmix.data.pack.manifest import Manifest, digest_texts
from spurmix.data.pack.remote import local_path

if TYPE_CHECKING:
    from pyarrow import Table

FILE = "all_data_with_identities.csv"
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
SPLITS = ("train", "val", "test")
CLASS_NAMES = ("not toxic", "toxic")
THRESHOLD = 0.5
_MAX_CHARACTERS = 1 << 17
"""A comment has about a thousand characters. A longer field is the result of a quote that is not closed."""


@dataclass(frozen=True)
class CivilComments:
    """Comments of a file, or of one split of it.

    Args:
        texts: The N comments.
        labels: uint8 `[N]`, 1 if toxicity is 0.5 or more.
        splits: int8 `[N]`, index into `SPLITS`.
        identities: bool `[N, K]`, whether a comment mentions each of `identity_names`.
        attributes: uint8 `[N]`, the training attribute: 1 if `attribute_name` is mentioned.
        identity_names: Names of the K identities.
        attribute_name: Name of the training attribute.
        rows: int64 `[N]`, row of each comment in the file, from 0.
        left_out: int64 `[M]`, rows of empty comments, which were dropped.
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
        """Return the comments of one split, in the order of the file.

        Args:
            name: "train", "val" or "test".

        Returns:
            The comments of the split.

        Raises:
            ValueError: If there is no such split or it has no comments.
        """
        if name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
        rows = np.flatnonzero(self.splits == SPLITS.index(name))
        if rows.size == 0:
            raise ValueError(f"split {name!r} has no comments")
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
        """Return the training groups: label and training attribute, up to four groups."""
        return GroupIndex(self.labels, self.attributes, class_names=CLASS_NAMES, attribute_names=self.value_names)

    @property
    def cell_names(self) -> tuple[str, ...]:
        """Names of the cells of `membership`, such as "male, toxic"."""
        return tuple(f"{identity}, {label}" for identity in self.identity_names for label in CLASS_NAMES)

    def membership(self) -> NDArray[np.bool_]:
        """Return the overlapping cells to evaluate.

        Returns:
            bool `[N, 2 K]`. Cell 2 k + y contains the comments of label y that mention identity k. A comment is in one cell
            for each identity that it mentions, or in none.
        """
        by_label = self.labels[:, None] == np.arange(2, dtype=np.uint8)
        return (self.identities[:, :, None] & by_label[:, None, :]).reshape(len(self), -1)


def read_civilcomments(
    path: str | Path,
    *,
    attribute: str = "any",
    identities: Sequence[str] = IDENTITIES,
    drop_empty: bool = False,
) -> CivilComments:
    """Read `all_data_with_identities.csv` of WILDS, in UTF-8.

    Equivalent to::

        frame = pandas.read_csv(path)
        labels, identities = frame["toxicity"] >= 0.5, frame[list(identities)] >= 0.5

    Source: Koh et al. 2021, arXiv 2012.07421.

    Args:
        path: The file, or its folder. Required columns: comment_text, split (train, val or test), toxicity, and one for
            each identity: the fraction of annotators, in [0, 1]. Other columns are ignored. An empty identity counts as
            not mentioned, as in WILDS.
        attribute: Attribute of the training groups. "any" means that the comment mentions any of `identities`. A column
            name selects that column: "black" gives the training groups of WILDS, "identity_any" the file's own summary,
            which includes further identities.
        identities: Columns of the evaluated cells.
        drop_empty: Whether to drop comments without text. Default: they are an error.

    Returns:
        The comments in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pyarrow is missing.
        ValueError: If the file is not valid CSV in UTF-8, a column is missing, or a value is invalid. The message names
            file, row and column where they are known.

    Example:
        >>> comments = read_civilcomments("civilcomments_v1.0", attribute="black")  # doctest: +SKIP
        >>> groups = comments.split("train").groups()  # doctest: +SKIP
    """
    file = checks.path(path, "path")
    if os.path.isdir(file):
        file = file / FILE
    wanted = checks.strings(identities, "identities")
    checks.instance(attribute, "attribute", str)
    checks.flag(drop_empty, "drop_empty")
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"identities must be different column names, got {identities!r}")
    table = _Table(file, (*wanted, *([attribute] if attribute != "any" else [])))
    texts, splits = table.texts(), table.splits()
    empty = np.fromiter((not text or text.isspace() for text in texts), dtype=bool, count=len(texts))
    if empty.any() and not drop_empty:
        table.fail(int(empty.argmax()), "comment_text", "is empty; set drop_empty=True to drop such comments")
    toxicity = table.fractions("toxicity", required=True)
    mentioned: NDArray[np.bool_] = np.stack([table.fractions(name) >= THRESHOLD for name in wanted], axis=1)
    any_identity: NDArray[np.bool_] = np.logical_or.reduce(mentioned, axis=1)
    chosen = any_identity if attribute == "any" else table.fractions(attribute) >= THRESHOLD
    rows = np.flatnonzero(~empty)
    if rows.size == 0:
        raise ValueError(f"{file}: all comments are empty")
    return CivilComments(
        [texts[n] for n in rows] if empty.any() else texts,
        (toxicity >= THRESHOLD)[rows].astype(np.uint8),
        splits[rows],
        mentioned[rows],
        chosen[rows].astype(np.uint8),
        wanted,
        "any identity" if attribute == "any" else attribute,
        rows,
        np.flatnonzero(empty),
    )


class _Table:
    """The columns of the file that are needed, read with pyarrow and checked."""

    def __init__(self, file: Path, fraction_columns: Sequence[str]) -> None:
        self.file = file
        numbers = dict.fromkeys(("toxicity", *fraction_columns))
        self.column_count = len(_read_header(file, ("comment_text", "split", *numbers)))
        self.table = _read_csv(file, numbers)
        if self.table.num_rows == 0:
            raise ValueError(f"{file} has a header, but no comments")

    def fail(self, row: int, column: str, problem: str) -> NoReturn:
        raise ValueError(f"{self.file}, row {row}, column {shown(column)}: {problem}")

    def texts(self) -> list[str]:
        """Return the comments. A field that contains other rows is an error: a quote is not closed."""
        import pyarrow.compute as compute

        column = self.table["comment_text"]
        # A line of the comment that has a split between commas, and at least as many commas as a row.
        like_a_row = rf"[\n\r][^\n\r]*,({'|'.join(SPLITS)}),"
        suspicious = compute.or_(
            compute.greater(compute.utf8_length(column), _MAX_CHARACTERS),
            compute.match_substring_regex(column, like_a_row),
        )
        for row in np.flatnonzero(suspicious.to_numpy()).tolist():
            text = column[row].as_py()
            lines = [line for line in text.splitlines()[1:] if any(f",{split}," in line for split in SPLITS)]
            if len(text) > _MAX_CHARACTERS or any(line.count(",") >= self.column_count - 1 for line in lines):
                self.fail(row, "comment_text", "contains other rows; is a closing quote missing?")
        texts: list[str] = column.to_pylist()
        return texts

    def splits(self) -> NDArray[np.int8]:
        """Return the index of each comment's split in `SPLITS`."""
        numbers = {name: n for n, name in enumerate(SPLITS)}
        names = self.table["split"].to_pylist()
        splits = np.fromiter((numbers.get(name, -1) for name in names), dtype=np.int8, count=len(names))
        if splits.min() < 0:
            row = int(splits.argmin())
            self.fail(row, "split", f"must be one of {', '.join(SPLITS)}, got {shown(names[row])}")
        return splits

    def fractions(self, column: str, required: bool = False) -> NDArray[np.float64]:
        """Return a column of fractions in [0, 1]. Empty fields are NaN."""
        values: NDArray[np.float64] = self.table[column].to_numpy()
        missing = np.isnan(values)
        if required and missing.any():
            self.fail(int(missing.argmax()), column, "is missing; need a number in [0, 1]")
        outside = (values < 0) | (values > 1)
        if outside.any():
            row = int(outside.argmax())
            self.fail(row, column, f"must be a number in [0, 1], got {values[row]}")
        return values


def _read_header(file: Path, columns: Iterable[str]) -> list[str]:
    """Return the names of all columns. Each of `columns` must occur once."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = iter(lambda: stream.readline(_MAX_CHARACTERS), "")
            header = next(csv.reader(lines), [])
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason}); convert it first") from None
    except csv.Error as error:
        raise ValueError(f"{file} has no header: {error}") from None
    if not header:
        raise ValueError(f"{file} is empty")
    for name in columns:
        count = header.count(name)
        if count != 1:
            raise ValueError(
                f"{file} must have one column {shown(name)}, it has {count}; the columns are {', '.join(map(shown, header))}"
            )
    return header


def _read_csv(file: Path, fraction_columns: Iterable[str]) -> Table:
    """Read comment_text, split and the given columns of numbers. Empty numbers are null."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ImportError("tables need the package 'pyarrow': pip install 'spurmix[data]'") from error
    types = {"comment_text": pyarrow.large_string(), "split": pyarrow.string()}
    types |= dict.fromkeys(fraction_columns, pyarrow.float64())
    try:
        with tables.open_file(file) as stream:
            table = tables.read_csv(stream, types, list(types), ["", "nan", "NaN"])
        tables.check_values(table["split"], "split", MAX_VALUE_BYTES)
        return table
    except FileError as error:
        raise ValueError(f"{file} {error}") from None
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{file} is not valid CSV in UTF-8: {error} (pyarrow counts rows from 1, including the header)"
        ) from None


class _TextList(list[str]):
    """`SampleSource` of a list of texts."""

    def digest(self) -> str:
        """See `SampleSource.digest`."""
        return digest_texts(self)


def from_civilcomments(
    path: str | Path, *, attribute: str = "any", identities: Sequence[str] = IDENTITIES, drop_empty: bool = False
) -> Manifest:
    """Read CivilComments for `pack_texts`. Arguments and errors are those of `read_civilcomments`.

    The first attribute is the training attribute ("any identity", or `attribute`). All `identities` follow, with values 0
    and 1. `PackedDataset.cells` gives the overlapping cells of identity and label.
    """
    data = read_civilcomments(local_path(path), attribute=attribute, identities=identities, drop_empty=drop_empty)
    mentioned = {name: data.identities[:, k].astype(np.int64) for k, name in enumerate(data.identity_names)}
    values = {data.attribute_name: data.attributes.astype(np.int64), **mentioned}
    names: dict[str, tuple[str, ...]] = {name: (f"no {name}", name) for name in values}
    names[data.attribute_name] = data.value_names
    sources = [f"{FILE}#{n}" for n in data.rows.tolist()]
    metadata = Metadata(
        data.labels.astype(np.int64), [SPLITS[k] for k in data.splits], sources, values, CLASS_NAMES, names
    )
    notes = []
    if data.left_out.size:
        shown = ", ".join(map(str, data.left_out[:5])) + (", ..." if data.left_out.size > 5 else "")
        notes.append(f"dropped {counted(data.left_out.size, 'comment')} without text: rows {shown}")
    return Manifest(
        str(path), metadata, tuple(notes), _TextList(data.texts), kind="texts", cells=tuple(data.identity_names)
    )
