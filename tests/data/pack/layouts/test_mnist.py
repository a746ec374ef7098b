"""MNIST and other idx files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_samples import idx

from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.mnist import from_mnist

RNG = np.random.default_rng(3)


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
    found = from_mnist(write_mnist(tmp_path / "m", zipped, dot))
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
    digest = found.samples.digest()  # type: ignore[union-attr]
    images = DIGITS["train"][0].copy()
    images[3, 2, 2] ^= 1
    (name,) = (tmp_path / "m").glob("train-images*")
    name.write_bytes(idx(images))  # not compressed, despite the suffix
    assert from_mnist(tmp_path / "m").samples.digest() != digest  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3-ubyte.gz", lambda d: d[:-20], "train-images-idx3-ubyte.gz is truncated or damaged: Compressed"),
        ("train-images-idx3-ubyte.gz", lambda d: d[:12] + b"\xff" * 30 + d[42:], "is truncated or damaged"),
        ("t10k-images-idx3-ubyte.gz", lambda _: idx(DIGITS["t10k"][0])[:-1], "79 of 80 bytes follow its header"),
        ("t10k-images-idx3-ubyte.gz", lambda _: idx(DIGITS["t10k"][0]) + b"x", "more than 80 bytes follow"),
        ("t10k-images-idx3-ubyte.gz", lambda _: b"\0\0\x08\x03" + b"\xff" * 12, "its header claims a size"),
        ("t10k-images-idx3-ubyte.gz", lambda _: idx(DIGITS["t10k"][1]), "is not an idx file of bytes with 3 dimensions"),
        ("t10k-labels-idx1-ubyte.gz", lambda _: b"", "t10k-labels-idx1-ubyte.gz is not an idx file"),
        ("t10k-labels-idx1-ubyte.gz", lambda _: idx(DIGITS["train"][1]), "has 7 labels, t10k-images-idx3-ubyte.gz has 4 images"),
    ],
)  # fmt: skip
def test_damaged_idx_file_is_named(file: str, change: Any, message: str, tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "m", True)
    (root / file).write_bytes(change((root / file).read_bytes()))
    with pytest.raises(ValueError, match=message):
        from_mnist(root)


def test_missing_and_repeated_idx_files(tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "m", True)
    (root / "emnist-train-images-idx3-ubyte").write_bytes(b"")
    (root / "emnist-train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="are both images of split train"):
        from_mnist(root)
    (root / "emnist-train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="emnist-train-images-idx3-ubyte has no labels, such as emnist-train-labels"):
        from_mnist(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no files such as"):
        from_mnist(tmp_path / "empty")
