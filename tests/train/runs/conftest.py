"""Packed datasets and a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
from packed_data import pack
from run_commands import IMAGES, flags, invoke


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("data") / "images", "images")


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("data") / "features", "features")


@pytest.fixture(scope="session")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run on images. Tests do not change it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    output = invoke("train", images, "--out", out, *flags(IMAGES))
    assert "after mixing" in output and "worst group" in output and "report.html" in output
    return out
