"""Tests on a GPU: `pytest tests/gpu -m gpu --confcutdir tests/gpu`. SPURMIX_GPU_TESTS=cpu rehearses them: tensors on the
CPU, small sizes, Triton interpreted; what only a GPU has is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spurmix.ops import functional

REHEARSED = os.environ.get("SPURMIX_GPU_TESTS") == "cpu"
os.environ.setdefault("SPURMIX_AUTOTUNE", "0")  # the first configuration: tuning is measured elsewhere


def pytest_collection_modifyitems(items: list[Any]) -> None:
    here = [item for item in items if item.path.parent.name == "gpu"]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if REHEARSED and item.get_closest_marker("device_only"):
            item.add_marker(pytest.mark.skip(reason="streams, graphs and pinned memory are a GPU's"))
    if REHEARSED:  # interpreting is slow: the last of each test's parameters will do
        last = {item.originalname: item for item in here}
        items[:] = [item for item in items if item not in here or last[item.originalname] is item]
    part, parts = map(int, os.environ.get("SPURMIX_GPU_SHARD", "0/1").split("/"))
    items[:] = [item for k, item in enumerate(items) if item not in here or k % parts == part]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu") if REHEARSED else torch.device("cuda", 0)


@pytest.fixture(scope="session")
def scale() -> SimpleNamespace:
    """Sizes: of a GPU, or of a rehearsal."""
    if REHEARSED:
        return SimpleNamespace(draws=60, soak=2, side=12, classes=300, rows=50, batch=2)
    return SimpleNamespace(draws=10**6, soak=10**4, side=224, classes=128256, rows=4096, batch=64)


def backends() -> list[str]:
    """Those that serve a GPU here."""
    from spurmix.ops import library

    compiled = getattr(library, "COMPILED_CUDA", "missing") == "ok" and not REHEARSED
    return ["triton", *(["cuda"] if compiled else [])]


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh inputs each time; the seed is printed where a test fails."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def poisoned_memory(device: torch.device) -> Iterator[None]:
    """Fresh tensors are NaN, so that an element nobody wrote fails; flags are looked at after every test."""
    was_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was_on)
    functional.check(device)
