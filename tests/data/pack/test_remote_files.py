"""Folders and files on other file systems."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFile
from image_samples import idx, png

from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack import remote
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.job import BrokenFiles
from spurmix.data.pack.layouts import table
from spurmix.data.pack.layouts.civilcomments import from_civilcomments
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.layouts.mnist import from_mnist
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.pack.layouts.waterbirds import from_waterbirds
from spurmix.data.pack.manifest import check_paths
from spurmix.data.pack.remote import join_url, parent_url


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty file system in memory."""
    system = fsspec.filesystem("memory")
    before = dict(system.store), list(system.pseudo_dirs)
    system.store.clear()
    yield system
    system.store.clear()
    system.store.update(before[0])
    system.pseudo_dirs[:] = before[1]


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
            from_folder(join_url(root, "pictures")),
            from_waterbirds(root),
            *(from_table(join_url(root, name)) for name in tables),
            from_table(join_url(root, tables[0]), root),
        )
    ):
        pack_images(found, target / str(n), size=6, workers=3)
        data = PackedDataset(target / str(n))
        values = {
            source[-5]: v for source, v in zip(data.metadata.sources, data.array[:, 0, 0, 0].tolist(), strict=True)
        }
        assert values == {str(k): 20 * k for k in range(4)}
    with pytest.raises(ValueError, match="there is no file"):
        from_table(join_url(root, "nothing.csv"))
    with pytest.raises(ValueError, match="there is no folder"):
        from_folder(join_url(root, "nothing"))


def test_remote_folders_and_tables_in_memory(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    remote_birds(memory.pipe_file, "/remote/birds", parquet=True)
    try:
        check_remote("memory://remote/birds", tmp_path, ("list.csv", "list.parquet"))
        memory.pipe_file("/remote/birds/pictures/dog/0.png", b"")
        with pytest.raises(BrokenFiles, match=r"dog/0\.png: the file is empty"):
            pack_images(from_folder("memory://remote/birds/pictures"), tmp_path / "b", size=6)
    finally:
        memory.rm("/remote", recursive=True)


def test_images_in_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        remote_birds(archive.writestr, "birds")
        images, labels = np.zeros((7, 5, 4), np.uint8), np.arange(7, dtype=np.uint8) % 3
        archive.writestr("digits/train-images-idx3-ubyte", idx(images))
        archive.writestr("digits/train-labels-idx1-ubyte", idx(labels))
    check_remote(f"zip://birds::file://{tmp_path}/x.zip", tmp_path, ("list.csv",))
    assert len(from_mnist(f"zip://digits::file://{tmp_path}/x.zip")) == 7
    with pytest.raises(ValueError, match="cannot open"):
        from_folder("nonsense://x")


def test_join_and_parent_url() -> None:
    for place, folder in (
        ("a/b.csv", "a"),
        ("b.csv", "."),
        ("/a/b.csv", "/a"),
        ("s3://a/b.csv", "s3://a"),
        ("zip://a/b.csv::file:///x.zip", "zip://a::file:///x.zip"),
        ("zip://b.csv::file:///x.zip", "zip://::file:///x.zip"),
    ):
        assert parent_url(place) == folder
        assert parent_url(join_url(folder, "c")) == folder


def test_paths_and_urls_that_are_errors(tmp_path: Path) -> None:
    check_paths(["..dots/x.png", "...png"], "here")
    for wrong in ("..", "../x", "a/../../x"):
        with pytest.raises(ValueError, match="must be relative to the root"):
            check_paths([wrong], "here")
    with pytest.raises(ImportError, match=r"root: s3://bucket/x needs another package: .*s3fs"):
        from_folder("s3://bucket/x")
    with pytest.raises(ValueError, match="reads local files only"):
        from_civilcomments("s3://bucket/x")
    with pytest.raises(FileNotFoundError):
        from_civilcomments(f"file://{tmp_path}")


def test_remote_files_have_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    remote_birds(memory.pipe_file, "/remote/birds")
    try:
        monkeypatch.setattr(remote, "MAX_IMAGE_BYTES", 10)
        with pytest.raises(BrokenFiles, match=r"dog/0\.png: has more than 10 bytes, which is the maximum"):
            pack_images(from_folder("memory://remote/birds/pictures"), tmp_path / "b", size=6)
        monkeypatch.setattr(table, "MAX_REMOTE_TABLE_BYTES", 10)
        with pytest.raises(ValueError, match=r"list\.csv has more than 10 bytes, the maximum of a remote table"):
            from_table("memory://remote/birds/list.csv")
    finally:
        memory.rm("/remote", recursive=True)


@pytest.mark.parametrize(
    "markers",
    [["/root"], ["/root/cat"], ["/root/", "/root/cat/", "/root/cow/"], ["/root/cat_$folder$"], ["/root", "/root/cat"]],
)
def test_empty_objects_that_stand_for_folders(markers: list[str], memory: Any) -> None:
    for n, name in enumerate(("cat/1.png", "dog/deep/2.png")):
        memory.pipe(f"/root/{name}", png(n))
    memory.pipe("/root/list.csv", b"path,label\ncat/1.png,cat\ndog/deep/2.png,dog\n")
    for marker in markers:
        memory.store[marker] = MemoryFile(memory, marker, b"")
    found_by = [from_folder("memory://root"), from_folder("memory://root/")]
    if "/root" not in markers:  # a file system in memory opens no file below an object
        found_by.append(from_table("memory://root/list.csv"))
    for found in found_by:
        assert found.metadata.sources == ["cat/1.png", "dog/deep/2.png"]
        assert [note for note in found.notes if "list.csv" not in note] == []
    assert remote.list_files(memory, "/root") == ["cat/1.png", "dog/deep/2.png", "list.csv"]


def test_the_root_of_a_file_system(memory: Any, tmp_path: Path) -> None:
    memory.pipe({"/cat/1.png": png(0), "/dog/2.png": png(1)})
    memory.store["/cat"] = MemoryFile(memory, "/cat", b"")
    assert from_folder("memory://").metadata.sources == ["cat/1.png", "dog/2.png"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("cat/", b"")
        file.writestr("cat/1.png", png(0))
    assert from_folder(f"zip://::file://{tmp_path}/a.zip").metadata.sources == ["cat/1.png"]


def test_empty_files_are_not_left_out(memory: Any) -> None:
    memory.pipe({"/root/cat/1.png": b"", "/root/cat/2.png": png(1)})
    assert from_folder("memory://root").metadata.sources == ["cat/1.png", "cat/2.png"]
