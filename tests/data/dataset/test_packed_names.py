"""Deprecated names of `PackedDataset` and the sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_samples import class_folder

from spurmix import ImageSource, PackedDataset
from spurmix.data.pack.images import pack_images


def test_deprecated_names_still_work(tmp_path: Path) -> None:
    data = PackedDataset(pack_images(class_folder(tmp_path, 3), tmp_path / "t", size=4).path)
    with pytest.deprecated_call(match="use provenance"):
        assert data.made == data.provenance
    with pytest.deprecated_call(match="PackedDataset: mapped is deprecated, use memory_map"):
        assert np.array_equal(data.mapped(0), data.memory_map(0))
    with pytest.deprecated_call(match="PackedDataset: others is deprecated, use extra_files"):
        assert data.others == data.extra_files
    with pytest.deprecated_call(match="PackedDataset: unfinished is deprecated, use open_incomplete"):
        assert len(PackedDataset.unfinished(data.path)) == 3
    with pytest.deprecated_call(match="use reserve"):
        assert len(data.source(tier="auto", room=0)) == 3
    with pytest.raises(TypeError, match="got both"):
        data.source(room=0, reserve=0)


def test_deprecated_names_of_sources_still_work() -> None:
    source = ImageSource(np.zeros((2, 4, 4, 3), dtype=np.uint8))
    with pytest.deprecated_call(match="use normalized"):
        assert source.normalised(0.5, 0.25).std.tolist() == [0.25] * 3
