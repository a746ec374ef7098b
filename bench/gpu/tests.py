"""Step `tests`: run tests/gpu in parallel processes, because most of the time is spent on compiling kernels."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from bench.gpu.parallel import run_parallel
from bench.gpu.record import dry, emit
from bench.row import Row

ROOT = Path(__file__).resolve().parents[2]


def report(name: str, code: int, text: str) -> bool:
    """Emit a row for one process. Returns whether all of its tests passed."""
    summary = re.findall(r"\d+ (?:passed|failed|error|skipped|deselected)[^\n]*", text)[-1:]
    failures = re.findall(r"^(?:FAILED|ERROR) [^\n]*", text, re.MULTILINE)
    good = code in (0, 5)  # pytest exits with 5 if a part has no tests
    late = "killed at the time limit; " if code == -9 else ""
    error = "" if good else late + ("; ".join(failures)[:900] or " ".join(text.split())[-600:] or f"exit code {code}")
    emit(Row("tests/gpu", name, step="tests", note="".join(summary), error=error))
    if not good:
        print(text[-6000:])
    return good


def main() -> None:
    """Run the step."""
    parts = 1 if dry() else max(1, min(12, (os.cpu_count() or 2) - 2))
    # -v prints each test as it starts, so that the output of a killed part shows the current test.
    options = ["-v", "-m", "gpu", "--confcutdir", "tests/gpu", "-p", "no:cacheprovider", "--maxfail", "25", "-rfE"]
    command = [sys.executable, "-u", "-m", "pytest", "tests/gpu", *options]
    # The parts keep all cores busy, so each part uses one thread.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    commands = {
        f"part {k + 1} of {parts}": (command, {**environment, "SPURMIX_GPU_SHARD": f"{k}/{parts}"})
        for k in range(parts)
    }
    sys.exit(0 if run_parallel(commands, ROOT, report) else 1)


if __name__ == "__main__":
    main()
