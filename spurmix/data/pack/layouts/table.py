"""Layout `table`: a CSV or Parquet file with a row for each image or text."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spurmix.core.files import FileError
from spurmix.core.limits import MAX_REMOTE_TABLE_BYTES, MAX_TEXT_BYTES, MAX_VALUE_BYTES
from spurmix.core.names import listed, shown
from spurmix.data.dataset import tables
from spurmix.data.dataset.format import Metadata
from spurmix.data.pack.manifest import (
    Manifest,
    TextColumn,
    check_paths,
    encode_attributes,
    encode_column,
    split_names,
    unlabelled_rows,
    with_labels,
)
from spurmix.data.pack.remote import import_fsspec, parent_url, root_name
from spurmix.data.pack.strays import without_strays

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, NativeFile, Table


def from_table(
    table: str | Path,
    root: str | Path | None = None,
    *,
    path: str = "path",
    text: str | None = None,
    label: str = "label",
    attributes: Sequence[str] = (),
    split: str | None = None,
) -> Manifest:
    """Read a CSV or Parquet file with a row for each image or text.

    Labels and attributes are integers from 0, or names. A missing attribute is unknown (-1), and a note counts them.
    This includes strings that pandas reads as missing, such as "NA", "None", "nan", "NULL" and "". As labels they are
    names, and a note lists them. A split without any label is left out, and a note names it.

    Args:
        table: The file, or its fsspec URL.
        root: Folder or URL that the paths are relative to. Default: the table's folder.
        path: Column of the images' paths.
        text: Column of texts, for `pack_texts`. `path` is not used then.
        label: Column of the labels.
        attributes: Columns of the attributes, the spurious one first.
        split: Column of the splits. Default: all rows are in split "train".

    Returns:
        The rows of the table.

    Raises:
        ValueError: If the table cannot be read, has no rows, or has an invalid value. The message names row and column.
    """
    location = str(table)
    rows = read_table(
        table, [text or path], [text or path, label, split, *attributes], [text] if text is not None else ()
    )
    samples = None
    if text is not None:
        samples = TextColumn(get_column(rows, text, location), f"{location}: {text}")
        file = posixpath.basename(root_name(location.split("::")[0]))
        sources = [f"{file}#{n}" for n in range(len(samples))]
    else:
        sources = [str(v) if v is not None else "" for v in column_values(rows, path, location)]
        check_paths(sources, location)
    if not sources:
        raise ValueError(f"{location} has no rows")
    splits = ["train"] * len(sources)
    if split is not None:
        splits = split_names(column_values(rows, split, location), location, split)
    given = column_values(rows, label, location)
    skipped, left_out = unlabelled_rows(given, splits)
    labels, names, _ = encode_column(given, location, label, skipped=skipped)
    codes, value_names, notes = encode_attributes(
        {a: column_values(rows, a, location) for a in attributes}, location, skipped
    )
    metadata = Metadata(labels, splits, sources, codes, names, value_names)
    root = str(root) if root is not None else parent_url(table)
    kind = "images" if samples is None else "texts"
    return with_labels(without_strays(Manifest(root, metadata, (*left_out, *notes), samples, kind=kind)))


def read_table(
    path: str | Path,
    string_columns: Sequence[str] = (),
    columns: Iterable[str | None] | None = None,
    texts: Sequence[str] = (),
) -> Table:
    """Read a CSV or Parquet file as a pyarrow table.

    Args:
        path: The file, or its fsspec URL.
        string_columns: Columns of a CSV file that are strings, even if they look like numbers.
        columns: Columns of a Parquet file to read. Default: all.
        texts: Columns of texts, which may be longer than other values.

    Returns:
        The table.

    Raises:
        ValueError: If the file cannot be read. The message has the reason.
        ImportError: If a package is missing.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ImportError("tables need the package 'pyarrow': pip install 'spurmix[data]'") from error
    location, chosen = str(path), None if columns is None else set(columns)
    is_parquet = location.split("::")[0].lower().endswith((".parquet", ".pq"))
    if "://" not in location and not os.path.isfile(location):
        raise ValueError(f"there is no file {location}")
    try:
        with _open_arrow(location) as stream:
            if is_parquet:
                opened = tables.open_parquet(stream)
                names = opened.file.schema_arrow.names
                wanted = names if chosen is None else [name for name in names if name in chosen]
                repeated = [name for name in wanted if wanted.count(name) > 1]
                if repeated:
                    raise ValueError(f"there are two columns {shown(repeated[0])}")
                return tables.read_columns(opened, wanted, texts)
            found = tables.read_csv(stream, dict.fromkeys(string_columns, pyarrow.large_string()))
            for name in found.column_names:  # `get_column` reports two columns of one name
                if (chosen is None or name in chosen) and found.column_names.count(name) == 1:
                    tables.check_values(found[name], name, MAX_TEXT_BYTES if name in texts else MAX_VALUE_BYTES)
            return found
    except FileNotFoundError as error:  # fsspec also raises it if a server does not answer
        reason = f" ({error.__cause__})" if error.__cause__ is not None and "://" in location else ""
        raise ValueError(f"there is no file {location}{reason}") from None
    except ImportError as error:
        raise ImportError(f"{location} needs another package: {error}") from None
    except FileError as error:
        raise ValueError(f"{location} {error}") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"cannot read {location}: {error}") from None


def _open_arrow(location: str) -> NativeFile:
    """Open a file or URL for pyarrow. A remote file is copied into memory."""
    if "://" not in location:
        return tables.open_file(location)
    with import_fsspec().open(location, "rb") as stream:
        return tables.copy_stream(stream, MAX_REMOTE_TABLE_BYTES)


def get_column(table: Table, name: str, location: str) -> ChunkedArray:
    """Return a column of a table.

    Raises `ValueError` if it is missing or there are two. The message names the columns.
    """
    if name not in table.column_names:
        raise ValueError(f"{location}: no column {shown(name)}; the columns are {listed(table.column_names, [name])}")
    if table.column_names.count(name) > 1:
        raise ValueError(f"{location}: there are two columns {shown(name)}")
    return table[name]


def column_values(table: Table, name: str, location: str) -> list[object]:
    """Return the values of a column. Raises the same errors as `get_column`."""
    values: list[object] = get_column(table, name, location).to_pylist()
    return values
