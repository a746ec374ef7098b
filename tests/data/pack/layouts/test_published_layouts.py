"""Waterbirds and CelebA as published."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_samples import save_image

from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.celeba import from_celeba
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.pack.layouts.waterbirds import from_waterbirds


def test_celeba_folder_and_table(tmp_path: Path) -> None:
    root = tmp_path / "celeba"
    for n in range(6):
        save_image(root / f"img_align_celeba/{n:06d}.jpg", n)
    (root / "list_attr_celeba.csv").write_text(
        "image_id,Blond_Hair,Male,Young\n"
        + "".join(f"{n:06d}.jpg,{1 if n % 2 else -1},{1 if n > 2 else -1},1\n" for n in range(6))
    )
    (root / "list_eval_partition.csv").write_text(
        "image_id,partition\n" + "".join(f"{n:06d}.jpg,{n // 2}\n" for n in range(6))
    )
    found = from_celeba(root, attributes=("Male", "Young"))
    assert found.metadata.labels.tolist() == [0, 1] * 3 and found.metadata.splits[-1] == "test"
    pack_images(found, tmp_path / "c", size=(8, 12), fit="exact", limit=1)
    data = PackedDataset(tmp_path / "c")
    assert data.array.shape == (3, 8, 12, 3) and data.groups("Young").num_groups == 1
    with pytest.raises(ValueError, match="attribute must be one of Male, Young"):
        data.groups("Hat")

    for split, name, n in (("train", "cat", 0), ("train", "dog", 1), ("val", "dog", 2)):
        save_image(tmp_path / "tree" / split / name / f"{n}.jpg", n)
    tree = from_folder(tmp_path / "tree")
    assert tree.metadata.class_names == ("cat", "dog") and tree.metadata.splits == ["train", "train", "val"]
    assert tree.metadata.labels.tolist() == [0, 1, 1]
    flat = from_folder(tmp_path / "tree" / "train")
    assert flat.metadata.class_names == ("cat", "dog") and set(flat.metadata.splits) == {"train"}

    table = tmp_path / "tree" / "list.csv"
    table.write_text("file,kind,place\ntrain/cat/0.jpg,cat,indoors\ntrain/dog/1.jpg,dog,\nval/dog/2.jpg,dog,outdoors\n")
    rows = from_table(table, path="file", label="kind", attributes=("place",))
    assert rows.metadata.attributes["place"].tolist() == [0, -1, 1] and rows.notes == (
        "place is unknown in 1 of 3 rows",
    )
    assert rows.metadata.attribute_names == {"place": ("indoors", "outdoors")}


def test_invalid_rows_of_published_tables(tmp_path: Path) -> None:
    rows = ["img_filename,y,split,place", "a.png,0,0,1", "b.png,1,0,", "c.png,1,2,0"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    found = from_waterbirds(tmp_path)
    assert found.metadata.attributes["place"].tolist() == [1, -1, 0]
    assert found.notes == ("place is unknown in 1 of 3 rows",)
    for row, message in (
        ("d.png,0,3,0", "row 3: split must be 0, 1 or 2"),
        ("d.png,x,0,0", "row [03]: y must be"),
        ("d.png,2,0,0", "row 3: y must be 0 or 1, got 2"),
        ("../d.png,0,0,0", "row 3: the path must be relative to the root and below it, got '../d.png'"),
        ("a.png,0,0,0", "row 3: 'a.png' is also in row 0"),
    ):
        (tmp_path / "metadata.csv").write_text("\n".join([*rows, row]))
        with pytest.raises(ValueError, match=message):
            from_waterbirds(tmp_path)
    (tmp_path / "metadata.csv").write_text(rows[0] + "\n")
    with pytest.raises(ValueError, match="has no rows"):
        from_waterbirds(tmp_path)
    (tmp_path / "list_attr_celeba.csv").write_text("image_id,Blond_Hair,Male\n1.jpg,1,-1\n2.jpg,1,1\n")
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,0\n")
    with pytest.raises(ValueError, match=r"row 1: '2\.jpg' has no partition"):
        from_celeba(tmp_path)
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,0\n2.jpg,1\n")
    with pytest.raises(ValueError, match="no column 'Hat'; the columns are image_id, Blond_Hair, Male"):
        from_celeba(tmp_path, attributes=["Hat"])
