"""Deprecated names of `PackedDataset`."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_samples import class_folder

from spurmix import PackedDataset
from spurmix.data.pack.images import pack_images


def test_deprecated_names_still_work(tmp_path: Path) -> None:
    data = PackedDataset(pack_images(class_folder(tmp_path, 3), tmp_path / "t", size=4).path)
    with pytest.deprecated_call(match="use provenance"):
        assert data.made == data.provenance
    with pytest.deprecated_call(match="use reserve"):
        assert len(data.source(tier="auto", room=0)) == 3
    with pytest.raises(TypeError, match="got both"), pytest.deprecated_call():
        data.source(room=0, reserve=0)
