"""Training with several processes gives the results of one process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_python import MODULE, TRAINING, start_ranks
from run_commands import FEATURES, call, flags, losses, train


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_train_like_one(processes: int, features: Path, tmp_path: Path) -> None:
    alone = train(features, tmp_path / "alone", FEATURES)
    out = tmp_path / "together"
    call("train", features, "--out", out, *flags(FEATURES), processes=processes)
    report = json.loads((out / "report.json").read_text())
    assert report["processes"] == processes
    assert losses(out) == pytest.approx(list(alone.training.losses), abs=1e-5)
    for name, found in alone.evaluations.items():
        assert [g["correct"] for g in report["evaluations"][name]["groups"]] == [g.correct for g in found.groups]
    if processes > 2:
        found = json.loads(call("evaluate", out, "--json", "--device", "cpu", processes=processes))
        assert {k: v for k, v in found.items() if k != "split"} == report["evaluations"]["test"]


@pytest.mark.slow
def test_accelerate_launch(features: Path, tmp_path: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "-m",
        "spurmix",
    ]
    settings = flags(FEATURES)
    done = subprocess.run(
        [*launch, "train", str(features), "--out", str(tmp_path / "run"), *settings], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3)])
def test_resume_with_another_number_of_processes(first: int, then: int, features: Path, tmp_path: Path) -> None:
    alone = train(features, tmp_path / "alone", FEATURES)
    out, settings = tmp_path / "run", [*flags(FEATURES), "--save-every", "4"]
    arguments = ("train", str(features), "--out", str(out), *settings)
    processes = start_ranks(first, MODULE, "spurmix", *arguments, modules=TRAINING)
    while not any((out / "checkpoints").glob("step-*")):
        time.sleep(0.005)
    for process in processes:
        process.kill()
        process.wait()
    call("train", features, "--out", out, "--resume", *settings, processes=then)
    assert losses(out) == pytest.approx(list(alone.training.losses), abs=1e-5)
