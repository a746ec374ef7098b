"""Rows of a run: appended one by one, so that a crash loses none; what a step's process knows of its run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROWS, DRY, UNTIL = "SPURMIX_BENCH_ROWS", "SPURMIX_BENCH_DRY", "SPURMIX_BENCH_UNTIL"


@dataclass
class Row:
    """One figure, or why there is none (`error`).

    Attributes:
        microseconds, q1, q3: median and quartiles. bytes: that must move. share: of the measured copy bandwidth.
        launches: kernels per call, by the profiler. ratio: time over ours, or over the synthetic step's in training.
        peak: most MiB allocated during a call, beyond what was before.
    """

    step: str
    case: str
    contender: str
    kind: str = ""
    microseconds: float | None = None
    q1: float | None = None
    q3: float | None = None
    bytes: int | None = None
    share: float | None = None
    launches: int | None = None
    ratio: float | None = None
    peak: float | None = None
    note: str = ""
    error: str = ""


def dry() -> bool:
    """Whether this is a rehearsal on the CPU: tiny shapes, Triton interpreted, figures without meaning."""
    return os.environ.get(DRY) == "1"


def time_left() -> float:
    """Seconds until this step is killed; a step alone has all the time."""
    return float(os.environ.get(UNTIL, "inf")) - time.time()


def device() -> torch.device:
    return torch.device("cpu") if dry() else torch.device("cuda", 0)


def emit(row: Row) -> None:
    """Append a row to the run's file and print it."""
    path = os.environ.get(ROWS)
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
    print(described(row), flush=True)


def described(row: Row) -> str:
    name = f"{row.case:<26} {row.contender:<34}"
    if row.error:
        return f"  {name} FAILED: {row.error}"
    parts = [f"{row.microseconds:12.1f} us [{row.q1:.1f}, {row.q3:.1f}]"] if row.microseconds is not None else []
    parts += [f"{row.share:6.3f} of copy"] if row.share is not None else []
    parts += [f"{row.launches} launches"] if row.launches is not None else []
    parts += [f"{row.ratio:.3f} x"] if row.ratio is not None else []
    parts += [f"peak {row.peak:.0f} MiB"] if row.peak is not None else []
    parts += [f"({row.note})"] if row.note else []
    return f"  {name} " + " ".join(parts)


def rows_of(path: Path) -> list[Row]:
    """Rows of a file; a last line that a crash cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


@contextmanager
def survived(step: str, case: str, contender: str = "") -> Iterator[None]:
    """What fails inside becomes a row, and the run goes on."""
    try:
        yield
    except Exception as error:
        emit(Row(step, case, contender, error=short(error)))
        if not dry():
            torch.cuda.empty_cache()


def installed(*names: str) -> dict[str, Any]:
    """Those of the modules that can be imported."""
    import importlib

    found = {}
    for name in names:
        try:
            found[name] = importlib.import_module(name)
        except Exception:  # a package built for another torch raises anything
            continue
    return found


def gpu_backends() -> list[str]:
    """Backends that serve here, the default one first."""
    from spurmix.ops import library

    compiled = ["cuda"] if library.COMPILED_CUDA == "ok" and not dry() else []
    return [*compiled, *(["triton"] if library.HAS_TRITON else [])]


Call = Callable[[], Any]
