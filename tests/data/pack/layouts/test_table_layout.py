"""CSV and Parquet tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.layouts.table import from_table


def test_paths_are_strings(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,place\n0001,NA,1\n0002,b,\n")
    found = from_table(tmp_path / "t.csv", attributes=["place"])
    assert found.metadata.sources == ["0001", "0002"] and found.metadata.class_names == ("NA", "b")
    assert found.metadata.attributes["place"].tolist() == [1, -1]
    with pytest.raises(ValueError, match="row 1: the path is missing"):
        (tmp_path / "t.csv").write_text("path,label\na.png,1\n,2\n")
        from_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n../x.jpg,0\n", "row 0: the path must be relative to the root and below it, got '../x.jpg'"),
        ("path,label\n/etc/x.jpg,0\n", "must be relative to the root"),
        ("path,label\na.jpg,0\nb.jpg,1\n./a.jpg,1\n", "row 2: './a.jpg' is also in row 0"),
        ("path,label\na.jpg,0.5\n", "row 0: label must be an integer or a name, got 0.5"),
        ("path,label\na.jpg,0\nb.jpg,\n", "row 1: label is missing"),
        ("path,label\na.jpg,0\nb.jpg,-3\n", "row 1: label must be 0 or more, got -3"),
        ("file,label\na.jpg,0\n", "no column 'path'; the columns are file, label"),
        ("path,label\n", "has no rows"),
        ("", "cannot read"),
    ],
)
def test_invalid_tables(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        from_table(table)
    with pytest.raises(ValueError, match="no images in class folders"):
        from_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,split\na,0,train\nb,1,\n", r"row 1: split is missing \(column 'split'\)"),
        ("path,label,split\na,0,1\nb,1,\n", "row 1: split is missing"),
        (
            "path,label,split\na,0,1\nb,30000000,1\n",
            "row 1: label must be a class number below 1,000, or a name, got 30000000",
        ),
        ("path,label,split,label\na,0,1,1\n", "there are two columns 'label'"),
    ],
)
def test_missing_splits_repeated_columns_and_large_labels(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        from_table(tmp_path / "t.csv", split="split")


def test_float_columns_with_missing_values(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,place\na,1.0,1.0\nb,0.0,\nc,2.0,0.0\n")
    table = pyarrow.table({"path": ["a", "b", "c"], "label": [1.0, 0.0, 2.0], "place": [1.0, float("nan"), 0.0]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        found = from_table(tmp_path / name, attributes=["place"])
        assert found.metadata.labels.tolist() == [1, 0, 2] and found.metadata.class_names == ("0", "1", "2")
        assert found.metadata.attributes["place"].tolist() == [1, -1, 0]
        assert found.notes == ("place is unknown in 1 of 3 rows",)
    twice = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"]), pyarrow.array([0]), pyarrow.array([1])], ["path", "label", "label"]
    )
    pyarrow.parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="there are two columns 'label'"):
        from_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("place", ["-1,1,1,-1", "-1,1,1,", "-1.0,1.0,1.0,1.0"])
def test_columns_coded_minus_one_and_one_are_refused(place: str, tmp_path: Path) -> None:
    rows = [f"{n},{n % 2},{value}" for n, value in enumerate(place.split(","))]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,place", *rows]))
    with pytest.raises(
        ValueError, match="place is coded -1 and 1, and -1 means unknown; code the two values as 0 and 1"
    ):
        from_table(tmp_path / "t.csv", attributes=["place"])
    with pytest.raises(ValueError, match=r"place is coded -1 and 1|place is missing"):
        from_table(tmp_path / "t.csv", label="place")


@pytest.mark.parametrize("missing", ["-1", "-1.0", ""])
def test_splits_without_labels_are_left_out(missing: str, tmp_path: Path) -> None:
    rows = ["a,0,train,in", "t,{},test,far", "b,1,train,out", "u,{},test,", "c,1,val,"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,part,place", *rows]).format(missing, missing))
    found = from_table(tmp_path / "t.csv", split="part", attributes=["place"])
    assert found.metadata.sources == ["a", "b", "c"] and found.metadata.labels.tolist() == [0, 1, 1]
    assert found.metadata.attribute_names == {"place": ("in", "out")}
    assert found.notes == (
        "split test is left out, because its 2 rows have no labels",
        "place is unknown in 1 of 3 rows",
    )
    (tmp_path / "t.csv").write_text("\n".join(["path,label,part,place", *rows, "v,0,test,in"]).format(-1, -1))
    with pytest.raises(ValueError, match="row 1: label must be 0 or more, got -1"):
        from_table(tmp_path / "t.csv", split="part")
    (tmp_path / "t.csv").write_text("path,label\na,-1\nb,-1\n")
    with pytest.raises(ValueError, match="row 0: label must be 0 or more, got -1"):
        from_table(tmp_path / "t.csv")


def test_texts_of_a_split_without_labels_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label,part\none,-1,test\ntwo,0,train\nthree,1,train\n")
    found = from_table(tmp_path / "t.csv", text="text", split="part")
    read = found.reader()
    assert [read(n) for n in range(len(found))] == ["two", "three"]


def test_paths_with_a_nul_character(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a", "b\0c"], "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet, row 1: the path 'b\\x00c' has a NUL character"):
        from_table(tmp_path / "t.parquet")


def test_a_test_split_labelled_minus_one_among_names_is_left_out(tmp_path: Path) -> None:
    lines = ["path,label,split", "0.png,cat,train", "1.png,dog,train", "2.png,-1,test", "3.png,-1,test"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    rows = from_table(tmp_path / "t.csv", label="label", split="split")
    assert rows.metadata.class_names == ("cat", "dog") and len(rows) == 2
    assert any("split test is left out, because its 2 rows have no labels" in note for note in rows.notes)


SPELLED = ["NA", "None", "nan", "NULL", "N/A", "<NA>", "#N/A", " NA ", "  ", "null", "NaN", "-1"]


def write_table(path: Path, labels: list[str], places: list[str], **more: list[str]) -> None:
    columns = {"path": [f"{n}.png" for n in range(len(labels))], "label": labels, "place": places, **more}
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(pyarrow.table(columns), path)
    else:
        pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("spelled", SPELLED)
def test_strings_that_spell_a_missing_value_are_unknown_attributes(spelled: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"t{suffix}"
    write_table(file, ["cat", "dog", "cat"], ["out", spelled, "in"])
    found = from_table(file, attributes=["place"])
    assert found.metadata.attributes["place"].tolist() == [1, -1, 0]
    assert found.metadata.attribute_names == {"place": ("in", "out")}
    hint = f"; {spelled!a} is read as unknown, rename it if it is a name"
    assert found.notes == (f"place is unknown in 1 of 3 rows{hint}",)
    write_table(file, ["cat", "dog", "cat"], [spelled] * 3)
    assert from_table(file, attributes=["place"]).metadata.attributes["place"].tolist() == [-1] * 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["none", "na", "None", "NA", "nan"])
def test_labels_that_spell_a_missing_value_are_names_with_a_note(name: str, suffix: str, tmp_path: Path) -> None:
    write_table(tmp_path / f"t{suffix}", ["cat", name, "cat"], ["in", "out", "in"])
    found = from_table(tmp_path / f"t{suffix}", attributes=["place"])
    assert set(found.metadata.class_names) == {"cat", name} and len(found) == 3
    assert found.notes == (
        f"classes '{name}' can mean a missing value and are read as names; if so, remove these examples, because labels "
        "must be known",
    )


def test_attributes_that_resemble_a_missing_value_are_names_with_a_note(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ["cat", "dog"], ["none", "hat"])
    found = from_table(tmp_path / "t.csv", attributes=["place"])
    assert found.metadata.attribute_names == {"place": ("hat", "none")}
    assert found.notes == (
        "values of 'place' 'none' can mean a missing value and are read as names; if so, leave them empty",
    )


def test_a_split_whose_labels_spell_missing_values_is_left_out(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ["cat", "dog", "NA"], ["in"] * 3, part=["train", "train", "test"])
    found = from_table(tmp_path / "t.csv", split="part")
    assert len(found) == 2 and found.notes == ("split test is left out, because its 1 rows have no labels",)
