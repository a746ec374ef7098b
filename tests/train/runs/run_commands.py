"""Settings of small training runs, and functions that run them in this process or by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked_python
from forked_python import ForkedProcess
from typer.testing import CliRunner

from spurmix.cli.app import app
from spurmix.train.runs import run
from spurmix.train.runs.config import resolve
from spurmix.train.runs.processes import Processes

IMAGES: dict[str, Any] = dict(
    model="small", batch_size=24, steps=40, crop=True, crop_area=0.5, flip=True, save_every=6, evaluate_every=0.8,
    learning_rate=0.03, schedule="constant", device="cpu",
)  # fmt: skip
FEATURES: dict[str, Any] = dict(batch_size=24, steps=30, learning_rate=0.05, accumulate=2, device="cpu")


def flags(settings: dict[str, Any]) -> list[str]:
    """Command-line flags of settings."""
    texts = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        texts += [flag] if value is True else [flag, str(value)]
    return texts


def start(*arguments: Any) -> ForkedProcess:
    """Start a command in a new process."""
    return forked_python.start(forked_python.MODULE, "spurmix", *arguments, modules=forked_python.TRAINING)


def invoke(*arguments: Any) -> str:
    """Run a command in this process. Return its output."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def call(*arguments: Any, processes: int = 1) -> str:
    """Run a command in new processes. Return the output of the first."""
    done = forked_python.run_ranks(
        processes, forked_python.MODULE, "spurmix", *arguments, modules=forked_python.TRAINING
    )
    assert all(rank.returncode == 0 for rank in done), done[0].stderr[-3000:]
    return done[0].stdout


def prepare(dataset: Path, out: Path, settings: dict[str, Any], resume: bool = False) -> run.TrainingRun:
    return run.prepare(resolve({**settings, "dataset": str(dataset)}), out, Processes("cpu"), resume=resume)


def train(dataset: Path, out: Path, settings: dict[str, Any], resume: bool = False) -> run.Outcome:
    """Train in this process."""
    return run.train(prepare(dataset, out, settings, resume), resume=resume)


def losses(folder: Path) -> list[float]:
    """Losses in `metrics.jsonl`."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
