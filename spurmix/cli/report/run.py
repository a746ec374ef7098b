"""The report of a training run: report.json, pictures, report.html and the evaluations on the terminal."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from spurmix.cli.correlations import residual_correlations
from spurmix.cli.report.page import write_page
from spurmix.cli.report.pictures import BLUE, GRAY, draw_accuracy, draw_audit, draw_curves, draw_samples
from spurmix.cli.report.text import ImageSamples
from spurmix.cli.terminal import show
from spurmix.cli.versions import versions
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import ImageSource
from spurmix.train.runs.config import DEFAULT, portable
from spurmix.train.runs.files import read_evaluations, write_text

if TYPE_CHECKING:
    from spurmix.core.audit import Audit
    from spurmix.train.runs.run import Outcome, TrainingRun


def write_report(run: TrainingRun, outcome: Outcome, audit: Audit, seconds: float) -> None:
    """Write report.json into the folder of the run, then the pictures and report.html, and print the evaluations.

    Args:
        run: The run.
        outcome: Its result.
        audit: Audit of the policy on the training split.
        seconds: Duration of the command.
    """
    out, training = run.folder, outcome.training
    result: dict[str, object] = {
        "config": dataclasses.asdict(portable(run.config, out)),
        "processes": run.processes.count,
        "training": {
            "optimizer_steps": training.steps,
            "batches": len(training.losses),
            "kept_step": outcome.kept_step,
            "last_loss": training.loss,
            "seconds": round(training.seconds, 1),
            "examples_per_second": round(training.rate, 1),
        },
        "evaluations": {name: evaluation.to_dict() for name, evaluation in outcome.evaluations.items()},
        "curve": read_evaluations(out),
        "audit": audit.to_dict(),
        "versions": versions(),
        "seconds": round(seconds, 1),
    }
    write_text(out / "report.json", json.dumps(result, indent=1))
    for name, evaluation in outcome.evaluations.items():
        show(name)
        show(f"{evaluation}\n", lines=True)
    try:
        _write_page(run, outcome, audit, result)
        where = f"see {out / 'report.html'}"
    except ImportError as error:
        where = f"see {out / 'report.json'} (no report.html: {error})"
    kept = f"kept the weights of batch {outcome.kept_step:,} of {len(training.losses):,}"
    show(f"{kept}, finished in {seconds:.1f} s; {where}")


def _write_page(run: TrainingRun, outcome: Outcome, audit: Audit, result: dict[str, object]) -> None:
    """Write the pictures and report.html."""
    out, groups, source = run.folder, run.loader.groups, run.train.source
    _, results = residual_correlations(groups)
    results[run.config.policy] = audit  # with the arguments of this run
    bars = {name: (r.residual, r.residual_given_lam) for name, r in results.items() if not isinstance(r, str)}
    evaluations = list(reversed(outcome.evaluations.items()))  # the test split first
    pictures = [
        draw_curves(out, outcome.training.losses, read_evaluations(out), outcome.kept_step),
        draw_audit(out, bars, audit.raw, run.config.attribute or "attribute"),
    ]
    if evaluations:
        colors = (BLUE, GRAY)
        pictures.append(draw_accuracy(out, [(n, e, c) for (n, e), c in zip(evaluations, colors, strict=False)]))
    if isinstance(source, ImageSource):  # samples of the training, without crops and flips
        loader = MixLoader(source, groups, run.policy, 16, seed=run.config.seed, steps=1, device="cpu", prefetch=0)
        pictures.append(draw_samples(out, ImageSamples(source, loader.batch(0), groups.class_names)))
    config = dataclasses.asdict(portable(run.config, out))
    changed = {name: value for name, value in config.items() if value != getattr(DEFAULT, name)}
    write_page(out, "run.html.j2", pictures, result=result, changed=changed, audit=str(audit), evaluations=evaluations)
