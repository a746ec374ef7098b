"""All reading of Parquet and CSV with pyarrow: from paths and Arrow's own buffers, within the limits of `limits.py`.

pyarrow must not read from a Python file object or a Python buffer. Its threads can release the object after the
interpreter has ended, which aborts the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from spurmix.core.files import FileError
from spurmix.core.limits import MAX_CSV_ROW_BYTES, MAX_TABLE_BYTES, MAX_TABLE_ROWS

if TYPE_CHECKING:
    from pyarrow import DataType, NativeFile, RecordBatch, Table
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 4096
"""Rows that are read at a time. The size of the columns is checked after each batch."""
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


def open_parquet(file: NativeFile, expected_rows: int | None = None) -> ParquetFile:
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
    return opened


def check_rows(count: int) -> None:
    """Check the number of rows of a table to pack.

    Raises `FileError` if there are more than `MAX_TABLE_ROWS`.
    """
    if count > MAX_TABLE_ROWS:
        raise FileError(
            f"has {count:,} rows, the maximum is {MAX_TABLE_ROWS:,}; split the table and merge the datasets"
        )


def read_columns(file: ParquetFile, columns: Sequence[str]) -> Table:
    """Read columns of a Parquet file.

    Raises `FileError` if they need more than `MAX_TABLE_BYTES` of memory.
    """
    import pyarrow

    size = 0
    batches: list[RecordBatch] = []
    for batch in file.iter_batches(BATCH_ROWS, columns=columns):
        size += batch.nbytes
        if size > MAX_TABLE_BYTES:
            raise FileError(f"needs more than {MAX_TABLE_BYTES:,} bytes of memory")
        batches.append(batch)
    if not batches:
        return file.schema_arrow.empty_table().select(columns)
    return pyarrow.Table.from_batches(batches).combine_chunks()


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
    table = pyarrow.csv.read_csv(
        file,
        # One thread: only then do errors name the row. A row must fit into two blocks.
        read_options=pyarrow.csv.ReadOptions(block_size=MAX_CSV_ROW_BYTES, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(include_columns=columns, column_types=dict(types), **nulls),
    )
    check_rows(table.num_rows)
    return table
