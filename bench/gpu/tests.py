"""Step `tests`: tests/gpu in several processes at once, as most of their time goes into compiling kernels."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from bench.gpu.record import Row, dry, emit
from bench.gpu.together import run_together

ROOT = Path(__file__).resolve().parents[2]


def told(name: str, code: int, text: str) -> bool:
    """A row of one process; whether all its tests passed."""
    summary = re.findall(r"\d+ (?:passed|failed|error|skipped|deselected)[^\n]*", text)[-1:]
    failures = re.findall(r"^(?:FAILED|ERROR) [^\n]*", text, re.MULTILINE)
    good = code in (0, 5)  # 5: nothing fell to this part
    late = "not done in time; " if code == -9 else ""
    error = "" if good else late + ("; ".join(failures)[:900] or " ".join(text.split())[-600:] or f"exit code {code}")
    emit(Row("tests", "tests/gpu", name, note="".join(summary), error=error))
    if not good:
        print(text[-6000:])
    return good


def main() -> None:
    parts = 1 if dry() else max(1, min(12, (os.cpu_count() or 2) - 2))
    # -v: what passed and what was under way is known of a part that is killed as well.
    options = ["-v", "-m", "gpu", "--confcutdir", "tests/gpu", "-p", "no:cacheprovider", "--maxfail", "25", "-rfE"]
    command = [sys.executable, "-u", "-m", "pytest", "tests/gpu", *options]
    # The parts keep all cores busy; threads of their own would only wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    commands = {
        f"part {k + 1} of {parts}": (command, {**environment, "SPURMIX_GPU_SHARD": f"{k}/{parts}"})
        for k in range(parts)
    }
    sys.exit(0 if run_together(commands, ROOT, told) else 1)


if __name__ == "__main__":
    main()
