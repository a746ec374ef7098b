"""Bad input to packing: images of every broken kind, targets that cannot be written, disks that fill up, wrong tables."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from spurmix.data.dataset import packed as store
from spurmix.data.dataset.packed import DatasetError, PackedDataset
from spurmix.data.pack import images as pack
from spurmix.data.pack import job
from spurmix.data.pack import manifest as listing
from spurmix.data.pack import writer as stripes


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def folder(root: Path, count: int = 8) -> listing.Listing:
    (root / "images/cat").mkdir(parents=True)
    for n in range(count):
        (root / f"images/cat/{n}.png").write_bytes(png(Image.new("RGB", (6, 6), (n, n, n))))
    return listing.from_folder(root / "images")


def claims(width: int, height: int) -> bytes:
    """A PNG whose header says that it is of another size."""
    data = png(Image.new("RGB", (8, 8)))
    header = data[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def test_every_broken_kind_of_image_is_reported_and_the_odd_ones_are_read(tmp_path: Path) -> None:
    folder(tmp_path, 2)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    odd = {
        "bomb.png": claims(60_000, 60_000),
        "empty.png": b"",
        "flat.png": claims(0, 8),
        "text.png": b"no image",
        "torn.jpg": png(noise, "JPEG")[:600],
        "cmyk.jpg": png(Image.new("CMYK", (6, 6)), "JPEG"),
        "deep.png": png(Image.fromarray(np.full((6, 6), 0x8123, dtype=np.uint16))),
    }
    for name, data in odd.items():
        (tmp_path / "images/cat" / name).write_bytes(data)
    report = pack.pack_images(listing.from_folder(tmp_path / "images"), tmp_path / "t", size=6, broken="skip")
    reasons = {Path(source).name: reason for source, reason in report.broken}
    assert set(reasons) == {"bomb.png", "empty.png", "flat.png", "text.png", "torn.jpg"} and report.count == 4
    assert "60000 x 60000 pixels are more than" in reasons["bomb.png"] or "exceeds limit" in reasons["bomb.png"]
    assert reasons["empty.png"] == "the file is empty" and "truncated" in reasons["torn.jpg"].lower()
    data = PackedDataset(tmp_path / "t")
    kept = dict(zip([Path(s).name for s in data.metadata.sources], data.array[:, 0, 0].tolist(), strict=True))
    assert kept == {"0.png": [0] * 3, "1.png": [1] * 3, "cmyk.jpg": [255] * 3, "deep.png": [0x81] * 3}


PLAIN_USER = """
import os, sys
from spurmix.data.pack import manifest as listing
from spurmix.data.pack import images as pack
found = listing.from_folder(sys.argv[1] + "/images")
pack.pack_images(found, sys.argv[1] + "/first", size=4)  # imports what root alone may be able to read
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for target in ("locked/t", "open/t", "open/t/deeper"):
    try:
        pack.pack_images(found, f"{sys.argv[1]}/{target}", size=4)
        os.chmod(f"{sys.argv[1]}/{target}", 0o555)
    except ValueError as error:
        print(error)
"""


def test_a_target_that_may_not_be_written() -> None:
    """As a user who is not root, whom no folder is closed to."""
    root = Path(tempfile.mkdtemp())
    try:
        folder(root)
        (root / "locked").mkdir(mode=0o555)
        (root / "open").mkdir()
        root.chmod(0o755), (root / "open").chmod(0o777)
        done = subprocess.run([sys.executable, "-c", PLAIN_USER, str(root)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"target: cannot write into {root}/locked (Permission denied)",
            f"target: cannot write into {root}/open/t (Permission denied)",
        ]
        assert not any((root / "locked").iterdir())
        assert PackedDataset(root / "open/t").verify() == []
    finally:
        for path in (root / "locked", root / "open/t"):
            if path.exists():
                path.chmod(0o755)
        shutil.rmtree(root)


@pytest.mark.parametrize("where", ["images.npy", "metadata", "describe"])
def test_a_disk_that_fills_up(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = folder(tmp_path)
    (tmp_path / "images/cat/3.png").write_bytes(b"")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        if where == "images.npy":
            patch.setattr(stripes.os, "pwrite", fail)
        else:
            patch.setattr(job, "write_metadata" if where == "metadata" else "describe", fail)
        with pytest.raises(job.NoSpace, match=r"no space left for .*free some and start again: what is done is kept"):
            pack.pack_images(found, tmp_path / "t", size=4, broken="skip")
    assert not (tmp_path / "t").exists()
    with pytest.raises(DatasetError):
        PackedDataset(tmp_path / "t.packing")
    report = pack.pack_images(found, tmp_path / "t", size=4, broken="skip")
    data = PackedDataset(report.path)
    assert data.array[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 7] and data.verify() == []
    assert report.resumed == (0 if where == "images.npy" else 7)
    names = {"dataset.json", "images.npy", "metadata.parquet", "broken.jsonl"}
    assert {p.name for p in report.path.iterdir()} == names


def test_another_process_that_was_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one finishes between the first look at the target and the lock."""
    found, lock = folder(tmp_path), job._lock

    def late(file: Any, place: Path) -> None:
        (tmp_path / "t").mkdir()
        lock(file, place)

    monkeypatch.setattr(job, "_lock", late)
    with pytest.raises(ValueError, match="exists already"):
        pack.pack_images(found, tmp_path / "t", size=4)
    assert not any((tmp_path / "t").iterdir())


def resize(place: Path, name: str) -> None:
    """Say that a changed file is as it was written."""
    path = place / "dataset.json"
    description = json.loads(path.read_text())
    size = (place / name).stat().st_size
    description["files"][name] = {"size": size, "checksums": ["x"] * (-(-size // description["chunk"]))}
    path.write_text(json.dumps(store.sealed(description)))


def shorter_table(place: Path) -> None:
    table = pyarrow.parquet.read_table(place / "metadata.parquet")
    pyarrow.parquet.write_table(table.slice(0, 5), place / "metadata.parquet")


def shorter_images(place: Path) -> None:
    np.save(place / "images.npy", np.load(place / "images.npy")[:5])


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (shorter_table, "metadata.parquet", r"metadata\.parquet has 5 rows, 8 were written"),
        (shorter_images, "images.npy", r"metadata\.parquet has 8 rows for 5 images"),
    ],
)
def test_files_with_another_number_of_rows(change: Any, name: str, message: str, tmp_path: Path) -> None:
    place = pack.pack_images(folder(tmp_path), tmp_path / "t", size=4).path
    change(place)
    with pytest.raises(DatasetError, match=rf"{name} has [\d,]+ bytes, [\d,]+ bytes were written"):
        PackedDataset(place)
    resize(place, name)
    with pytest.raises(DatasetError, match=message):
        PackedDataset(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["files"].update({"../x": {"size": 0, "checksums": []}}), "'../x' lies outside of the folder"),
        (lambda d: d.update(made=[]), "dataset.json is damaged: made must be dict"),
        (lambda d: d.update(format="2"), "format must be a number from 1, got '2'"),
        (lambda d: d.update(format=True), "format must be a number from 1, got True"),
        (lambda d: d.update(chunk=0), "dataset.json is damaged: count 8, chunk 0"),
        (lambda d: d.update(chunk=1e300), "dataset.json is damaged: chunk must be int"),
        (lambda d: d.update(attributes=[]), "dataset.json is damaged: attributes must be dict"),
        (lambda d: d.update(attributes={"a": 3}), "dataset.json is damaged: a must be names"),
        (lambda d: d.update(classes=[1]), "dataset.json is damaged: classes must be names"),
        (lambda d: d["files"].update({"images.npy": 3}), "dataset.json is damaged"),
        (lambda d: d["files"]["images.npy"].update(size="x"), "'images.npy' needs a size and checksums"),
        (lambda d: d.update(made={"cells": [[]]}), "cells must be names of attributes"),
    ],
)
def test_descriptions_that_lie(change: Any, message: str, tmp_path: Path) -> None:
    place = pack.pack_images(folder(tmp_path), tmp_path / "t", size=4).path
    description = json.loads((place / "dataset.json").read_text())
    change(description)
    (place / "dataset.json").write_text(json.dumps(store.sealed(description)))
    with pytest.raises(DatasetError, match=message):
        PackedDataset(place)


def test_tables_as_published_with_missing_or_odd_rows(tmp_path: Path) -> None:
    rows = ["img_filename,y,split,place", "a.png,0,0,1", "b.png,1,0,", "c.png,1,2,0"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    found = listing.waterbirds(tmp_path)
    assert found.metadata.attributes["place"].tolist() == [1, -1, 0]
    assert found.notes == ("place is unknown in 1 of 3 rows",)
    for row, message in (
        ("d.png,0,3,0", "row 3: split must be 0, 1 or 2"),
        ("d.png,x,0,0", "y must be an integer|y and place must be 0 or 1"),
        ("d.png,2,0,0", "y and place must be 0 or 1"),
        ("../d.png,0,0,0", "row 3: the path '../d.png' leaves the root"),
        ("a.png,0,0,0", "row 3: 'a.png' stands in row 0 too"),
    ):
        (tmp_path / "metadata.csv").write_text("\n".join([*rows, row]))
        with pytest.raises(ValueError, match=message):
            listing.waterbirds(tmp_path)
    (tmp_path / "metadata.csv").write_text(rows[0] + "\n")
    with pytest.raises(ValueError, match="has no rows"):
        listing.waterbirds(tmp_path)
    (tmp_path / "list_attr_celeba.csv").write_text("image_id,Blond_Hair,Male\n1.jpg,1,-1\n2.jpg,1,1\n")
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,0\n")
    with pytest.raises(ValueError, match=r"row 1: 2\.jpg has no partition"):
        listing.celeba(tmp_path)
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,0\n2.jpg,1\n")
    with pytest.raises(ValueError, match="no column 'Hat'; there are image_id, Blond_Hair, Male"):
        listing.celeba(tmp_path, attributes=["Hat"])
