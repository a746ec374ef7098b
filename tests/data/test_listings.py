"""What can be packed besides image files on this disk: idx files, Hugging Face datasets, remote folders; links and names."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack import huggingface, remote
from spurmix.data.pack import manifest as listing
from spurmix.data.pack.images import BrokenFiles, pack_images
from spurmix.data.pack.layouts import published

RNG = np.random.default_rng(3)


def png(value: int, size: tuple[int, int] = (6, 6)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


DIGITS = {
    name: (RNG.integers(0, 256, (count, 5, 4), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 3)
    for name, count in (("train", 7), ("t10k", 4))
}


def write_mnist(root: Path, zipped: bool, dot: str = "-") -> Path:
    root.mkdir()
    for name, (images, labels) in DIGITS.items():
        for what, array in ((f"images{dot}idx3", images), (f"labels{dot}idx1", labels)):
            data = gzip.compress(idx(array)) if zipped else idx(array)
            (root / f"{name}-{what}-ubyte{'.gz' * zipped}").write_bytes(data)
    return root


@pytest.mark.parametrize(("zipped", "dot"), [(True, "-"), (False, ".")])
def test_mnist(zipped: bool, dot: str, tmp_path: Path) -> None:
    found = published.mnist(write_mnist(tmp_path / "m", zipped, dot))
    pack_images(found, tmp_path / "t", size=(5, 4), limit=6)
    data = PackedDataset(tmp_path / "t")
    assert data.splits == {"train": 6, "test": 4} and data.metadata.class_names == ("0", "1", "2")
    for split, name in (("train", "train"), ("test", "t10k")):
        part, (images, labels) = data.split(split), DIGITS[name]
        assert np.array_equal(part.array, images[: len(part), ..., None].repeat(3, 3))
        assert part.metadata.labels.tolist() == labels[: len(part)].tolist()
    assert data.split("test").metadata.sources[2].endswith("ubyte.gz#2" if zipped else "ubyte#2")
    pack_images(found, tmp_path / "large", size=8)
    assert PackedDataset(tmp_path / "large").array.shape == (11, 8, 8, 3)
    digest = found.content.digest()  # type: ignore[union-attr]
    images = DIGITS["train"][0].copy()
    images[3, 2, 2] ^= 1
    (name,) = (tmp_path / "m").glob("train-images*")
    name.write_bytes(idx(images))  # not zipped, whatever its name says
    assert published.mnist(tmp_path / "m").content.digest() != digest  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3-ubyte.gz", lambda d: d[:-20], "train-images-idx3-ubyte.gz is truncated or damaged: Compressed"),
        ("train-images-idx3-ubyte.gz", lambda d: d[:12] + b"\xff" * 30 + d[42:], "is truncated or damaged"),
        ("t10k-images-idx3-ubyte.gz", lambda _: idx(DIGITS["t10k"][0])[:-1], "79 of 80 bytes follow its header"),
        ("t10k-images-idx3-ubyte.gz", lambda _: idx(DIGITS["t10k"][0]) + b"x", "more than 80 bytes follow"),
        ("t10k-images-idx3-ubyte.gz", lambda _: b"\0\0\x08\x03" + b"\xff" * 12, "it claims to hold"),
        ("t10k-images-idx3-ubyte.gz", lambda _: idx(DIGITS["t10k"][1]), "no idx file of bytes with 3 dimensions"),
        ("t10k-labels-idx1-ubyte.gz", lambda _: b"", "t10k-labels-idx1-ubyte.gz is no idx file"),
        ("t10k-labels-idx1-ubyte.gz", lambda _: idx(DIGITS["train"][1]), "has 7 labels, t10k-images-idx3-ubyte.gz 4 images"),
    ],
)  # fmt: skip
def test_damaged_idx_files_are_named(file: str, change: Any, message: str, tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "m", True)
    (root / file).write_bytes(change((root / file).read_bytes()))
    with pytest.raises(ValueError, match=message):
        published.mnist(root)


def test_idx_files_that_are_missing_or_twofold(tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "m", True)
    (root / "emnist-train-images-idx3-ubyte").write_bytes(b"")
    (root / "emnist-train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="are both images of split train"):
        published.mnist(root)
    (root / "emnist-train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="emnist-train-images-idx3-ubyte: its labels, such as emnist-train-labels"):
        published.mnist(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no files such as"):
        published.mnist(tmp_path / "empty")


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


def test_hugging_face_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = datasets.DatasetDict(train=hf_images(6), test=hf_images(4, 6))
    whole.save_to_disk(str(tmp_path / "saved"))
    whole["train"].to_parquet(str(tmp_path / "rows.parquet"))
    found = huggingface.from_datasets(tmp_path / "saved", attributes=["place"])
    assert found.notes == ("place is unknown in 1 of 10 rows",)
    report = pack_images(found, tmp_path / "t", size=6, limit=5)
    data = PackedDataset(report.path)
    assert data.splits == {"train": 5, "test": 4} and data.metadata.class_names == ("cat", "dog", "cow")
    assert data.array[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert data.metadata.attributes["place"].tolist() == [0, 0, 1, -1, 0, 1, 1, 0, 0]
    assert data.metadata.sources[5] == "test#0" and data.metadata.attribute_names["place"] == ("in", "out")
    parts = [pack_images(found, tmp_path / "s", size=6, shard=(k, 2)).count for k in range(2)]
    assert parts == [5, 5]
    by_column = huggingface.from_datasets(str(tmp_path / "rows.parquet"), image="picture", split="part")
    assert by_column.metadata.splits == ["a", "b"] * 3 and by_column.metadata.class_names == ("cat", "dog", "cow")
    shuffled = whole["train"].select([4, 0])
    shuffled.save_to_disk(str(tmp_path / "two"))
    two = huggingface.from_datasets(tmp_path / "two")
    pack_images(two, tmp_path / "p2", size=6)
    assert PackedDataset(tmp_path / "p2").array[:, 0, 0, 0].tolist() == [4, 0]
    assert two.content.digest() != found.content.digest()  # type: ignore[union-attr]
    assert capsys.readouterr() == ("", "")


def test_hugging_face_folder_of_images_and_what_is_broken_there(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"f/train/{'cat' if n % 2 else 'dog'}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"f/train/{'cat' if n % 2 else 'dog'}/{n}.png").write_bytes(png(n) if n else png(n)[:40])
    with pytest.raises(BrokenFiles, match=r"1 file cannot be packed: train#\d"):
        pack_images(huggingface.from_datasets(tmp_path / "f"), tmp_path / "t", size=4)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [{"bytes": png(1), "path": None}, None, {"bytes": None, "path": "https://x/y.png"}]
    table = pyarrow.table({"image": images, "label": [0, 1, 0]}, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    found = huggingface.from_datasets(tmp_path / "rows.parquet")
    report = pack_images(found, tmp_path / "t2", size=4, broken="skip")
    assert report.count == 1 and dict(report.broken) == {
        "train#1": "is missing",
        "train#2": "the image lies at https://x/y.png; nothing is downloaded",
    }


def test_hugging_face_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "saved"
    hf_images(3).save_to_disk(str(saved))
    for options, message in (
        (dict(label="kind"), "no column 'kind'; there are picture, label, place, part"),
        (dict(attributes=["hat"]), "no column 'hat'"),
        (dict(image="place"), "place must be a column of images"),
        (dict(text="label"), "label must be a column of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            huggingface.from_datasets(saved, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"row 3: split is missing \(column 'place'\)"):
        hf_images(5).save_to_disk(str(tmp_path / "gap"))
        huggingface.from_datasets(f"file://{tmp_path}/gap", split="place")
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(ValueError, match="no column is of type Image; name the column"):
        huggingface.from_datasets(tmp_path / "plain")
    with pytest.raises(ValueError, match="there is no file or folder"):
        huggingface.from_datasets(tmp_path / "nowhere")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read by datasets"):
        huggingface.from_datasets(tmp_path / "x.parquet")

    told: list[str] = []

    def refuse(name: str) -> None:
        assert told  # before anything is asked for
        raise ConnectionError(f"Couldn't reach {name}\nmore")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"org/birds cannot be read by datasets: Couldn't reach org/birds$"):
        huggingface.from_datasets("org/birds", notify=told.append)
    assert "no path org/birds here: it is looked up on the Hugging Face hub, and downloaded" in told[0]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'spurmix\[hf\]'"):
        huggingface.from_datasets(saved)


def remote_birds(store: Any, base: str, parquet: bool = False) -> None:
    """The same table and images on any file system."""
    for n in range(4):
        store(f"{base}/pictures/{'cat' if n % 2 else 'dog'}/{n}.png", png(20 * n))
    paths, labels = [f"pictures/{'cat' if n % 2 else 'dog'}/{n}.png" for n in range(4)], [n % 2 for n in range(4)]
    if parquet:
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"path": paths, "label": labels, "size": ["x"] * 4}), stream)
        store(f"{base}/list.parquet", stream.getvalue())
    store(
        f"{base}/list.csv",
        ("path,label\n" + "".join(f"{p},{y}\n" for p, y in zip(paths, labels, strict=True))).encode(),
    )
    rows = "".join(f"{p},{y},{n % 3},{y}\n" for n, (p, y) in enumerate(zip(paths, labels, strict=True)))
    store(f"{base}/metadata.csv", ("img_filename,y,split,place\n" + rows).encode())


def check_remote(root: str, target: Path, tables: tuple[str, ...]) -> None:
    for n, found in enumerate(
        (
            listing.from_folder(remote.beside(root, "pictures")),
            listing.waterbirds(root),
            *(listing.from_table(remote.beside(root, name)) for name in tables),
            listing.from_table(remote.beside(root, tables[0]), root),
        )
    ):
        pack_images(found, target / str(n), size=6, workers=3)
        data = PackedDataset(target / str(n))
        values = {
            source[-5]: v for source, v in zip(data.metadata.sources, data.array[:, 0, 0, 0].tolist(), strict=True)
        }
        assert values == {str(k): 20 * k for k in range(4)}
    with pytest.raises(ValueError, match="there is no file"):
        listing.from_table(remote.beside(root, "nothing.csv"))
    with pytest.raises(ValueError, match="there is no folder"):
        listing.from_folder(remote.beside(root, "nothing"))


def test_remote_folders_and_tables_in_memory(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    remote_birds(memory.pipe_file, "/remote/birds", parquet=True)
    try:
        check_remote("memory://remote/birds", tmp_path, ("list.csv", "list.parquet"))
        memory.pipe_file("/remote/birds/pictures/dog/0.png", b"")
        with pytest.raises(BrokenFiles, match=r"dog/0\.png: the file is empty"):
            pack_images(listing.from_folder("memory://remote/birds/pictures"), tmp_path / "b", size=6)
    finally:
        memory.rm("/remote", recursive=True)


def test_images_in_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        remote_birds(archive.writestr, "birds")
        images, labels = DIGITS["train"]
        archive.writestr("digits/train-images-idx3-ubyte", idx(images))
        archive.writestr("digits/train-labels-idx1-ubyte", idx(labels))
    check_remote(f"zip://birds::file://{tmp_path}/x.zip", tmp_path, ("list.csv",))
    assert len(published.mnist(f"zip://digits::file://{tmp_path}/x.zip")) == 7
    with pytest.raises(ValueError, match="cannot be opened"):
        listing.from_folder("nonsense://x")


def test_places() -> None:
    for place, folder in (
        ("a/b.csv", "a"),
        ("b.csv", "."),
        ("/a/b.csv", "/a"),
        ("s3://a/b.csv", "s3://a"),
        ("zip://a/b.csv::file:///x.zip", "zip://a::file:///x.zip"),
        ("zip://b.csv::file:///x.zip", "zip://::file:///x.zip"),
    ):
        assert remote.parent(place) == folder
        assert remote.parent(remote.beside(folder, "c")) == folder


def test_links_are_followed_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "cat", elsewhere / "deep"):
        folder.mkdir(parents=True)
    for path in (root / "cat/1.png", elsewhere / "2.png", elsewhere / "deep/3.png", root / "loose.png"):
        path.write_bytes(png(1))
    (root / "cat/notes.txt").write_text("x")
    os.symlink(elsewhere, root / "dog")
    os.symlink(root, root / "cat/round")
    os.symlink(tmp_path / "gone.png", root / "cat/dangling.png")
    os.mkfifo(root / "cat/pipe.png")
    found = listing.from_folder(root)
    assert found.metadata.sources == ["cat/1.png", "cat/dangling.png", "cat/pipe.png", "dog/2.png", "dog/deep/3.png"]
    assert found.metadata.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.notes == (
        "1 file in no class folder left out, such as loose.png",
        "1 file that by name is no image left out, such as cat/notes.txt",
    )
    report = pack_images(found, tmp_path / "t", size=4, broken="skip")
    assert report.broken == (("cat/dangling.png", "there is no such file"), ("cat/pipe.png", "is no regular file"))


def test_names_that_are_no_text_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with open(os.fsencode(tmp_path) + b"/cat/\xe9.png", "wb") as file:
        file.write(png(1))
    with pytest.raises(ValueError, match=r"row 0: the name 'cat/\\udce9.png' is no UTF-8"):
        listing.from_folder(tmp_path)


def test_tables_keep_paths_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,place\n0001,NA,1\n0002,b,\n")
    found = listing.from_table(tmp_path / "t.csv", attributes=["place"])
    assert found.metadata.sources == ["0001", "0002"] and found.metadata.class_names == ("NA", "b")
    assert found.metadata.attributes["place"].tolist() == [1, -1]
    with pytest.raises(ValueError, match="row 1: the path is missing"):
        (tmp_path / "t.csv").write_text("path,label\na.png,1\n,2\n")
        listing.from_table(tmp_path / "t.csv")
