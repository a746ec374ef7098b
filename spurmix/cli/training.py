"""Trains a run, or the stages of a method, and prints the results. `spurmix train` and `spurmix reproduce` use it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spurmix.cli.terminal import show

if TYPE_CHECKING:
    from spurmix.train.evaluation import Evaluation
    from spurmix.train.runs.config import RunConfig
    from spurmix.train.runs.methods import Method
    from spurmix.train.runs.processes import Processes
    from spurmix.train.runs.run import Outcome, Regroup, TrainingRun


@dataclass(frozen=True)
class Trained:
    """A trained run and its result."""

    run: TrainingRun
    outcome: Outcome


def train_run(
    config: RunConfig, out: Path, processes: Processes, *, resume: bool, again: str = "", regroup: Regroup | None = None
) -> Trained:
    """Train a run, and write its report.

    Args:
        config: Settings.
        out: Folder of the run.
        processes: Processes that train.
        resume: Whether to continue the run in the folder.
        again: What to do to continue after an interruption. Default: resume the run in the folder.
        regroup: Function that makes the groups that batches are drawn by, see `run.prepare`.

    Returns:
        The run and its result.

    Raises:
        ValueError: If settings do not fit the data.
        KeyboardInterrupt: If the user interrupts the training.
    """
    from spurmix.train.runs import run

    start = time.perf_counter()
    training_run = run.prepare(config, out, processes, resume=resume, regroup=regroup)
    audit = training_run.policy.audit(training_run.loader.groups)
    if processes.main:
        show(f"{audit}\n\n{training_run.train.source!r}", lines=True)
    try:
        outcome = run.train(training_run, resume=resume)
    except KeyboardInterrupt:
        if processes.main:
            continued = again or f"run: spurmix train --resume --out {out}"
            show(f"spurmix: interrupted; to continue, {continued}", error=True)
        raise
    if processes.main:
        from spurmix.cli.report.run import write_report

        write_report(training_run, outcome, audit, time.perf_counter() - start)
    return Trained(training_run, outcome)


def train_method(
    stages: Sequence[RunConfig],
    name: str,
    method: Method,
    out: Path,
    processes: Processes,
    *,
    resume: bool,
    first: Path | None = None,
) -> dict[str, Evaluation]:
    """Train all stages of a method of a recipe.

    Args:
        stages: Settings of the first and the second training.
        name: Name of the method.
        method: The method.
        out: Folder of the result.
        processes: Processes that train.
        resume: Whether to continue the runs in the folders.
        first: Folder of the first of two stages. Default: a folder beside `out`, its name with "-first" appended.

    Returns:
        The evaluation of each held-out split.

    Raises:
        ValueError: If settings do not fit the data, or several processes would retrain a head.
    """
    again = "repeat the command with --resume"
    if processes.main:
        show(f"{name}: {method.source}. {method.note}".rstrip())
    if method.num_stages == 1:
        return train_run(stages[0], out, processes, resume=resume, again=again).outcome.evaluations
    if method.head is not None and processes.count > 1:
        raise ValueError(f"the method {name} retrains the head in one process; start it without torchrun")
    from spurmix.train.runs.files import MODEL, has_progress
    from spurmix.train.runs.stages import first_stage, regroup_errors, retrain_stage

    if not resume and has_progress(out):
        raise ValueError(f"out: {out} already has a run; resume it (--resume) or choose another folder")
    first = first if first is not None else out.with_name(f"{out.name}-first")
    settings, regroup = first_stage(stages[0], method)
    trained = train_run(settings, first, processes, resume=resume, again=again, regroup=regroup)
    if method.head is None:
        regroup = regroup_errors(trained.run)
        second = train_run(stages[1], out, processes, resume=resume, again=again, regroup=regroup)
        return second.outcome.evaluations
    finished = (out / MODEL).is_file()
    result = retrain_stage(trained.run, method, out, finished=finished)
    show(f"{out} has the result of an earlier call" if finished else result.head, lines=True)
    for split, evaluation in result.evaluations.items():
        show(f"\n{split}")
        show(evaluation, lines=True)
    return result.evaluations
