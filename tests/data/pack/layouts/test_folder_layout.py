"""Class folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_samples import png

from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.folder import from_folder


def test_links_are_followed_and_skipped_files_are_noted(tmp_path: Path) -> None:
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
    found = from_folder(root)
    assert found.metadata.sources == ["cat/1.png", "cat/dangling.png", "cat/pipe.png", "dog/2.png", "dog/deep/3.png"]
    assert found.metadata.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.notes == (
        "skipped 1 file outside class folders, such as loose.png",
        "skipped 1 file without an image suffix, such as cat/notes.txt",
    )
    report = pack_images(found, tmp_path / "t", size=4, broken="skip")
    assert report.broken == (("cat/dangling.png", "there is no such file"), ("cat/pipe.png", "is not a regular file"))


def test_file_names_that_are_not_utf8_are_errors(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with open(os.fsencode(tmp_path) + b"/cat/\xe9.png", "wb") as file:
        file.write(png(1))
    with pytest.raises(ValueError, match=r"row 0: the file name 'cat/\\udce9.png' is not valid UTF-8"):
        from_folder(tmp_path)


def test_split_folders_and_stray_files(tmp_path: Path) -> None:
    for name in ("Train/cat/1.png", "Train/dog/2.png", "VAL/dog/3.png", "loose.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = from_folder(tmp_path)
    assert found.metadata.splits == ["train", "train", "val"] and found.metadata.class_names == ("cat", "dog")
    assert found.notes == ("skipped 1 file outside class folders, such as loose.png",)
    for stray in ("extra/cat/4.png", "Train/5.png"):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).touch()
        with pytest.raises(ValueError, match=rf"1 image outside <split>/<class>, such as {stray}"):
            from_folder(tmp_path)
        (tmp_path / stray).unlink()
    (tmp_path / "flat/train").mkdir(parents=True)
    (tmp_path / "flat/train/1.png").touch()
    with pytest.raises(ValueError, match="has split folders, but 1 image outside <split>/<class>"):
        from_folder(tmp_path / "flat")


def test_links_to_themselves_are_reported_by_name(tmp_path: Path) -> None:
    (tmp_path / "root/cat").mkdir(parents=True)
    (tmp_path / "root/cat/1.png").write_bytes(png(1))
    os.symlink("loop.png", tmp_path / "root/cat/loop.png")
    report = pack_images(from_folder(tmp_path / "root"), tmp_path / "t", size=4, broken="skip")
    assert report.broken == (("cat/loop.png", "cannot be read: Too many levels of symbolic links"),)
