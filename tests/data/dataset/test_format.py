"""Damaged and inconsistent datasets do not open."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from image_samples import birds, class_folder, edit_description

from spurmix.data.dataset.format import DatasetError, with_checksum
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.waterbirds import from_waterbirds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "images.npy").unlink(), "images.npy is missing"),
        (lambda d: (d / "images.npy").write_bytes((d / "images.npy").read_bytes()[:-1]), r"images.npy has [\d,]+ bytes, expected"),
        (lambda d: (d / "dataset.json").unlink(), "dataset.json is missing"),
        (lambda d: (d / "dataset.json").write_text("{"), "dataset.json is damaged"),
        (lambda d: edit_description(d, format=2), "format 2 is not supported, this version reads up to 1; update spurmix"),
        (lambda d: edit_description(d, kind="sounds"), "kind must be one of"),
        (lambda d: edit_description(d, count=5), "has 6 rows, expected 5"),
        (lambda d: edit_description(d, classes=["a"]), r"column 'label' must be in \[0, 1\)"),
        (lambda d: edit_description(d, attributes={"hat": ["no", "yes"]}), "must have one column 'hat', it has 0"),
    ],
)  # fmt: skip
def test_damaged_dataset_does_not_open(change: Any, message: str, tmp_path: Path) -> None:
    pack_images(from_waterbirds(birds(tmp_path / "birds", 6)), tmp_path / "t", size=4)
    change(tmp_path / "t")
    with pytest.raises(DatasetError, match=message):
        PackedDataset(tmp_path / "t")
    with pytest.raises(DatasetError, match="is not a folder"):
        PackedDataset(tmp_path / "nowhere")


def resize(place: Path, name: str) -> None:
    """Make the description match a changed file."""
    path = place / "dataset.json"
    description = json.loads(path.read_text())
    size = (place / name).stat().st_size
    description["files"][name] = {"size": size, "checksums": ["x"] * (-(-size // description["chunk"]))}
    path.write_text(json.dumps(with_checksum(description)))


def shorter_table(place: Path) -> None:
    table = pyarrow.parquet.read_table(place / "metadata.parquet")
    pyarrow.parquet.write_table(table.slice(0, 5), place / "metadata.parquet")


def shorter_images(place: Path) -> None:
    np.save(place / "images.npy", np.load(place / "images.npy")[:5])


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (shorter_table, "metadata.parquet", r"metadata\.parquet has 5 rows, expected 12"),
        (shorter_images, "images.npy", r"metadata\.parquet has 12 rows for 5 images"),
    ],
)
def test_wrong_number_of_rows(change: Any, name: str, message: str, tmp_path: Path) -> None:
    place = pack_images(class_folder(tmp_path), tmp_path / "t", size=4).path
    change(place)
    with pytest.raises(DatasetError, match=rf"{name} has [\d,]+ bytes, expected"):
        PackedDataset(place)
    resize(place, name)
    with pytest.raises(DatasetError, match=message):
        PackedDataset(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["files"].update({"../x": {"size": 0, "checksums": []}}), "'../x' is outside the folder"),
        (lambda d: d.update(made=[]), r"dataset\.json is damaged: \['made'\] must be an object, got \[\]"),
        (lambda d: d.update(format="2"), r"\['format'\] must be an integer, got '2'"),
        (lambda d: d.update(format=True), r"\['format'\] must be an integer, got True"),
        (lambda d: d.update(chunk=0), "invalid count 12 or chunk 0"),
        (lambda d: d.update(chunk=1 << 70), "invalid count 12 or chunk 1180591620717411303424"),
        (lambda d: d.update(chunk=1e300), r"dataset\.json is damaged: \['chunk'\] must be an integer"),
        (lambda d: d.update(attributes=[]), r"dataset\.json is damaged: \['attributes'\] must be an object"),
        (lambda d: d.update(attributes={"a": 3}), r"\['attributes'\]\['a'\] must be an array, got 3"),
        (lambda d: d.update(classes=[1]), r"\['classes'\]\[0\] must be a string, got 1"),
        (lambda d: d["files"].update({"images.npy": 3}), "dataset.json is damaged"),
        (
            lambda d: d["files"]["images.npy"].update(size="x"),
            r"\['files'\]\['images.npy'\]\['size'\] must be an integer, got 'x'",
        ),
        (lambda d: d.update(made={"cells": [[]]}), r"'made', is damaged: \['cells'\]\[0\] must be a string"),
        (lambda d: d.update(made={"cells": ["hat"]}), "cells must be names of attributes"),
        (lambda d: d.update(made={"shard": "0"}), r"\['shard'\] must be an array"),
        (lambda d: d.update(made={"shard": [0]}), "shard must be"),
        (lambda d: d.update(made={"notes": 3}), r"\['notes'\] must be an array"),
        (lambda d: d.update(made={"occurring": {"label": ["x"]}}), r"\['label'\]\[0\] must be an integer"),
        (lambda d: d.update(format=0), "format must be a positive integer, got 0"),
        (lambda d: d["files"].update({"a\0b": {"size": 0, "checksums": []}}), "is outside the folder"),
    ],
)
def test_invalid_descriptions(change: Any, message: str, tmp_path: Path) -> None:
    place = pack_images(class_folder(tmp_path), tmp_path / "t", size=4).path
    description = json.loads((place / "dataset.json").read_text())
    change(description)
    (place / "dataset.json").write_text(json.dumps(with_checksum(description)))
    with pytest.raises(DatasetError, match=message):
        PackedDataset(place)


def test_deeply_nested_description(tmp_path: Path) -> None:
    path = pack_images(class_folder(tmp_path), tmp_path / "t", size=4).path / "dataset.json"
    for text in ("[" * 100_000, '{"made":' * 100_000, '{"a": ' * 300 + "1" + "}" * 300):
        path.write_text(text)
        with pytest.raises(DatasetError, match=r"dataset\.json is damaged: more than 100 nested arrays and objects"):
            PackedDataset(path.parent)


def test_damaged_description(tmp_path: Path) -> None:
    path = pack_images(class_folder(tmp_path), tmp_path / "t", size=4).path / "dataset.json"
    text = path.read_text()
    for old, new in (('"cat"', '"cau"'), ('"crop"', '"drop"'), ('"checksum"', '"bhecksum"'), ('"exact"', '"exact"')):
        path.write_text(text.replace(old, new))
        if old in text and old != new:
            with pytest.raises(DatasetError, match=r"dataset\.json is damaged"):
                PackedDataset(tmp_path / "t")
    for wrong in (b"\xff\xfe", b"[]", b"{}", b'{"format": []}'):
        path.write_bytes(wrong)
        with pytest.raises(DatasetError, match=r"dataset\.json is damaged"):
            PackedDataset(tmp_path / "t")


@pytest.mark.parametrize("name", ["images.npy", "metadata.parquet"])
def test_damaged_files_raise_only_dataset_errors(name: str, tmp_path: Path) -> None:
    path = pack_images(class_folder(tmp_path), tmp_path / "t", size=4).path / name
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        wrong = bytearray(data)
        for at in rng.integers(0, 128 if name == "images.npy" else len(data), 3):
            wrong[at] = rng.integers(0, 256)
        path.write_bytes(wrong)
        with contextlib.suppress(DatasetError):  # no other exception may be raised
            PackedDataset(tmp_path / "t")
