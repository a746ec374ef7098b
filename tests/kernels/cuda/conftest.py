"""Fixtures of the emulated GPU, and the marker of all tests in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated import built_fixture, cuda_fixture  # noqa: F401  # fixtures, by their names


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.kernels)
