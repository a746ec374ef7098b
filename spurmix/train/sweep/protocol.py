"""The protocol: trials on development seeds choose hyperparameters by the validation split, reported seeds are tested."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from spurmix.core import checks
from spurmix.train.evaluate import evaluate
from spurmix.train.evaluation import Evaluation
from spurmix.train.runs.data import SplitData
from spurmix.train.sweep.log import SweepLog, TrialRow
from spurmix.train.sweep.methods import METHODS
from spurmix.train.sweep.statistics import SweepRow
from spurmix.train.sweep.task import SweepTask


@dataclass(frozen=True)
class SweepPlan:
    """What is compared.

    Attributes:
        methods: Names of methods, see `METHODS`.
        trials: Number of trials of each method.
        development: Seeds of the trials.
        reported: Seeds of the results, none of which is in `development`.
        setting: Name of the data.
        known: Number of attributed examples per group, or "all".
    """

    methods: tuple[str, ...]
    trials: int
    development: tuple[int, ...]
    reported: tuple[int, ...]
    setting: str = "data"
    known: int | str = "all"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TypeError: If a value has the wrong type.
            ValueError: If a method is unknown, there are too many trials, or a seed is in both lists.
        """
        checks.integer(self.trials, "trials", 1)
        if not self.methods or not self.development or not self.reported:
            raise ValueError("methods, development and reported must have one value or more")
        for name in self.methods:
            checks.choice(name, "methods", tuple(METHODS))
            METHODS[name].trials(self.trials)
        both = set(self.development) & set(self.reported)
        if both:
            raise ValueError(f"seed {min(both)} is a development seed and a reported seed; use other reported seeds")


def run_plan(
    plan: SweepPlan, task_of: Callable[[int], SweepTask], log: SweepLog, show: Callable[[str], None] = print
) -> list[SweepRow]:
    """Run all trials and results of a plan that the log does not have.

    The trial with the highest worst-group accuracy on the validation split, averaged over the development seeds, is chosen
    for each method. The test split is only used with the reported seeds.

    Args:
        plan: The plan.
        task_of: Returns the model and the data of a seed.
        log: Results so far. New ones are added.
        show: Function that prints a line about each result.

    Returns:
        The results of the methods that did not fail.
    """
    tasks = _LastTask(task_of)
    trials = {name: METHODS[name].trials(plan.trials) for name in plan.methods}
    scores: dict[str, dict[int, list[float]]] = {name: {} for name in plan.methods}
    for seed in plan.development:
        for name in plan.methods:
            for number, values in enumerate(trials[name]):
                row = log.find("trial", plan.setting, plan.known, name, number, seed)
                if row is None:
                    row = log.add(_run(plan, tasks, "trial", name, number, values, seed, log.protocol))
                    show(_line(row))
                if row["validation"] is not None:
                    scores[name].setdefault(number, []).append(row["validation"])
    results = []
    for seed in plan.reported:
        for name, found in scores.items():
            complete = {k: sum(v) / len(v) for k, v in found.items() if len(v) == len(plan.development)}
            if not complete:
                continue
            number = max(complete, key=lambda k: (complete[k], -k))
            row = log.find("result", plan.setting, plan.known, name, number, seed)
            if row is None:
                row = log.add(_run(plan, tasks, "result", name, number, trials[name][number], seed, log.protocol))
                show(_line(row))
            if "worst" in row:
                results.append(_as_result(row))
    return results


class _LastTask:
    """Makes the task of a seed when it is first needed, and keeps the last one."""

    def __init__(self, make: Callable[[int], SweepTask]) -> None:
        self._make = make
        self._seed: int | None = None
        self._task: SweepTask | None = None

    def __call__(self, seed: int) -> SweepTask:
        if self._task is None or seed != self._seed:
            self._task, self._seed = self._make(seed), seed
        return self._task


def _run(
    plan: SweepPlan, tasks: _LastTask, phase: str, name: str, number: int, values: Mapping[str, float], seed: int,
    protocol: str,
) -> TrialRow:  # fmt: skip
    """Train with a method and evaluate it, on the test split only for a result."""
    task, start = tasks(seed), time.perf_counter()
    row = TrialRow(
        protocol=protocol, phase=phase, setting=plan.setting, known=plan.known, method=name, trial=number, seed=seed,
        values=dict(values), validation=None,
    )  # fmt: skip
    try:
        model = METHODS[name].train(task, values, seed)
    except ValueError as error:
        row["error"] = str(error)
        return row
    row["validation"] = _evaluate(task, model, task.validation).worst_group
    if phase == "result":
        found = _evaluate(task, model, task.test)
        rows = [group for group in found.cells or found.groups if group.decides]
        row["worst"], row["average"] = found.worst_group, found.average
        row["groups"] = [[group.correct, group.count] for group in rows]
        make = METHODS[name].policy
        if make is not None:
            audit = make(task, values).audit(task.train.groups, prior=task.prior).to_dict()
            residuals = [audit["residual"], audit["residual_given_lam"]]
            row["residual"], row["residual_given_lam"] = (v if isinstance(v, float) else None for v in residuals)
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row


def _evaluate(task: SweepTask, model: nn.Module, data: SplitData) -> Evaluation:
    return evaluate(
        model, data.source, data.groups, batch_size=task.config.evaluation_batch, membership=data.membership,
        cell_names=data.cell_names, min_group_size=task.config.min_group_size, device=task.processes.device,
    )  # fmt: skip


def _line(row: TrialRow) -> str:
    values = ", ".join(f"{name}={value:g}" for name, value in row["values"].items())
    head = f"{row['setting']}, {row['known']} attributed, seed {row['seed']}, {row['method']} ({values})"
    if row["validation"] is None:
        return f"{head}: not trained: {row.get('error', '')}"
    text = f"{head}: validation worst group {100 * row['validation']:.1f}%"
    return f"{text}, test {100 * row['worst']:.1f}%" if "worst" in row else text


def _as_result(row: TrialRow) -> SweepRow:
    """Convert a line of the log."""
    result = SweepRow(
        setting=row["setting"], method=row["method"], seed=row["seed"], known=row["known"], worst=row["worst"],
        average=row["average"], groups=row["groups"], values=row["values"],
    )  # fmt: skip
    if "residual" in row:
        result["residual"], result["residual_given_lam"] = row["residual"], row["residual_given_lam"]
    return result
