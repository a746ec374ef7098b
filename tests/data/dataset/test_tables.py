"""Limits of Parquet and CSV, and the objects that pyarrow reads from."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from image_samples import class_folder

from spurmix.core.files import FileError
from spurmix.data.dataset import tables
from spurmix.data.dataset.format import DatasetError, with_checksum
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.table import from_table, read_table

ROOT = Path(__file__).parents[3]


def write(path: Path, /, **columns: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_only_one_module_reads_with_pyarrow() -> None:
    readers = {
        "OSFile",
        "BufferReader",
        "PythonFile",
        "ParquetFile",
        "read_table",
        "read_csv",
        "py_buffer",
    }
    found = set()
    texts = {path: path.read_text() for path in (ROOT / "spurmix").rglob("*.py")}
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text if "pyarrow" in text or "parquet" in text else "")):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if name in readers and "tables" not in ast.unparse(node.func):  # type: ignore[attr-defined]
                arguments = [ast.unparse(a) for a in node.args]  # type: ignore[attr-defined]
                found.add((path.name, name, *arguments[1:2]))
    found = {call for call in found if call[0] != "tables.py"}
    assert found == {("format.py", "OSFile", "'wb'")}


def set_size(folder: Path, size: int) -> None:
    path = folder / "dataset.json"
    description = json.loads(path.read_text())
    description["files"]["metadata.parquet"] = {"size": size, "checksums": ["x"] * -(-size // description["chunk"])}
    path.write_text(json.dumps(with_checksum(description)))


def test_more_rows_than_the_description_are_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pack_images(class_folder(tmp_path), tmp_path / "t", size=4).path
    count = 300_000
    zeros = pyarrow.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int32), ["train"])
    write(folder / "metadata.parquet", label=np.zeros(count, dtype=np.int64), split=zeros, source=zeros)
    size = (folder / "metadata.parquet").stat().st_size
    set_size(folder, size)
    monkeypatch.setattr(tables, "read_columns", lambda *_: pytest.fail("columns were read"))
    with pytest.raises(DatasetError, match=r"metadata\.parquet has 300,000 rows, expected 12"):
        PackedDataset(folder)


def test_tables_with_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_TABLE_ROWS", 3)
    write(tmp_path / "t.parquet", path=list("abcd"), label=[0] * 4)
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{c},0\n" for c in "abcd"))
    for name in ("t.parquet", "t.csv"):
        with pytest.raises(ValueError, match=f"{name} has 4 rows, the maximum is 3; split the table"):
            from_table(tmp_path / name)


def test_columns_that_grow_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = pyarrow.DictionaryArray.from_arrays(np.zeros(100_000, dtype=np.int32), ["x" * 1000]).cast("string")
    path = write(tmp_path / "t.parquet", path=long, label=[0] * 100_000)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 1 << 23)
    with pytest.raises(ValueError, match="needs more than 8,388,608 bytes of memory"):
        from_table(path)


def test_large_files_and_long_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("path,label\n" + "x" * 5000 + ",0\n")
    with monkeypatch.context() as patch:
        patch.setattr(tables, "MAX_TABLE_BYTES", 100)
        with pytest.raises(ValueError, match=r"t\.csv has 5,014 bytes, the maximum is 100"):
            read_table(tmp_path / "t.csv")
    monkeypatch.setattr(tables, "MAX_CSV_ROW_BYTES", 1000)
    with pytest.raises(ValueError, match="straddling object"):
        read_table(tmp_path / "t.csv")


def test_copies_of_streams_are_limited() -> None:
    assert tables.copy_stream(io.BytesIO(b"abc"), 3).read() == b"abc"
    with pytest.raises(FileError, match="has more than 2 bytes"):
        tables.copy_stream(io.BytesIO(b"abc"), 2)


def test_parquet_without_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet", path=pyarrow.array([], pyarrow.string()), label=pyarrow.array([], pyarrow.int64())
    )
    assert read_table(path, columns=["label"]).column_names == ["label"]
    with pytest.raises(ValueError, match="has no rows"):
        from_table(path)
