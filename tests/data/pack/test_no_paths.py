"""Files of packed datasets have no path of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from image_samples import png

from spurmix.data.dataset.format import with_checksum
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.layouts.table import from_table
from spurmix.data.pack.manifest import Manifest
from spurmix.data.pack.merge import merge
from spurmix.data.pack.remote import root_name


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with images, one of which is damaged, one missing, and a table of them."""
    root = tmp_path / "secret" / "birds"
    rows = ["path,label"]
    for n in range(6):
        path = root / ("cat", "dog")[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n) if n else b"damaged")
        rows.append(f"{path.relative_to(root)},{n % 2}")
    (root / "t.csv").write_text("\n".join([*rows, "gone.png,0"]))
    return root


def check(folder: Path) -> None:
    for file in folder.rglob("*"):
        assert file.is_dir() or b"secret" not in file.read_bytes(), file


@pytest.mark.parametrize("url", ["", "file://"])
def test_packed_datasets_have_no_path(images: Path, url: str, tmp_path: Path) -> None:
    for layout, source in ((from_folder, images), (from_table, images / "t.csv")):
        target = tmp_path / layout.__name__
        manifest = layout(f"{url}{source}")
        pack_images(manifest, target, size=4, broken="skip")
        assert PackedDataset(target).provenance["root"] == "birds"
        check(target)
    shards = [pack_images(manifest, tmp_path / "s", size=4, broken="skip", shard=(k, 2)).path for k in range(2)]
    for shard in shards:  # datasets of earlier versions
        description = json.loads((shard / "dataset.json").read_text())
        description["made"]["root"] = str(images)
        (shard / "dataset.json").write_text(json.dumps(with_checksum(description)))
    merge(shards, tmp_path / "whole")
    check(tmp_path / "whole")


def test_a_job_is_not_resumed_with_another_source(images: Path, tmp_path: Path) -> None:
    (images / "dog/1.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be packed"):
        pack_images(from_folder(images), tmp_path / "t", size=4)
    other = tmp_path / "other" / "birds"
    other.parent.mkdir()
    images.rename(other)
    for path in other.rglob("*.png"):
        path.write_bytes(png(9))
    report = pack_images(from_folder(other), tmp_path / "t", size=4)
    assert report.resumed == 0 and "with another manifest; packing starts over" in report.notes[0]
    assert PackedDataset(report.path).array[:, 0, 0, 0].tolist() == [9] * 6


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/home/ann/data/birds", "birds"),
        ("/home/ann/data/birds/", "birds"),
        ("file:///home/ann/birds", "birds"),
        (".", Path.cwd().name),
        ("owner/name-on-a-hub", "owner/name-on-a-hub"),
        ("s3://bucket/birds", "s3://bucket/birds"),
        ("https://ann:word@host/birds?token=1#x", "https://host/birds"),
        ("memory://birds", "memory://birds"),
        ("zip://inner::file:///home/ann/birds.zip", "zip://inner::birds.zip"),
        ("zip://::/home/ann/birds.zip", "zip://::birds.zip"),
        ("simplecache::s3://key:word@bucket/x", "simplecache::s3://bucket/x"),
    ],
)
def test_names_of_sources(root: str, name: str) -> None:
    assert root_name(root) == name


def test_the_plan_depends_on_the_path(images: Path) -> None:
    found = from_folder(images)
    moved = Manifest("/elsewhere/birds", found.metadata)
    assert moved.digest() != found.digest()
