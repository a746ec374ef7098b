"""`spurmix evaluate`: evaluates a finished run."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spurmix.cli.finished_run import open_finished_run
from spurmix.cli.options import JsonOption, OtherDatasetOption, RunArgument
from spurmix.cli.terminal import show

if TYPE_CHECKING:
    from spurmix.cli.class_effect import ClassEffect
    from spurmix.train.evaluation import Evaluation


def evaluate(
    folder: RunArgument,
    dataset: OtherDatasetOption = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split to evaluate on.", show_default="test split of the run, or else its validation split"),
    ] = None,
    min_group_size: Annotated[
        int | None,
        typer.Option(
            help="Minimum size of a group that can be the worst group.", min=1, show_default="setting of the run"
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Number of examples per batch.", min=1, show_default="setting of the run")
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="Show only this class, and the effect of its spurious feature on the accuracy."),
    ] = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu" or "cuda".')] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show the accuracy of a run's model in every group of a split, with 95% intervals.

    Under torchrun, the processes share the work.
    """
    from spurmix.train.runs.data import evaluate_split
    from spurmix.train.runs.processes import Processes

    processes = Processes(device)
    opened = open_finished_run(folder, dataset, processes.main)
    given: dict[str, Any] = {"min_group_size": min_group_size, "evaluation_batch": batch_size}
    settings = dataclasses.replace(opened.config, **{k: v for k, v in given.items() if v is not None})
    data = opened.split(split)
    result = evaluate_split(settings, opened.model.to(processes.device), data, opened.train_groups, processes)
    shown: Evaluation | ClassEffect = result
    if class_name is not None:
        from spurmix.cli.class_effect import class_effect

        shown = class_effect(result, data.groups, class_name)
    if processes.main:
        if as_json:
            print(json.dumps({"split": data.name, **shown.to_dict()}, indent=1))
        else:
            show(data.name)
            show(shown, lines=True)
    processes.leave()
