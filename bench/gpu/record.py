"""Recording of rows and environment of a step. Rows are appended to a file one by one, so that a crash loses none."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch

from bench.row import Row

ROWS, DRY, UNTIL = "SPURMIX_BENCH_ROWS", "SPURMIX_BENCH_DRY", "SPURMIX_BENCH_UNTIL"
"""Environment variables of a step: the file of rows, "1" for a dry run, the time when the step is killed."""


def dry() -> bool:
    """Return whether this is a dry run on a CPU, with tiny shapes and interpreted Triton. Its times mean nothing."""
    return os.environ.get(DRY) == "1"


def time_left() -> float:
    """Return the seconds until this step is killed, or infinity if it runs without the runner."""
    return float(os.environ.get(UNTIL, "inf")) - time.time()


def device() -> torch.device:
    """Return the device under test."""
    return torch.device("cpu") if dry() else torch.device("cuda", 0)


def wait() -> None:
    """Wait for the device."""
    if not dry():
        torch.cuda.synchronize()


def emit(row: Row) -> None:
    """Append a row to the file of the run and print it."""
    path = os.environ.get(ROWS)
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
    print(described(row), flush=True)


def described(row: Row) -> str:
    """Return a row as one line of text."""
    name = f"{row.case:<26} {row.contender:<34}"
    if row.error:
        return f"  {name} FAILED: {row.error}"
    parts = []
    if row.median_ms is not None and row.q1_ms is not None and row.q3_ms is not None:
        parts.append(f"{row.median_ms * 1e3:12.1f} us [{row.q1_ms * 1e3:.1f}, {row.q3_ms * 1e3:.1f}]")
    parts += [f"{row.share:6.3f} of copy"] if row.share is not None else []
    parts += [f"{row.launches} launches"] if row.launches is not None else []
    parts += [f"{row.ratio:.3f} x"] if row.ratio is not None else []
    parts += [f"peak {row.peak_mib:.0f} MiB"] if row.peak_mib is not None else []
    parts += [f"({row.note})"] if row.note else []
    return f"  {name} " + " ".join(parts)


def rows_of(path: Path) -> list[Row]:
    """Return the rows of a file, without an incomplete last line."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def short(error: BaseException) -> str:
    """Return an error as one line of text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


@contextmanager
def survived(step: str, case: str, contender: str = "") -> Iterator[None]:
    """Record an error of the block as a row and continue after the block."""
    try:
        yield
    except Exception as error:  # one failed case must not end the run
        emit(Row(case, contender, step=step, error=short(error)))
        if not dry():
            torch.cuda.empty_cache()


def installed(*names: str) -> dict[str, ModuleType]:
    """Import modules and return those that can be imported."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.import_module(name)
        except Exception:  # a package built for another torch raises errors of any type
            continue
    return found


def gpu_backends() -> list[str]:
    """Return the backends that are available here, the default one first."""
    from spurmix.ops import library

    compiled = ["cuda"] if library.COMPILED_CUDA == "ok" and not dry() else []
    return [*compiled, *(["triton"] if library.HAS_TRITON else [])]
