"""`python -m bench.gpu`: build, test and measure on a GPU, in under eight minutes, without a network.

Each step is a process with a time budget that appends its rows to a file, so that neither a crash nor a step that hangs
loses what was found. `--dry-run` rehearses all of it on a CPU.
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
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from bench.gpu.record import DRY, ROWS, UNTIL, Row, described, rows_of

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"build": 130, "tests": 110, "roofline": 130, "latency": 30, "training": 100, "sanitize": 90}
"""Seconds each step may take; what a step leaves is the next ones' too."""
LIMIT_S = 475


def run(step: str, budget: float, rows: Path, rehearsed: bool) -> Row:
    """Run a step; a row that says how it ended, in seconds and, where it failed, in words."""
    environment = {**os.environ, ROWS: str(rows), "TRITON_INTERPRET": "1" if rehearsed else "0"}
    environment[UNTIL] = str(time.time() + budget)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment |= {DRY: "1", "SPURMIX_GPU_TESTS": "cpu"} if rehearsed else {}
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
            code, error = -1, f"not done after {budget:.0f} s"
        with suppress(ProcessLookupError):  # and whatever it left running
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        text = output.read()
    print(text, end="", flush=True)
    if code and not error:
        error = f"exit code {code}: {' '.join(text.split())[-500:]}"
    summary = re.findall(r"\d+ (?:passed|failed|error|skipped)[^\n]*", text) if step == "tests" else []
    return Row(
        step, "step", "whole", note="; ".join([f"{time.perf_counter() - began:.0f} s", *summary[-1:]]), error=error
    )


def header(rehearsed: bool) -> dict[str, Any]:
    """Date, device and versions."""
    found: dict[str, Any] = {"date": str(date.today()), "python": platform.python_version(), "dry_run": rehearsed}
    import torch

    found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count()}
    for name in ("triton", "torchvision", "timm", "kornia"):
        try:
            found[name] = __import__(name).__version__
        except Exception:
            found[name] = "absent"
    if torch.cuda.is_available() and not rehearsed:
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


def save(head: dict[str, Any], rows: list[Row], target: Path) -> None:
    """The run as JSON, and its rows as CSV beside it."""
    import csv
    import io
    import json

    from bench.report import write_together

    text = json.dumps({**head, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    table = io.StringIO()
    kept = {k: head[k] for k in ("device", "torch", "triton", "date")}
    writer = csv.DictWriter(table, fieldnames=[*asdict(rows[0]), *kept])
    writer.writeheader()
    writer.writerows({**asdict(row), **kept} for row in rows)
    write_together((target, text), (target.with_suffix(".csv"), table.getvalue()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU: tiny shapes, Triton interpreted")
    parser.add_argument("--step", action="append", choices=list(STEPS), help="only this step; repeatable")
    parser.add_argument("--json", type=Path, help="default: bench/results/gpu-<device>.json; build/ in a rehearsal")
    arguments = parser.parse_args(argv)
    rehearsed = arguments.dry_run
    head = header(rehearsed)
    if not rehearsed and str(head["device"]).startswith("CPU"):
        print("bench.gpu: no CUDA GPU is seen here; --dry-run rehearses on the CPU", file=sys.stderr)
        return 2
    name = re.sub(r"[^a-z0-9]+", "-", str(head["device"]).lower()).strip("-")
    folder = ROOT / "build" / "bench" if rehearsed else ROOT / "bench" / "results"
    part = "".join(f"-{step}" for step in arguments.step or [])
    target = arguments.json or folder / f"gpu-{name}{part}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    rows_file = target.with_suffix(".rows")
    rows_file.unlink(missing_ok=True)
    print(", ".join(f"{k} {v}" for k, v in head.items()), flush=True)
    began, ended = time.perf_counter(), []
    chosen = arguments.step or list(STEPS)
    for step in chosen:
        later = sum(STEPS[s] for s in chosen[chosen.index(step) + 1 :])
        left = LIMIT_S - (time.perf_counter() - began)
        budget = max(10.0, min(left, max(STEPS[step], left - later)))
        print(f"\n{step} (at most {budget:.0f} s)", flush=True)
        ended.append(run(step, budget, rows_file, rehearsed))
        print(described(ended[-1]), flush=True)
        save(head, [*rows_of(rows_file), *ended], target)
    rows = [*rows_of(rows_file), *ended]
    rows_file.unlink(missing_ok=True)
    failed = [row for row in rows if row.error]
    print(f"\n{time.perf_counter() - began:.0f} s; written: {target}, {target.with_suffix('.csv').name}")
    for row in failed:
        print(f"FAILED {row.step} {row.case} {row.contender}: {row.error[:200]}", file=sys.stderr)
    print(", ".join(f"{count} {step}" for step, count in Counter(row.step for row in rows).items()), "rows")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
