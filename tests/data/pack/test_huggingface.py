"""Datasets of the package `datasets`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from image_samples import png

from spurmix.data.dataset import tables
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.huggingface import from_huggingface
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.job import BrokenFiles

datasets: Any = importlib.import_module("datasets")


def hf_images(count: int, first: int = 0) -> Any:
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "cow"]),
            "place": datasets.Value("string"),
            "part": datasets.Value("string"),
        }
    )
    rows = range(first, first + count)
    columns = {
        "picture": [{"bytes": png(n), "path": None} for n in rows],
        "label": [n % 2 for n in rows],
        "place": [None if n == 3 else ("in", "out")[n // 2 % 2] for n in rows],
        "part": [("a", "b")[n % 2] for n in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("hf")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def test_images_from_disk_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = datasets.DatasetDict(train=hf_images(6), test=hf_images(4, 6))
    whole.save_to_disk(str(tmp_path / "saved"))
    whole["train"].to_parquet(str(tmp_path / "rows.parquet"))
    found = from_huggingface(tmp_path / "saved", attributes=["place"])
    assert found.notes == ("place is unknown in 1 of 10 rows",)
    report = pack_images(found, tmp_path / "t", size=6, limit=5)
    data = PackedDataset(report.path)
    assert data.splits == {"train": 5, "test": 4} and data.metadata.class_names == ("cat", "dog", "cow")
    assert data.array[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert data.metadata.attributes["place"].tolist() == [0, 0, 1, -1, 0, 1, 1, 0, 0]
    assert data.metadata.sources[5] == "test#0" and data.metadata.attribute_names["place"] == ("in", "out")
    parts = [pack_images(found, tmp_path / "s", size=6, shard=(k, 2)).count for k in range(2)]
    assert parts == [5, 5]
    by_column = from_huggingface(str(tmp_path / "rows.parquet"), image="picture", split="part")
    assert by_column.metadata.splits == ["a", "b"] * 3 and by_column.metadata.class_names == ("cat", "dog", "cow")
    shuffled = whole["train"].select([4, 0])
    shuffled.save_to_disk(str(tmp_path / "two"))
    two = from_huggingface(tmp_path / "two")
    pack_images(two, tmp_path / "p2", size=6)
    assert PackedDataset(tmp_path / "p2").array[:, 0, 0, 0].tolist() == [4, 0]
    assert two.samples.digest() != found.samples.digest()  # type: ignore[union-attr]
    assert capsys.readouterr() == ("", "")


def test_unreadable_images(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"f/train/{'cat' if n % 2 else 'dog'}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"f/train/{'cat' if n % 2 else 'dog'}/{n}.png").write_bytes(png(n) if n else png(n)[:40])
    with pytest.raises(BrokenFiles, match=r"1 file cannot be packed: train#\d"):
        pack_images(from_huggingface(tmp_path / "f"), tmp_path / "t", size=4)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [{"bytes": png(1), "path": None}, None, {"bytes": None, "path": "https://x/y.png"}]
    table = pyarrow.table({"image": images, "label": [0, 1, 0]}, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    found = from_huggingface(tmp_path / "rows.parquet")
    report = pack_images(found, tmp_path / "t2", size=4, broken="skip")
    assert report.count == 1 and dict(report.broken) == {
        "train#1": "is missing",
        "train#2": "the image is at https://x/y.png, which is not downloaded",
    }


def test_invalid_columns_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "saved"
    hf_images(3).save_to_disk(str(saved))
    for options, message in (
        (dict(label="kind"), "no column 'kind'; the columns are picture, label, place, part"),
        (dict(attributes=["hat"]), "no column 'hat'"),
        (dict(image="place"), "place must be a column of images"),
        (dict(text="label"), "label must be a column of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            from_huggingface(saved, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"row 3: split is missing \(column 'place'\)"):
        hf_images(5).save_to_disk(str(tmp_path / "gap"))
        from_huggingface(f"file://{tmp_path}/gap", split="place")
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(ValueError, match="no column is of type Image; name the column"):
        from_huggingface(tmp_path / "plain")
    with pytest.raises(ValueError, match="there is no file or folder"):
        from_huggingface(tmp_path / "nowhere")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read by datasets"):
        from_huggingface(tmp_path / "x.parquet")

    messages: list[str] = []

    def refuse(name: str, **options: object) -> None:
        assert options == {"trust_remote_code": False}
        assert messages  # before any request
        raise ConnectionError(f"Couldn't reach {name}\nmore")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"org/birds cannot be read by datasets: Couldn't reach org/birds$"):
        from_huggingface("org/birds", notify=messages.append)
    assert "there is no local path org/birds; the dataset is downloaded from the Hugging Face hub" in messages[0]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'spurmix\[hf\]'"):
        from_huggingface(saved)


def test_stray_files_of_image_folders(tmp_path: Path) -> None:
    for n, name in enumerate(("cat/1.png", "dog/1.png", "@eaDir/1.png", ".ipynb_checkpoints/1.png")):
        (tmp_path / "root" / name).parent.mkdir(parents=True)
        (tmp_path / "root" / name).write_bytes(png(n))
    found = from_huggingface(tmp_path / "root")
    assert found.metadata.class_names == ("cat", "dog") and found.metadata.labels.tolist() == [0, 1]
    assert found.notes == ("left out 1 hidden or system file, such as @eaDir/1.png",)
    pack_images(found, tmp_path / "t", size=6)
    assert sorted(PackedDataset(tmp_path / "t").array[:, 0, 0, 0].tolist()) == [0, 1]


@pytest.mark.parametrize("folder", [False, True])
def test_parquet_with_too_many_rows_is_refused_before_it_is_converted(
    folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_images(6).to_parquet(str(tmp_path / "rows.parquet"))
    monkeypatch.setattr(tables, "MAX_TABLE_ROWS", 5)
    with pytest.raises(ValueError, match=r"rows\.parquet has 6 rows, the maximum is 5"):
        from_huggingface(tmp_path if folder else tmp_path / "rows.parquet")


def test_splits_without_labels_are_left_out(tmp_path: Path) -> None:
    def texts(labels: list[int], first: int) -> Any:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        rows = {"text": [f"text {first + n}" for n in range(len(labels))], "label": labels}
        return datasets.Dataset.from_dict(rows, features=features)

    hidden = datasets.DatasetDict(test=texts([-1, -1], 0), train=texts([0, 1], 2))
    hidden.save_to_disk(str(tmp_path / "hidden"))
    found = from_huggingface(tmp_path / "hidden", text="text")
    assert found.notes == ("split test is left out, because its 2 rows have no labels",)
    absent = datasets.DatasetDict(test=texts([0, 0], 0).remove_columns("label"), train=texts([0, 1], 2))
    absent.save_to_disk(str(tmp_path / "absent"))
    other = from_huggingface(tmp_path / "absent", text="text")
    assert other.notes == ("split test is left out, because it has no column label",)
    for manifest in (found, other):
        read = manifest.reader()
        assert [read(n) for n in range(len(manifest))] == ["text 2", "text 3"]
        assert manifest.metadata.splits == ["train", "train"] and manifest.metadata.labels.tolist() == [0, 1]
        assert manifest.metadata.class_names == ("no", "yes")


def test_class_labels_and_strings_that_spell_a_missing_value_are_unknown(tmp_path: Path) -> None:
    features = {
        "image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]),
        "place": datasets.ClassLabel(names=["out", "NA", "in"]), "hat": datasets.Value("string"),
    }  # fmt: skip
    columns = {
        "image": [{"bytes": png(n), "path": None} for n in range(3)], "label": [0, 1, 0], "place": [0, 1, 2],
        "hat": ["yes", "nan", "no"],
    }  # fmt: skip
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(str(tmp_path / "d"))
    found = from_huggingface(tmp_path / "d", attributes=["place", "hat"])
    assert found.metadata.attributes["place"].tolist() == [0, -1, 1]
    assert found.metadata.attribute_names == {"place": ("out", "in"), "hat": ("no", "yes")}
    assert found.notes == (
        "place is unknown in 1 of 3 rows; 'NA' is read as unknown, rename it if it is a name",
        "hat is unknown in 1 of 3 rows; 'nan' is read as unknown, rename it if it is a name",
    )


def write_images(root: Path, *names: str) -> None:
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(n))


CLASS_FOLDERS = ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")


@pytest.mark.parametrize(("stray", "usual"), [("cover.png", "cat/1.png"), ("dog/more/5.png", "cat/1.png")])
def test_an_image_at_another_depth_is_named(stray: str, usual: str, tmp_path: Path) -> None:
    write_images(tmp_path, *CLASS_FOLDERS)
    assert from_huggingface(tmp_path).metadata.class_names == ("cat", "dog")
    write_images(tmp_path, stray)
    with pytest.raises(ValueError, match=rf"no column 'label'.*because '{stray}' has another depth than '{usual}'"):
        from_huggingface(tmp_path)


def test_an_image_at_another_depth_in_one_split_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in CLASS_FOLDERS))
    write_images(tmp_path, "test/cover.png")
    with pytest.raises(ValueError, match=r"no column 'label'.*because 'test/cover\.png' has another depth than"):
        from_huggingface(tmp_path)


def test_a_single_class_folder_has_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png", "cat/2.png")
    with pytest.raises(ValueError, match=r"no column 'label'.*no labels from the only class folder 'cat'"):
        from_huggingface(tmp_path)


def test_splits_with_other_class_labels_are_refused(tmp_path: Path) -> None:
    one, other = hf_images(4), hf_images(4)
    names = datasets.ClassLabel(names=["dog", "cat", "cow"])
    datasets.DatasetDict(train=one, test=other.cast_column("label", names)).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"split test differ from those of split train: 'label' is ClassLabel\(names="):
        from_huggingface(tmp_path / "d")


@pytest.mark.parametrize("column", ["place", "part"])
def test_long_values_are_refused(column: str, tmp_path: Path) -> None:
    rows = [str(n % 2) for n in range(6)]
    long = [*rows[:4], "x" * 5000, rows[5]]
    columns = {"text": rows, "label": [0, 1] * 3, "place": rows, "part": rows, column: long}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(
        ValueError, match=rf"d has 5,000 bytes in row 4, column '{column}', a value may have at most 4,096"
    ):
        from_huggingface(tmp_path / "d", text="text", attributes=["place"], split="part")
