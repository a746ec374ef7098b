"""Checks the memory accesses of all interpreted Triton kernels: see `watched.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import watched


@pytest.fixture(autouse=True, scope="session")
def watched_kernels() -> Iterator[None]:
    with watched.watching():
        yield
