"""Tests on a GPU: `pytest tests/gpu -m gpu --confcutdir tests/gpu`.

SPURMIX_GPU_TESTS=cpu checks the tests themselves without a GPU: small tensors on the CPU, and interpreted Triton kernels. It
skips tests of streams, graphs and pinned memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spurmix.ops import functional

ON_CPU = os.environ.get("SPURMIX_GPU_TESTS") == "cpu"
os.environ.setdefault("SPURMIX_AUTOTUNE", "0")  # use the first configuration; bench/ measures tuning


def pytest_collection_modifyitems(items: list[Any]) -> None:
    here = [item for item in items if item.path.parent.name == "gpu"]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if ON_CPU and item.get_closest_marker("device_only"):
            item.add_marker(pytest.mark.skip(reason="streams, graphs and pinned memory require a GPU"))
    if ON_CPU:  # the interpreter is slow: run each test with its last parameters only
        last = {item.originalname: item for item in here}
        items[:] = [item for item in items if item not in here or last[item.originalname] is item]
    part, parts = map(int, os.environ.get("SPURMIX_GPU_SHARD", "0/1").split("/"))
    items[:] = [item for k, item in enumerate(items) if item not in here or k % parts == part]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu") if ON_CPU else torch.device("cuda", 0)


@pytest.fixture(scope="session")
def scale() -> SimpleNamespace:
    """Sizes of the tests."""
    if ON_CPU:
        return SimpleNamespace(draws=60, soak=2, side=12, classes=300, rows=50, batch=2)
    return SimpleNamespace(draws=10**6, soak=10**4, side=224, classes=128256, rows=4096, batch=64)


def backends() -> list[str]:
    """Backends that this installation has for GPUs."""
    from spurmix.ops import library

    compiled = getattr(library, "COMPILED_CUDA", "missing") == "ok" and not ON_CPU
    return ["triton", *(["cuda"] if compiled else [])]


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random generator with a new seed in each run. pytest prints the seed of a failed test."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def poisoned_memory(device: torch.device) -> Iterator[None]:
    """Fill new tensors with NaN, which reveals elements that are not written. Check for device errors after each test."""
    was_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was_on)
    functional.check(device)
