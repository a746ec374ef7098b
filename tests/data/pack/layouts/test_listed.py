"""Attributes of a folder of images from a second table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from image_samples import save_image
from typer.testing import CliRunner

from spurmix import PackedDataset
from spurmix.cli.app import app
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.layouts.listed import with_listed_attributes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, name, n in (
        ("train", "cat", 0),
        ("train", "cat", 1),
        ("train", "dog", 2),
        ("val", "dog", 2),
        ("val", "cat", 4),
    ):
        save_image(tmp_path / "images" / split / name / f"{n}.png", n)
    return tmp_path / "images"


def table(root: Path, text: str) -> Path:
    path = root.parent / "list.csv"
    path.write_text(text)
    return path


def attributes(root: Path, text: str, **options: Any) -> dict[str, dict[str, int]]:
    found = with_listed_attributes(from_folder(root), table(root, text), **options).metadata
    return {name: dict(zip(found.sources, values.tolist(), strict=True)) for name, values in found.attributes.items()}


def test_a_list_of_images_with_the_feature(root: Path) -> None:
    found = attributes(root, "path\ntrain/cat/1.png\n4.png\n")["feature"]
    assert found == {
        "train/cat/0.png": -1,
        "train/cat/1.png": 1,
        "train/dog/2.png": -1,
        "val/cat/4.png": 1,
        "val/dog/2.png": -1,
    }
    absent = attributes(root, "file\ntrain/cat/1.png\n4.png\n", path="file", unlisted="absent")["feature"]
    assert {name for name, value in absent.items() if value == 0} == {
        "train/cat/0.png",
        "train/dog/2.png",
        "val/dog/2.png",
    }


def test_columns_of_attributes(root: Path) -> None:
    found = attributes(root, "path,place,night\n0.png,snow,0\n1.png,grass,1\n4.png,,1\n", attributes=["place", "night"])
    assert found["place"] == {
        "train/cat/0.png": 1,
        "train/cat/1.png": 0,
        "train/dog/2.png": -1,
        "val/cat/4.png": -1,
        "val/dog/2.png": -1,
    }
    assert found["night"]["val/cat/4.png"] == 1 and found["night"]["train/dog/2.png"] == -1


def test_invalid_rows(root: Path) -> None:
    for text, message in (
        ("path\n9.png\n", "row 0: the dataset has no image '9.png'"),
        ("path\n0.png\n2.png\n", "row 1: several images are named '2.png'; give the path from the root"),
        ("path\n0.png\ntrain/cat/0.png\n", "row 1: 'train/cat/0.png' is also in row 0"),
        ("path\n", "has no rows"),
        ("image\n0.png\n", "no column 'path'"),
    ):
        with pytest.raises(ValueError, match=message):
            attributes(root, text)
    with pytest.raises(ValueError, match="absent is for a list without attribute columns"):
        attributes(root, "path,a\n0.png,1\n", attributes=["a"], unlisted="absent")


def test_the_command_packs_listed_attributes(root: Path, tmp_path: Path) -> None:
    path = table(root, "path\ntrain/cat/1.png\n")

    def pack(*options: object) -> str:
        done = CliRunner().invoke(
            app,
            ["pack", str(root), str(tmp_path / "packed"), "--size", "8", *map(str, options)],
            catch_exceptions=False,
        )
        assert done.exit_code == 0, done.output
        return done.output

    assert "has 1 of 5 images" in pack("--attribute-table", path, "--unlisted", "absent")
    groups = PackedDataset(tmp_path / "packed").split("train").groups("feature")
    assert [groups.group_name(g) for g in range(3)] == ["cat, absent", "cat, present", "dog, absent"]
    for options, message in (
        (("--unlisted", "absent"), "--unlisted requires --attribute-table"),
        (("--unlisted", "none", "--attribute-table", path), "--unlisted must be one of unknown, absent"),
        (("--layout", "mnist", "--attribute-table", path), "--attribute-table is for --layout folder, not mnist"),
        (("--attribute", "feature"), "--attribute is for --layout"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(*options)
