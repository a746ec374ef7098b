"""Sources of packed datasets in the chosen tier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_samples import loader, write_dataset

from spurmix import FeatureSource, ImageSource, PackedDataset
from spurmix.data.sources import arrays
from spurmix.data.sources.windowed import WindowedImages

GIB = 1 << 30


def test_a_dataset_is_read_from_the_tier_that_fits(large: PackedDataset, tmp_path: Path) -> None:
    train = large.split("train")
    assert train.nbytes == 40 * 104 * 107 * 3 and large.nbytes == 60 * 104 * 107 * 3
    mapped, read = train.source(tier="auto"), train.source(tier="auto", memory=train.nbytes - 1)
    assert type(mapped) is ImageSource and mapped.tier is not None and mapped.tier.name == "cache"
    assert isinstance(read, WindowedImages) and read.tier is not None and read.tier.name == "disk"
    assert "tier" not in repr(train.source()) and "; cache: memory-mapped" in repr(mapped)
    assert "1 MiB at a time; disk: the data take" in repr(read)
    assert type(large.source(tier="auto", memory=large.nbytes)) is ImageSource
    assert type(large.source()) is ImageSource and large.source().tier is None
    assert isinstance(large.source(3), WindowedImages) and isinstance(large.source(tier="disk"), WindowedImages)
    for a, b in zip(loader(mapped, 40, 4), loader(read, 40, 4), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
    features = write_dataset(tmp_path / "f", np.ones((6, 3), np.float32), "features")
    assert isinstance(features.source(tier="auto", memory=0), FeatureSource)
    assert "; cache: the data take" in repr(features.source(tier="auto", memory=0))
    for arguments, message in (
        (dict(memory=-1), "memory must be 0 or more bytes, got -1"), (dict(window=2, tier="cache"), 'window requires tier "disk"'),
        (dict(device="cuda"), "CUDA is not available here"), (dict(tier="device"), "requires a GPU"),
        (dict(tier="auto", reserve=-2), "reserve must be 0 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            large.source(**arguments)  # type: ignore[arg-type]


def test_gpu_memory_is_used_if_the_data_fit(large: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without a GPU: the functions that ask CUDA are replaced."""
    free = [4 * large.nbytes]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(arrays, "free_memory", lambda device: (free[0], 9 * GIB))
    monkeypatch.setattr(ImageSource, "to", lambda self, device: ImageSource(self.images.clone()))
    monkeypatch.setattr(ImageSource, "pinned", lambda self: ImageSource(self.images.clone()))

    def tier(**options: Any) -> str:
        found = large.source(device="cuda", **options).tier
        assert found is not None
        return found.name

    assert tier(tier="auto") == "device"
    free[0] = 2 * large.nbytes - 2  # half of it is reserved for the model
    assert (
        tier(tier="auto") == "pinned" and tier(tier="device") == "device" and tier(tier="auto", reserve=0) == "device"
    )
    assert tier(tier="auto", memory=large.nbytes) == "cache" and tier(tier="auto", memory=large.nbytes - 1) == "disk"
    with pytest.raises(MemoryError, match="reserved for the model"):
        tier(tier="device", reserve=2 * large.nbytes)


LIMITED = """
import resource, sys
import spurmix, torch
from spurmix.data.dataset.packed import PackedDataset
data = PackedDataset(sys.argv[1])
data.split("test").source(tier="auto")  # imports everything
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + data.nbytes * 3 // 4,) * 2)
print(data.source(tier="auto").tier.name, data.split("test").source(tier="auto").tier.name)
"""


def test_a_process_with_a_memory_limit_reads_from_disk(tmp_path: Path, with_little_memory: Any) -> None:
    data = write_dataset(tmp_path / "t", np.zeros((90, 512, 512, 3), np.uint8))
    done = with_little_memory(LIMITED, data.path)
    assert done.stdout.split() == ["disk", "cache"], done.stderr[-2000:]
