"""Sources of packed datasets that read windows of the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import birds, class_folder

from spurmix import ImageSource, MixLoader, policies
from spurmix.core.cells import host_module
from spurmix.data.dataset.format import write_description, write_metadata
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.waterbirds import from_waterbirds
from spurmix.ops.augment import Augment


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("packed")
    pack_images(from_waterbirds(birds(folder / "birds", 60)), folder / "t", size=8)
    return PackedDataset(folder / "t")


def loaders(data: PackedDataset, window: int, **options: Any) -> MixLoader:
    groups = data.groups()
    return MixLoader(data.source(window), groups, policies.lisa(), 6, seed=3, steps=11, **options)


@pytest.mark.parametrize("window", [1, 3, 4, 20])
@pytest.mark.parametrize(
    "options", [{}, dict(augment=Augment(size=5), dtype=torch.bfloat16), dict(prefetch=0, copy=True)]
)
def test_windows_equal_memory_map(window: int, options: Any, packed: PackedDataset) -> None:
    data = packed.split("val")
    for rank in (0, 1):
        mapped, read = (loaders(data, w, rank=rank, world_size=2, **options) for w in (0, window))
        for a, b in zip(mapped, read, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
        expected = mapped.batch(7)
        read.set_step(7)
        assert torch.equal(next(iter(read)).input, expected.input) and torch.equal(
            read.batch(2).input, mapped.batch(2).input
        )


def test_windowed_images_as_a_source(packed: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed.split("test")
    mapped, read = data.source(), data.source(window=2)
    assert isinstance(mapped, ImageSource) and isinstance(read, ImageSource)
    index = torch.tensor([5, 0, 5, 3])
    for host in (True, False):
        if not host:
            monkeypatch.setattr("spurmix.data.sources.windowed.host_module", lambda: None)
        assert torch.equal(mapped.gather(index), read.gather(index)) and torch.equal(mapped.raw(index), read.raw(index))
    batch = next(iter(loaders(data, 2, augment=Augment(size=5))))
    assert torch.allclose(batch.input, loaders(data, 0, augment=Augment(size=5)).batch(0).input, atol=1e-2)
    assert "2 batches at a time" in repr(read) and torch.equal(read.images, mapped.images)
    with pytest.raises(IndexError, match="index must be in"):
        read.raw(torch.tensor([99]))
    with pytest.raises(ValueError, match="window must be 1 or more"):
        data.source(window=-1)
    with pytest.raises(ValueError, match="read from their file"):
        loaders(data, 2).static_batch()


def test_truncated_file_is_an_error(tmp_path: Path) -> None:
    pack_images(from_waterbirds(birds(tmp_path / "birds", 24)), tmp_path / "t", size=8)
    data = PackedDataset(tmp_path / "t")
    loader, read = loaders(data, 2), data.source(window=1)
    os.truncate(tmp_path / "t" / "images.npy", 600)
    with pytest.raises(OSError, match=r"images\.npy: ends before row \d"):
        next(iter(loader))
    for host in (host_module(), None):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=r"images\.npy: ends before row 5"):
            patch.setattr("spurmix.data.sources.windowed.host_module", lambda host=host: host)
            read.raw(torch.tensor([0, 5]))  # type: ignore[union-attr]


SCARCE = """
import resource, sys, torch, spurmix
from spurmix.data.dataset.packed import PackedDataset
from spurmix import MixLoader, policies
torch.set_num_threads(1)
data = PackedDataset(sys.argv[1])
loader = MixLoader(data.source(window=2), data.groups(), policies.group_balanced(), 32, steps=40, seed=1)
next(iter(loader))  # allocates what is allocated once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
loader.set_step(0)
rows = set()
for batch in loader:
    rows.update(batch.index.tolist())
print(len(rows))
"""


def test_data_four_times_as_large_as_memory(tmp_path: Path, with_little_memory: Any) -> None:
    """The child limits its address space to what it uses at first, plus a quarter of the images."""
    root, target = birds(tmp_path / "birds", 8), tmp_path / "t"
    pack_images(from_waterbirds(root), tmp_path / "small", size=256)
    small = PackedDataset(tmp_path / "small")
    rows = np.arange(2000) % 8  # 400 MB, most of it the same eight images
    target.mkdir()
    images = np.lib.format.open_memmap(target / "images.npy", mode="w+", dtype=np.uint8, shape=(2000, 256, 256, 3))
    images[:] = small.array[rows]
    metadata = small.metadata.select(rows)
    write_metadata(target, metadata)
    write_description(target, "images", metadata, small.provenance)
    done = with_little_memory(SCARCE, target, images.nbytes // 4)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 700


def test_invalid_windows(tmp_path: Path) -> None:
    data = PackedDataset(pack_images(class_folder(tmp_path), tmp_path / "t", size=4).path)
    for wrong in (1.5, True):
        with pytest.raises(TypeError, match="window must be an integer"):
            data.source(wrong)  # type: ignore[arg-type]
    source: Any = data.source(2, memory=100)
    with pytest.raises(
        ValueError, match=r"window: two windows of 2 batches of 4 images require [\d,]+ bytes, memory is 100 bytes"
    ):
        source.batches(4, 10)
    assert data.source(2).batches(4, 10) == 2  # type: ignore[union-attr]
