"""Hidden and system files, classes without examples, and labels that look the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_samples import birds, idx, png

from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.celeba import from_celeba
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.layouts.mnist import from_mnist
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.pack.layouts.waterbirds import from_waterbirds
from spurmix.data.pack.manifest import Manifest
from spurmix.data.pack.merge import merge
from spurmix.data.pack.strays import is_stray

STRAYS = (
    ".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "cat/.hidden.png", "__MACOSX/cat/._0.png",
    "dog/@eaDir/0.png", "@eaDir/0.png", "cat/Thumbs.db", "THUMBS.DB", "Network Trash Folder/1.png", "Temporary Items/1.png", "cat/ehthumbs_vista.db",
    "cat/Thumbs.DB:encryptable", ".DS_Store", "cat/.cache/deep/1.png",
)  # fmt: skip


def write(root: Path, *names: str) -> None:
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(n))


@pytest.mark.parametrize("path", STRAYS)
def test_stray_paths(path: str) -> None:
    assert is_stray(path)


@pytest.mark.parametrize("path", ["cat/0.png", "./cat/0.png", "a..b/x.y.png", "MACOSX/eaDir.png", "thumbs/db.png"])
def test_ordinary_paths(path: str) -> None:
    assert not is_stray(path)


@pytest.mark.parametrize("split", ["", "train/"])
def test_stray_files_are_no_examples_of_folders(split: str, tmp_path: Path) -> None:
    write(tmp_path, *(split + name for name in ("cat/0.png", "cat/a..b.png", "dog/..png", "dog/1.png", *STRAYS)))
    found = from_folder(tmp_path)
    assert found.metadata.class_names == ("cat", "dog")
    assert [s.removeprefix(split) for s in found.metadata.sources] == ["cat/0.png", "cat/a..b.png", "dog/1.png"]
    assert found.notes == (f"left out 15 hidden or system files, such as {split}.DS_Store",)


def test_only_stray_files(tmp_path: Path) -> None:
    write(tmp_path, ".cache/0.png")
    with pytest.raises(ValueError, match="no images in class folders"):
        from_folder(tmp_path)
    (tmp_path / "t.csv").write_text("path,label\n.cache/0.png,a\n")
    with pytest.raises(ValueError, match=r"all files are hidden or system files, such as \.cache/0\.png"):
        from_table(tmp_path / "t.csv")


def table(root: Path) -> Manifest:
    (root / "t.csv").write_text(
        "path,label,place\n.ipynb_checkpoints/0.png,.ipynb_checkpoints,x\ncat/1.png,cat,in\n__MACOSX/._2.png,__MACOSX,y\n"
        "dog/3.png,dog,out\n./cat/4.png,cat,\n"
    )
    return from_table(root / "t.csv", attributes=["place"])


def waterbirds(root: Path) -> Manifest:
    (root / "metadata.csv").write_text(
        "img_filename,y,split,place\na.png,0,0,1\n._a.png,0,0,1\nb.png,1,1,0\n@eaDir/b.png,1,1,0\n"
    )
    return from_waterbirds(root)


def celeba(root: Path) -> Manifest:
    names = ["1.png", ".1.png", "2.png", "Thumbs.db"]
    (root / "list_attr_celeba.csv").write_text(
        "image_id,Blond_Hair,Male\n" + "".join(f"{name},{n % 4 // 2 * 2 - 1},1\n" for n, name in enumerate(names))
    )
    (root / "list_eval_partition.csv").write_text("image_id,partition\n" + "".join(f"{name},0\n" for name in names))
    return from_celeba(root)


@pytest.mark.parametrize(
    ("layout", "classes", "labels"),
    [
        (table, ("cat", "dog"), [0, 1, 0]),
        (waterbirds, ("landbird", "waterbird"), [0, 1]),
        (celeba, ("not Blond_Hair", "Blond_Hair"), [0, 1]),
    ],
)
def test_stray_files_are_no_examples_of_tables(
    layout: Callable[[Path], Manifest], classes: tuple[str, ...], labels: list[int], tmp_path: Path
) -> None:
    found = layout(tmp_path)
    assert found.metadata.class_names == classes and found.metadata.labels.tolist() == labels
    assert not any(map(is_stray, found.metadata.sources))
    assert len([note for note in found.notes if "left out 2 hidden or system files" in note]) == 1
    if layout is table:
        assert found.metadata.attribute_names == {"place": ("in", "out")}
        assert found.metadata.attributes["place"].tolist() == [0, 1, -1]


def test_stray_files_of_mnist(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 2, 2), dtype=np.uint8), np.arange(3, dtype=np.uint8)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        (tmp_path / name).write_bytes(idx(array))
        (tmp_path / f"._{name}").write_bytes(b"resource fork")
        (tmp_path / "__MACOSX").mkdir(exist_ok=True)
        (tmp_path / "__MACOSX" / name).write_bytes(b"resource fork")
    assert len(from_mnist(tmp_path)) == 3


def test_classes_without_readable_images_are_removed(tmp_path: Path) -> None:
    write(tmp_path / "root", "ant/0.png", "bee/0.png", "cat/0.png", "cat/1.png")
    (tmp_path / "root/bee/0.png").write_bytes(b"")
    report = pack_images(from_folder(tmp_path / "root"), tmp_path / "t", size=4, broken="skip")
    data = PackedDataset(tmp_path / "t")
    assert data.metadata.class_names == ("ant", "cat") and data.metadata.labels.tolist() == [0, 1, 1]
    note = "left out 1 class without readable examples: 'bee'"
    assert note in report.notes and note in data.provenance["notes"]
    assert data.groups().num_classes == 2


def test_shards_keep_all_classes_until_they_are_merged(tmp_path: Path) -> None:
    write(tmp_path / "root", "ant/0.png", "bee/0.png", "cat/0.png", "cat/1.png")
    (tmp_path / "root/bee/0.png").write_bytes(b"")
    rows = from_folder(tmp_path / "root")
    parts = [pack_images(rows, tmp_path / "p", size=4, broken="skip", shard=(k, 2)).path for k in range(2)]
    assert PackedDataset(parts[0]).metadata.class_names == ("ant", "bee", "cat")
    data = PackedDataset(merge(parts, tmp_path / "t").path)
    assert data.metadata.class_names == ("ant", "cat") and data.metadata.labels.tolist() == [0, 1, 1]
    assert "occurring" not in data.provenance
    one = PackedDataset(merge(parts[:1], tmp_path / "one").path)
    assert one.metadata.class_names == ("ant", "bee", "cat")


def test_unused_class_numbers_are_kept(tmp_path: Path) -> None:
    root = birds(tmp_path / "birds", 4)
    (root / "t.csv").write_text("path,label\n000.Bird/Bird_0000.png,0\n001.Bird/Bird_0001.png,3\nnone.png,1\n")
    pack_images(from_table(root / "t.csv"), tmp_path / "t", size=4, broken="skip")
    data = PackedDataset(tmp_path / "t")
    assert data.metadata.class_names == ("0", "2", "3") and data.metadata.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ("a,cat,x\nb,cat ,x\n", "classes 'cat' and 'cat ' differ only by white space or Unicode form"),
        ("a,caf\u00e9,x\nb,cafe\u0301,x\n", r"classes 'cafe\u0301' and 'caf\xe9' differ only"),
        ("a,cat,in\nb,dog,in\u00a0\n", r"values of 'place' 'in' and 'in\xa0' differ only"),
    ],
)
def test_labels_that_look_the_same_are_noted(rows: str, note: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,place\n" + rows)
    found = from_table(tmp_path / "t.csv", attributes=["place"])
    assert [n for n in found.notes if n.startswith(note)], found.notes
    assert found.select(np.array([0, 1])).notes == found.notes


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with visible links, and the paths below it that lead to hidden or system files."""
    root = tmp_path / "root"
    write(root, "cat/0.png", "dog/1.png", "cat/.cache/2.png", ".trash/3.png", "cat/.4.png", "__MACOSX/deep/5.png")
    write(tmp_path, ".else/6.png", "else/7.png", "else/.8.png", "else/sub/9.png")
    strays = {
        "cat/x": ".cache", "cat/y.png": ".4.png", "cat/z.png": "../.trash/3.png", "dog/m": "../__MACOSX/deep",
        "dog/o": "../../.else", "dog/p.png": "../../else/.8.png", "dog/w": "../cat/x",
    }  # fmt: skip
    for name, target in {**strays, "dog/q": "../../else", "dog/r.png": "../../.else/6.png"}.items():
        link(root / name, target)
    link(root / "cat/loop", "..")
    paths = ["cat/x/2.png", "cat/y.png", "cat/z.png", "dog/m/5.png", "dog/o/6.png", "dog/p.png", "dog/w/2.png"]
    return root, paths


KEPT = ["cat/0.png", "dog/1.png", "dog/q/7.png", "dog/q/sub/9.png", "dog/r.png"]


def test_links_to_strays_are_no_examples_of_folders(linked: tuple[Path, list[str]]) -> None:
    root, _ = linked
    for given in (str(root), f"file://{root}", f"{root}/"):
        found = from_folder(given)
        assert found.metadata.sources == KEPT
        assert found.notes == ("left out 12 hidden or system files, such as .trash/3.png",)


def test_links_to_strays_are_no_examples_of_tables(linked: tuple[Path, list[str]]) -> None:
    root, paths = linked
    rows = [f"{path},{path.split('/')[0]}" for path in (*KEPT, *paths)]
    (root / "t.csv").write_text("\n".join(["path,label", *rows]))
    found = from_table(root / "t.csv")
    assert found.metadata.sources == KEPT
    assert found.notes == (f"left out {len(paths)} hidden or system files, such as cat/x/2.png",)


def test_links_into_content_stores_are_examples(tmp_path: Path) -> None:
    write(tmp_path, ".git/annex/objects/a/k1.png", ".dvc/cache/files/k2.png")
    link(tmp_path / "cat/1.png", "../.git/annex/objects/a/k1.png")
    link(tmp_path / "dog/2.png", "../.dvc/cache/files/k2.png")
    assert from_folder(tmp_path).metadata.sources == ["cat/1.png", "dog/2.png"]


def test_links_that_form_a_loop(tmp_path: Path) -> None:
    write(tmp_path, "cat/0.png", "dog/1.png")
    link(tmp_path / "cat/a", "../dog")
    link(tmp_path / "dog/b", "../cat")
    link(tmp_path / "dog/self", "self")
    found = from_folder(tmp_path)
    assert found.metadata.sources == ["cat/0.png", "cat/a/1.png", "dog/1.png", "dog/b/0.png"]
    assert found.notes == ("skipped 2 files without an image suffix, such as cat/a/self",)
