"""Shared fixtures: backends under test, and new tensors filled with NaN, so that a missing write is noticed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it on import
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from spurmix.ops import library

settings.register_profile("default", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("default")
os.environ["OMP_NUM_THREADS"] = "2"  # of subprocesses: results of training depend on the number of threads
torch.set_num_threads(2)

BACKENDS = ["reference", "cpu"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend for CPU tensors. The test fails without compiled kernels, because they would be untested."""
    name: str = request.param
    if name == "cpu" and library.COMPILED_CPU != "ok":
        pytest.fail(f"compiled kernels: {library.COMPILED_CPU}")
    return name


@pytest.fixture(autouse=True)
def poisoned_memory() -> Any:
    """Fill new tensors with NaN (integers: the maximum), so that a missing write fails a comparison."""
    was_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(was_on)


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Known answers of the draw specification."""
    return json.loads((Path(__file__).parent / "draw_vectors.json").read_text())  # type: ignore[no-any-return]


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def with_little_memory() -> Command:
    """`with_little_memory(script, *arguments)` runs a script that limits its own address space.

    Each thread reserves address space that it may not use, 8 MB of stack and 64 MB of heap. Both are reduced, so that
    the script does not exceed the limit by chance.
    """

    def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        child = ["sh", "-c", 'ulimit -s 1024; exec "$@"', "sh", sys.executable, "-c", script, *map(str, arguments)]
        return subprocess.run(child, capture_output=True, text=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"})

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command(*arguments, main=...)` runs a command and returns its output and exit code.

    It runs in this process, because a new process needs two seconds to import torch. `main` is the entry point, by
    default that of `spurmix`.
    """

    def run(*arguments: Any, main: Callable[[], Any] | None = None) -> subprocess.CompletedProcess[str]:
        if main is None:
            from spurmix.cli.app import main
        out, err, code = io.StringIO(), io.StringIO(), 0
        with monkeypatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", ["spurmix", *map(str, arguments)])
            try:
                code = main() or 0
            except SystemExit as end:
                code = int(end.code or 0)
        return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1234)
