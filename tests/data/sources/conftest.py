"""Fixtures of the tests of sources."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_samples import write_dataset

from spurmix import PackedDataset


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Images of 104 x 107 pixels, large enough for direct reads, at odd offsets in the file."""
    pixels = np.random.default_rng(2).integers(0, 256, (60, 104, 107, 3), dtype=np.uint8)
    return write_dataset(tmp_path_factory.mktemp("large") / "t", pixels)
