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
    with pytest.raises(ValueError, match=r"t\.csv has more than 1,000 bytes in row 0"):
        read_table(tmp_path / "t.csv")
    rows = "".join(f'"a\n""{n}",0\n' for n in range(30))
    for text, where in (
        (f"path,label\n{rows}{'x' * 5000},0\n", "row 30"),
        (f"{'x' * 5000},label\na,0\n", "its header"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ValueError, match=rf"t\.csv has more than 1,000 bytes in {where}"):
            read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("column", ["path", "label", "place", "split"])
@pytest.mark.parametrize("encoding", [None, "PLAIN", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("size", [5_000, 3_000_000])
def test_wide_values_are_refused(column: str, encoding: str | None, size: int, tmp_path: Path) -> None:
    values: dict[str, list[str]] = {
        "path": ["a.png", "b.png", "c.png"], "label": ["x", "y", "x"], "place": ["l", "s", "s"], "split": ["t", "t", "t"],
    }  # fmt: skip
    values[column][1:] = ["A" * size] * 2
    path, chosen = tmp_path / "t.parquet", None if encoding is None else dict.fromkeys(values, encoding)
    pyarrow.parquet.write_table(pyarrow.table(values), path, use_dictionary=encoding is None, column_encoding=chosen)
    with (tmp_path / "t.csv").open("w") as file:
        file.writelines(",".join(row) + "\n" for row in (values, *zip(*values.values(), strict=True)))
    for name in ("t.parquet", "t.csv"):
        with pytest.raises(
            ValueError, match=rf"{name} has .*column '{column}', a value may have at most 4,096"
        ) as caught:
            from_table(tmp_path / name, attributes=["place"], split="split")
        assert len(str(caught.value)) < 400
    if column != "path":
        assert len(from_table(path, attributes=[], label="label" if column != "label" else "place")) == 3


def test_a_wide_value_of_many_rows_is_not_repeated_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 4 * tables.BATCH_ROWS
    wide = pyarrow.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int32), ["A" * 5_000_000])
    path = write(tmp_path / "t.parquet", text=wide, label=["x"] * count)
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 1 << 24)
    monkeypatch.setattr(tables, "BATCH_BYTES", 1 << 24)
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(ValueError, match="needs more than 16,777,216 bytes"):
        from_table(path, text="text")
    with pytest.raises(ValueError, match=r"column 'text', a value may have at most 4,096 bytes"):
        read_table(path, columns=["text"])
    assert pyarrow.total_allocated_bytes() - before < 1 << 26


def test_texts_may_be_longer_than_other_values(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", text=["a " * 5000, "b", None], label=["x", "y", "y"])
    assert from_table(path, text="text").samples[0] == "a " * 5000  # type: ignore[index]
    write(path, text=["a", "b" * ((1 << 24) + 1)], label=["x", "y"])
    with pytest.raises(ValueError, match=r"in column 'text', a value may have at most 16,777,216 bytes"):
        from_table(path, text="text")


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
