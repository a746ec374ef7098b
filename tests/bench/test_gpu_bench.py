"""The GPU benchmark as a dry run on the CPU: every step runs, and errors become rows."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu import __main__ as runner  # noqa: E402
from bench.gpu import clock, parallel, record, training_steps  # noqa: E402
from bench.registry import Contender  # noqa: E402
from bench.row import Row  # noqa: E402


@pytest.mark.slow
def test_a_dry_run_runs_every_step(tmp_path: Path) -> None:
    target = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    rows = json.loads(target.read_text())["rows"]
    assert not [row for row in rows if row.get("error")]
    assert [row["step"] for row in rows if row["contender"] == "whole"] == list(runner.STEPS)
    measured = {(row["case"], row["contender"]) for row in rows if row["median_ms"] is not None}
    for case in ("images_256_bf16_last", "crops_256_bf16_last", "loss_8192_1000_float32", "draw_1e6", "rows_8192_2048"):
        assert (case, "spurmix triton") in measured, case
    assert {"spurmix loader, resident", "DataLoader, eager mixing"} <= {contender for _, contender in measured}
    for way in (
        "synthetic, one resident batch",
        "spurmix loader",
        "eager mixing, dense targets",
        "DataLoader, eager mixing",
    ):
        assert ("bert_64_128", way) in measured, way
    assert len(list(csv.DictReader(target.with_suffix(".csv").open()))) == len(rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu.csv", "gpu.json"]


def test_without_a_gpu_the_benchmark_stops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runner.main([]) == 2
    assert "no CUDA GPU found; use --dry-run to run on the CPU" in capsys.readouterr().err


def test_a_step_that_hangs_or_breaks_becomes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows"
    assert runner.run("latency", 0.2, rows, True).error == "killed after 0 s"
    assert runner.run("nothing", 60, rows, True).error.startswith("exit code 1: ")
    rows.write_text('{"step": "a", "case": "b", "contender": "c"}\n{"step": "a", "ca')
    assert record.rows_of(rows) == [Row("b", "c", step="a")]


def test_failing_and_differing_contenders_get_an_error_and_the_others_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(record.DRY, "1")
    monkeypatch.setenv(record.ROWS, str(tmp_path / "rows"))
    right = torch.arange(4.0)
    contenders = [
        Contender("broken", lambda: torch.zeros(2) @ torch.zeros(3), "ours"),
        Contender("wrong", lambda: right + 1, "ours"),
        Contender("good", lambda: right, "ours"),
        Contender("truth", lambda: right),
    ]
    clock.compare("step", "case", contenders, moved=100, bandwidth=1e6, tolerance=1e-6)
    with record.survived("step", "other"):
        raise ValueError("a reason")
    found = {row.contender: row for row in record.rows_of(tmp_path / "rows")}
    assert found["broken"].error.startswith("failed: ") and "differs from truth by 1" in found["wrong"].error
    assert found["good"].ratio == 1 and found["truth"].median_ms is not None and found["good"].share is not None
    assert found[""].error == "ValueError: a reason"


def test_parallel_processes_are_reported_even_if_one_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(record.UNTIL, str(time.time() + parallel.SPARE_S + 3))
    environment = dict(os.environ)
    scripts = {
        "quick": "print('done')",
        "broken": "import sys; sys.exit(3)",
        "hanging": "print('begun', flush=True); import time; time.sleep(600)",
    }
    commands = {name: ([sys.executable, "-c", script], environment) for name, script in scripts.items()}
    found: dict[str, tuple[int, str]] = {}

    def report(name: str, code: int, text: str) -> bool:
        found[name] = code, text.strip()
        return code == 0

    assert not parallel.run_parallel(commands, tmp_path, report)
    assert found == {"quick": (0, "done"), "broken": (3, ""), "hanging": (-9, "begun")}
    monkeypatch.delenv(record.UNTIL)
    assert parallel.run_parallel({"quick": commands["quick"]}, tmp_path, report)


def test_other_training_steps_continue_after_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(record.DRY, "1")
    monkeypatch.setenv(record.ROWS, str(tmp_path / "rows"))
    calls = {"at once": 0, "later": 0, "good": 0}

    def step(name: str, last: int) -> None:
        calls[name] += 1
        if calls[name] > last:
            raise ValueError(f"call {last + 1} of {name}")

    steps = {
        name: lambda name=name, last=last: step(name, last)
        for name, last in {"good": 99, "at once": 0, "later": 2}.items()
    }  # type: ignore[misc]
    training_steps.in_turns("case", steps, {})
    rows = {row.contender: row for row in record.rows_of(tmp_path / "rows")}
    assert rows["good"].median_ms is not None and rows["good"].ratio == 1
    assert rows["at once"].error == "ValueError: call 1 of at once"
    assert rows["later"].error == "ValueError: call 3 of later"
