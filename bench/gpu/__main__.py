"""`python -m bench.gpu` builds, tests and measures on a GPU in under eight minutes, without a network.

Each step is a process with a time limit that appends its rows to a file, so that a crash or a hang of one step does not
lose the results of the others. `--dry-run` runs the same code on a CPU with tiny shapes.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from bench import report
from bench.gpu.record import DRY, ROWS, UNTIL, described, rows_of
from bench.row import Row

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"build": 130, "tests": 110, "roofline": 130, "latency": 30, "training": 100, "sanitize": 90}
"""Steps and their time limits in seconds. Later steps may also use the time that earlier ones did not need."""
LIMIT_S = 475
"""Time limit of the whole run in seconds. It is less than the sum of the steps' limits, so it can shorten later steps."""


def run(step: str, budget: float, rows: Path, dry_run: bool) -> Row:
    """Run a step.

    Args:
        step: Key of `STEPS`.
        budget: Seconds after which the step is killed.
        rows: File to which the step appends its rows.
        dry_run: Whether to run on a CPU.

    Returns:
        A row with the duration and, if the step failed, the error.
    """
    environment = {**os.environ, ROWS: str(rows), "TRITON_INTERPRET": "1" if dry_run else "0"}
    environment[UNTIL] = str(time.time() + budget)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment |= {DRY: "1", "SPURMIX_GPU_TESTS": "cpu"} if dry_run else {}
    began = time.perf_counter()
    error = ""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"bench.gpu.{step}"], cwd=ROOT, env=environment, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(budget)
        except subprocess.TimeoutExpired:
            code, error = -1, f"killed after {budget:.0f} s"
        with suppress(ProcessLookupError):  # also kill processes that the step started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        text = output.read()
    print(text, end="", flush=True)
    if code and not error:
        error = f"exit code {code}: {' '.join(text.split())[-500:]}"
    summary = re.findall(r"\d+ (?:passed|failed|error|skipped)[^\n]*", text) if step == "tests" else []
    note = "; ".join([f"{time.perf_counter() - began:.0f} s", *summary[-1:]])
    return Row("step", "whole", step=step, note=note, error=error)


def header(dry_run: bool) -> dict[str, Any]:
    """Return the date, device and versions of a run."""
    found: dict[str, Any] = {"date": str(date.today()), "python": platform.python_version(), "dry_run": dry_run}
    import torch

    found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count()}
    for name in ("triton", "torchvision", "timm", "kornia"):
        try:
            found[name] = __import__(name).__version__
        except Exception:  # an incompatible package can fail in any way at import
            found[name] = "absent"
    if torch.cuda.is_available() and not dry_run:
        device = torch.cuda.get_device_properties(0)
        found |= {
            "device": device.name,
            "memory_gib": round(device.total_memory / 2**30, 1),
            "sms": device.multi_processor_count,
        }
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        try:
            found["driver, clock, power"] = subprocess.run(
                query, capture_output=True, text=True, timeout=20
            ).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            pass
    else:
        found["device"] = f"CPU {platform.machine()}"
    return found


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="Build, test and measure spurmix on a GPU in under eight minutes."
    )
    parser.add_argument("--dry-run", action="store_true", help="run on a CPU with tiny shapes and interpreted Triton")
    parser.add_argument("--step", action="append", choices=list(STEPS), help="run only this step; may be repeated")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="output (default: bench/results/gpu-<device>.json; with --dry-run in build/bench)",
    )
    return parser.parse_args(argv)


def _target(arguments: argparse.Namespace, device: str) -> Path:
    """Return the result file."""
    if arguments.json is not None:
        return arguments.json
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    steps = "".join(f"-{step}" for step in arguments.step or [])
    folder = ROOT / "build" / "bench" if arguments.dry_run else report.RESULTS
    return folder / f"gpu-{name}{steps}.json"


def _run_steps(steps: list[str], head: dict[str, Any], target: Path, dry_run: bool) -> list[Row]:
    """Run steps and write the results after each one. Returns all rows."""
    rows_file = target.with_suffix(".rows")
    rows_file.unlink(missing_ok=True)
    began, ended = time.perf_counter(), []
    repeated = tuple(key for key in ("device", "torch", "triton", "date") if key in head)
    for k, step in enumerate(steps):
        reserved = sum(STEPS[later] for later in steps[k + 1 :])
        left = LIMIT_S - (time.perf_counter() - began)
        budget = max(10.0, min(left, max(STEPS[step], left - reserved)))
        print(f"\n{step} (at most {budget:.0f} s)", flush=True)
        ended.append(run(step, budget, rows_file, dry_run))
        print(described(ended[-1]), flush=True)
        report.save(head, [*rows_of(rows_file), *ended], target, repeated)
    rows = [*rows_of(rows_file), *ended]
    rows_file.unlink(missing_ok=True)
    print(f"\n{time.perf_counter() - began:.0f} s; written: {target}, {target.with_suffix('.csv').name}")
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status."""
    arguments = _arguments(argv)
    head = header(arguments.dry_run)
    if not arguments.dry_run and str(head["device"]).startswith("CPU"):
        print("bench.gpu: no CUDA GPU found; use --dry-run to run on the CPU", file=sys.stderr)
        return 2
    target = _target(arguments, str(head["device"]))
    target.parent.mkdir(parents=True, exist_ok=True)
    print(", ".join(f"{k} {v}" for k, v in head.items()), flush=True)
    rows = _run_steps(arguments.step or list(STEPS), head, target, arguments.dry_run)
    failed = [row for row in rows if row.error]
    for row in failed:
        print(f"FAILED {row.step} {row.case} {row.contender}: {row.error[:200]}", file=sys.stderr)
    print(", ".join(f"{count} {step}" for step, count in Counter(row.step for row in rows).items()), "rows")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
