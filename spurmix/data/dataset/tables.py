"""All reading of Parquet and CSV with pyarrow: from paths and Arrow's own buffers, within the limits of `limits.py`.

pyarrow must not read from a Python file object or a Python buffer. Its threads can release the object after the
interpreter has ended, which aborts the process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from spurmix.core.files import FileError
from spurmix.core.limits import (
    MAX_CSV_ROW_BYTES,
    MAX_TABLE_BYTES,
    MAX_TABLE_ROWS,
    MAX_TEXT_BYTES,
    MAX_VALUE_BYTES,
)
from spurmix.core.names import shown

if TYPE_CHECKING:
    from pyarrow import Array, ChunkedArray, DataType, NativeFile, RecordBatch, Table
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 4096
"""Rows that are read at a time. The size of the columns is checked after each batch."""
BATCH_BYTES = 1 << 28
"""Memory of a batch. Fewer rows are read at a time if many rows may repeat a long value."""
COPY_BYTES = 1 << 20
"""Bytes that are copied at a time."""


def open_file(path: str | Path) -> NativeFile:
    """Open a local file for pyarrow.

    Raises `FileError` if it has more than `MAX_TABLE_BYTES`.
    """
    import pyarrow

    file = pyarrow.OSFile(str(path))
    if file.size() > MAX_TABLE_BYTES:
        raise FileError(f"has {file.size():,} bytes, the maximum is {MAX_TABLE_BYTES:,}")
    return file


def copy_stream(stream: BinaryIO, limit: int) -> NativeFile:
    """Copy a Python file object into memory of Arrow.

    Raises `FileError` if it has more than `limit` bytes.
    """
    import pyarrow

    copied = pyarrow.BufferOutputStream()
    count = 0
    while data := stream.read(min(COPY_BYTES, limit + 1 - count)):
        count += len(data)
        if count > limit:
            raise FileError(f"has more than {limit:,} bytes, the maximum of a remote table; copy the file first")
        copied.write(data)
    return pyarrow.BufferReader(copied.getvalue())


@dataclass(frozen=True)
class OpenedParquet:
    """A Parquet file.

    Attributes:
        file: The file.
        source: The object that it is read from.
        shared: Names of the large columns with values that rows share.
    """

    file: ParquetFile
    source: NativeFile
    shared: Sequence[str]


def open_parquet(file: NativeFile, expected_rows: int | None = None) -> OpenedParquet:
    """Open a Parquet file. Its number of rows is checked before any column is read.

    Raises `FileError` if it has another number of rows than `expected_rows`, or more than `MAX_TABLE_ROWS`.
    """
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(file)
    footer = opened.metadata
    rows = sum(footer.row_group(k).num_rows for k in range(footer.num_row_groups))
    if expected_rows is not None and rows != expected_rows:
        raise FileError(f"has {rows:,} rows, expected {expected_rows:,}")
    if expected_rows is None:
        check_rows(rows)
    # pyarrow cannot read columns of differences as dictionaries.
    groups = [footer.row_group(k) for k in range(footer.num_row_groups)]
    shared = [
        column.path
        for n, column in enumerate(footer.schema)
        if column.physical_type == "BYTE_ARRAY"
        and any("DICTIONARY" in encoding for group in groups for encoding in group.column(n).encodings)
        and any(group.column(n).total_uncompressed_size > BATCH_BYTES // BATCH_ROWS for group in groups)
        and not any("DELTA" in encoding for group in groups for encoding in group.column(n).encodings)
    ]
    return OpenedParquet(opened, file, shared)


def check_rows(count: int) -> None:
    """Check the number of rows of a table to pack.

    Raises `FileError` if there are more than `MAX_TABLE_ROWS`.
    """
    if count > MAX_TABLE_ROWS:
        raise FileError(
            f"has {count:,} rows, the maximum is {MAX_TABLE_ROWS:,}; split the table and merge the datasets"
        )


def read_columns(opened: OpenedParquet, columns: Sequence[str], texts: Collection[str] = ()) -> Table:
    """Read columns of a Parquet file.

    Args:
        opened: The file.
        columns: Names of the columns.
        texts: Columns with values of up to `MAX_TEXT_BYTES` instead of `MAX_VALUE_BYTES`.

    Returns:
        The table.

    Raises:
        FileError: If a value is too large, or the columns need more than `MAX_TABLE_BYTES` of memory.
    """
    import pyarrow

    limits = {name: MAX_TEXT_BYTES if name in texts else MAX_VALUE_BYTES for name in columns}
    rows_at_once = min(_check_footer(opened.file, limits), _check_dictionaries(opened, limits))
    size, row = 0, 0
    batches: list[RecordBatch] = []
    for batch in opened.file.iter_batches(rows_at_once, columns=columns):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            check_values(column, name, limits[name], row)
        size += batch.nbytes
        if size > MAX_TABLE_BYTES:
            raise FileError(f"needs more than {MAX_TABLE_BYTES:,} bytes of memory")
        row += batch.num_rows
        batches.append(batch)
    if not batches:
        return opened.file.schema_arrow.empty_table().select(columns)
    return pyarrow.Table.from_batches(batches).combine_chunks()


def _check_dictionaries(opened: OpenedParquet, limits: Mapping[str, int]) -> int:
    """Check the values that rows share, before they are repeated. Return the number of rows to read at a time."""
    import pyarrow.parquet

    longest = 1
    names = [name for name in limits if name in opened.shared]
    if not names:
        return BATCH_ROWS
    opened.source.seek(0)
    file = pyarrow.parquet.ParquetFile(opened.source, metadata=opened.file.metadata, read_dictionary=names)
    for group in range(file.metadata.num_row_groups):
        # The first row has the dictionary of all rows.
        for batch in file.iter_batches(1, row_groups=[group], columns=names):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                longest = max(longest, check_values(column, name, limits[name]))
            break
    return max(1, min(BATCH_ROWS, BATCH_BYTES // longest))


def _check_footer(file: ParquetFile, limits: Mapping[str, int]) -> int:
    """Check the sizes of columns in the footer. Return the number of rows to read at a time.

    Raises `FileError` if a column is larger than its rows allow.
    """
    rows_at_once = BATCH_ROWS
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            name, size = column.path_in_schema, column.total_uncompressed_size
            limit = limits.get(name)
            if limit is None:
                continue
            # A value may also be in the dictionary. Headers of pages contain the smallest and the largest value.
            if size > (1 << 20) + 4 * group.num_rows * (limit + 64):
                raise FileError(
                    f"has {size:,} bytes in {group.num_rows:,} rows of column {shown(name)}, a value may have at most "
                    f"{limit:,} bytes"
                )
            if "DELTA_BYTE_ARRAY" in column.encodings:  # a value may repeat the one before it
                rows_at_once = min(rows_at_once, max(1, BATCH_BYTES // max(1, size)))
    return rows_at_once


def check_values(column: Array | ChunkedArray, name: str, limit: int, first_row: int = 0) -> int:
    """Check the size of each value of a column of strings. Other values have a fixed size.

    Args:
        column: The column.
        name: Its name, for the message.
        limit: Maximum size of a value in bytes.
        first_row: Number of the first row, for the message.

    Returns:
        Size of the largest value in bytes, 0 if there is none.

    Raises:
        FileError: If a value is larger. The message names the row.
    """
    import pyarrow
    from pyarrow import compute

    values = column.dictionary if isinstance(column, pyarrow.DictionaryArray) else column
    if not any(
        is_kind(values.type)
        for is_kind in (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_binary,
            pyarrow.types.is_large_binary,
        )
    ):
        return 0
    lengths = compute.binary_length(values)
    largest = int(compute.max(lengths).as_py() or 0)
    if largest > limit:
        row = int(compute.index(compute.fill_null(compute.greater(lengths, limit), False), True).as_py())
        where = f"row {first_row + row}, column" if values is column else "column"
        raise FileError(f"has {largest:,} bytes in {where} {shown(name)}, a value may have at most {limit:,} bytes")
    return largest


def read_csv(
    file: NativeFile,
    types: Mapping[str, DataType],
    columns: Sequence[str] | None = None,
    null_values: Sequence[str] | None = None,
) -> Table:
    """Read a CSV file in UTF-8 with a header.

    Args:
        file: The file.
        types: Type of each column that is not inferred.
        columns: Columns to read. Default: all.
        null_values: Values that mean a missing value. Default: those of pyarrow.

    Returns:
        The table.

    Raises:
        FileError: If there are more than `MAX_TABLE_ROWS`.
        pyarrow.ArrowException: If the file is not valid, or has a row of more than `MAX_CSV_ROW_BYTES`.
    """
    import pyarrow.csv

    nulls = {} if null_values is None else {"null_values": null_values}
    try:
        table = pyarrow.csv.read_csv(
            file,
            # One thread: only then do errors name the row. A row must fit into two blocks.
            read_options=pyarrow.csv.ReadOptions(block_size=MAX_CSV_ROW_BYTES, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(include_columns=columns, column_types=dict(types), **nulls),
        )
    except pyarrow.ArrowInvalid as error:
        row = _long_row(file) if "straddl" in str(error) or "Empty CSV" in str(error) else None
        if row is None:
            raise
        where = "its header" if row < 0 else f"row {row}"
        raise FileError(
            f"has more than {MAX_CSV_ROW_BYTES:,} bytes in {where}, or a quote without its partner"
        ) from None
    check_rows(table.num_rows)
    return table


def _long_row(file: NativeFile) -> int | None:
    """Find the first row of more than `MAX_CSV_ROW_BYTES` in a CSV file. The header is row -1."""
    file.seek(0)
    row, length, quotes = -1, 0, 0
    while block := file.read(COPY_BYTES):
        data = np.frombuffer(block, dtype=np.uint8)
        marks = quotes + np.cumsum(data == ord('"'))
        ends = np.flatnonzero((data == ord("\n")) & (marks % 2 == 0))
        lengths = np.diff(np.concatenate(([-length - 1], ends, [len(data) - 1])))
        long = np.flatnonzero(lengths > MAX_CSV_ROW_BYTES)
        if long.size:
            return row + int(long[0])
        row, length, quotes = row + ends.size, int(lengths[-1]), int(marks[-1])
    return None
