"""`merge` and shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_samples import birds, class_folder

from spurmix.data.dataset.format import DatasetError, Metadata
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.waterbirds import from_waterbirds
from spurmix.data.pack.manifest import Manifest
from spurmix.data.pack.merge import merge


def test_merged_shards_equal_one_dataset(tmp_path: Path) -> None:
    rows = from_waterbirds(birds(tmp_path / "birds", 20))
    pack_images(rows, tmp_path / "whole", size=8)
    parts = [pack_images(rows, tmp_path / "p", size=8, shard=(k, 3)).path for k in range(3)]
    assert [p.name for p in parts] == [f"p.shard-{k}-of-3" for k in range(3)]
    merge(list(parts), tmp_path / "merged")
    whole, merged = PackedDataset(tmp_path / "whole"), PackedDataset(tmp_path / "merged")
    assert np.array_equal(whole.array, merged.array) and whole.metadata.sources == merged.metadata.sources
    assert whole.splits == merged.splits and merged.verify() == []
    for wrong, message in (
        ([1, 0, 2], r"shard-1-of-3 \(shard 1\) and .*shard-0-of-3 \(shard 0\) are in the wrong order"),
        ([0, 1, 1], "shard-1-of-3 is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            merge([parts[k] for k in wrong], tmp_path / "wrong")
    assert (
        "shards 1 of 3 were not merged"
        in PackedDataset(merge([parts[0], parts[2]], tmp_path / "two").path).provenance["notes"]
    )
    whole_again = pack_images(rows, tmp_path / "again", size=8).path
    with pytest.raises(ValueError, match="again is not one of 3 shards, as other parts are"):
        merge([parts[0], whole_again], tmp_path / "wrong")
    with pytest.raises(ValueError, match="are not contiguous"):
        merge([tmp_path / "whole", whole_again], tmp_path / "wrong")
    pack_images(rows, tmp_path / "other", size=6)
    with pytest.raises(ValueError, match=r"shape or dtype of the images of .*other must be the same"):
        merge([parts[0], tmp_path / "other"], tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("name", ["images.npy", "broken.jsonl"])
def test_damaged_part_is_an_error(name: str, tmp_path: Path) -> None:
    rows = class_folder(tmp_path, unreadable=(0, 11))
    parts = [pack_images(rows, tmp_path / "p", size=4, broken="skip", shard=(k, 2)).path for k in range(2)]
    path = parts[1] / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        DatasetError, match=rf"shard-1-of-2/{name}: bytes 0 to [\d,]+ are damaged; pack the dataset again"
    ):
        merge(parts, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_shard_without_readable_files(tmp_path: Path) -> None:
    rows = class_folder(tmp_path, 6, unreadable=(0, 1))
    parts = [pack_images(rows, tmp_path / "p", size=4, broken="skip", shard=(k, 3)).path for k in range(3)]
    report = merge(parts, tmp_path / "t")
    assert PackedDataset(report.path).array[:, 0, 0, 0].tolist() == [2, 3, 4, 5] and len(report.broken) == 2
    with pytest.raises(ValueError, match="the datasets have no examples"):
        merge(parts[:1], tmp_path / "u")


class Pixels:
    """Two images, as the items of a manifest."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, n: int, /) -> object:
        return np.full((4, 4, 3), n, dtype=np.uint8)

    def digest(self) -> str:
        return "pixels"


def packed(
    target: Path, classes: tuple[str, ...] = ("cat", "dog"), split: str = "train", **attributes: tuple[str, ...]
) -> Path:
    """Pack two images with the given names."""
    values = np.array([0, 1])
    names = attributes or {"place": ("in", "out"), "time": ("a", "b")}
    metadata = Metadata(values, [split] * 2, ["0", "1"], dict.fromkeys(names, values), classes, names)
    return pack_images(Manifest("here", metadata, samples=Pixels()), target, size=4).path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("dog", "cat")}, "class names of .*: number 0 is 'dog' and 'cat'; pack both with the same names"),
        ({"classes": ("cat", "dog ")}, "class names of .*: number 1 is 'dog ' and 'dog'"),
        ({"classes": ("cat", "dog", "cow")}, "class names of .*: number 2 is 'cow' and missing"),
        ({"place": ("in", "out")}, "attributes of .*: number 1 is missing and 'time'"),
        ({"place ": ("in", "out"), "time": ("a", "b")}, "attributes of .*: number 0 is 'place ' and 'place'"),
        ({"place": ("out", "in"), "time": ("a", "b")}, "names of attribute 'place' of .*: number 0 is 'out' and 'in'"),
        ({"place": ("in", "o\u200but"), "time": ("a", "b")}, r"names of attribute 'place'.* is 'o\\u200but' and 'out'"),
    ],
)
def test_parts_with_other_names_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    parts = [packed(tmp_path / "a"), packed(tmp_path / "b", **options)]
    with pytest.raises(ValueError, match=message):
        merge(parts, tmp_path / "t")


def test_attributes_are_merged_by_name(tmp_path: Path) -> None:
    parts = [packed(tmp_path / "a"), packed(tmp_path / "b", time=("a", "b"), place=("in", "out"))]
    report = merge(parts, tmp_path / "t")
    assert list(PackedDataset(report.path).metadata.attribute_names) == ["place", "time"] and report.notes == ()


def test_notes_of_a_merge_are_reported(tmp_path: Path) -> None:
    parts = [packed(tmp_path / "a"), packed(tmp_path / "b", split="train ")]
    (note,) = merge(parts, tmp_path / "t").notes
    assert note.startswith("splits 'train' and 'train ' differ only by white space")
    assert PackedDataset(tmp_path / "t").provenance["notes"] == [note]
