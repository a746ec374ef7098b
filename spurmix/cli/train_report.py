"""report.json, report.html and the terminal's table of a training run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from spurmix.cli import report
from spurmix.cli.app import versions
from spurmix.cli.data import residuals
from spurmix.core.audit import Audit
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import ImageSource
from spurmix.train.runs.config import DEFAULT
from spurmix.train.runs.files import read_evaluations, write_text
from spurmix.train.runs.run import Outcome, TrainingRun


def write(run: TrainingRun, outcome: Outcome, audit: Audit, seconds: float) -> None:
    """Write report.json into the run's folder, then pictures and report.html, and print the table."""
    out, done = run.folder, outcome.training
    result: dict[str, Any] = {
        "config": dataclasses.asdict(run.config),
        "processes": run.processes.count,
        "training": {
            "optimizer_steps": done.steps,
            "batches": len(done.losses),
            "kept_step": outcome.kept_step,
            "last_loss": done.loss,
            "seconds": round(done.seconds, 1),
            "examples_per_second": round(done.rate, 1),
        },
        "evaluations": {name: found.to_dict() for name, found in outcome.evaluations.items()},
        "curve": read_evaluations(out),
        "audit": audit.to_dict(),
        "versions": versions(),
        "seconds": round(seconds, 1),
    }
    write_text(out / "report.json", json.dumps(result, indent=1))
    for name, found in outcome.evaluations.items():
        print(f"{name}\n{found}\n")
    try:
        _page(run, outcome, audit, result)
        told = f"see {out / 'report.html'}"
    except ImportError as error:
        told = f"see {out / 'report.json'} ({error})"
    print(f"weights of batch {outcome.kept_step:,} of {len(done.losses):,}, {seconds:.1f} s; {told}")


def _page(run: TrainingRun, outcome: Outcome, audit: Audit, result: dict[str, Any]) -> None:
    """Write pictures and report.html."""
    out, groups, source = run.folder, run.train.groups, run.train.source
    _, left = residuals(groups)
    known = {name: value for name, value in left.items() if isinstance(value, float)} | {
        run.config.policy: audit.residual
    }
    evaluations = list(reversed(outcome.evaluations.items()))  # the test split first
    pictures = [
        report.draw_curves(out, list(outcome.training.losses), result["curve"], outcome.kept_step),
        report.draw_audit(out, known, audit.raw, run.config.attribute or "attribute"),
    ]
    if evaluations:
        colours = (report.BLUE, report.GREY)
        pictures.append(report.draw_accuracy(out, [(n, e, c) for (n, e), c in zip(evaluations, colours, strict=False)]))
    if isinstance(source, ImageSource):  # sixteen samples as they were trained on, but for crops and flips
        sample = MixLoader(source, groups, run.policy, 16, seed=run.config.seed, steps=1, device="cpu", prefetch=0)
        pictures.append(report.draw_samples(out, source, sample.batch(0), groups.class_names))
    changed = {k: v for k, v in result["config"].items() if v != getattr(DEFAULT, k)}
    report.render(
        out, "run.html.j2", pictures, result=result, changed=changed, audit=str(audit), evaluations=evaluations
    )  # fmt: skip
