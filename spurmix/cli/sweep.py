"""`spurmix sweep`: compares debiasing methods on a packed dataset under one protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spurmix.cli.options import JsonOption
from spurmix.cli.terminal import cell, show

if TYPE_CHECKING:
    from spurmix.train.sweep.statistics import SweepSummary

NAMES = (
    "erm", "class_balanced", "mixup", "group_balanced", "lisa", "selecmix", "mixpro", "dispel_policy",
    "balance_attributes", "group_dro", "jtt", "afr", "dfr", "dispel", "inferred",
)  # fmt: skip
"""Names of `spurmix.train.sweep.methods.METHODS`, which imports torch."""
DEFAULT_METHODS = "erm,group_balanced,balance_attributes,group_dro,dfr"


def sweep(
    source: Annotated[
        Path, typer.Argument(help="Folder of a packed dataset, or of a finished run that all methods start from.")
    ],
    methods: Annotated[
        str, typer.Option(help=f"Names separated by commas, or all: {', '.join(NAMES)}.")
    ] = DEFAULT_METHODS,
    trials: Annotated[int, typer.Option(help="Number of trials of each method.", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="Number of reported seeds.", min=1)] = 5,
    development_seeds: Annotated[int, typer.Option(help="Number of seeds that each trial runs with.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results. An interrupted sweep resumes there.")] = Path(
        "sweep"
    ),
    config: Annotated[Path | None, typer.Option(help="TOML file with settings of the training.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="Setting of spurmix train as name=value, for example epochs=5 or crop=true. Repeatable."),
    ] = None,
    pretrain_epochs: Annotated[
        float | None,
        typer.Option(
            help="Epochs of ERM before all methods.", min=0, show_default="a third of the epochs; none for a run"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu" or "cuda".')] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare methods with the same pre-trained model, budget, information and number of trials.

    For each method, the trial with the best worst group of the validation split is chosen. It is then trained with the
    reported seeds, which differ from the seeds of the trials, and tested. The last weights are evaluated.
    """
    from spurmix.data.pack.job import process_shard
    from spurmix.train.checkpoint import check_writable
    from spurmix.train.runs.config import parse_policy_option
    from spurmix.train.runs.files import write_text
    from spurmix.train.runs.processes import Processes
    from spurmix.train.sweep.log import SweepLog
    from spurmix.train.sweep.methods import METHODS
    from spurmix.train.sweep.open import open_task
    from spurmix.train.sweep.protocol import SweepPlan, run_plan
    from spurmix.train.sweep.statistics import summarize_methods

    names = tuple(METHODS) if methods == "all" else tuple(name.strip() for name in methods.split(","))
    plan = SweepPlan(
        names, trials, tuple(range(100, 100 + development_seeds)), tuple(range(200, 200 + seeds)), source.resolve().name
    )
    if process_shard()[1] > 1:
        raise ValueError("sweep runs in one process; start it without torchrun")
    check_writable(out)
    changes = {**dict(parse_policy_option(text, "--setting") for text in setting or ()), "device": device}
    task, digest = open_task(source, changes, config, pretrain_epochs, Processes(device))
    log = SweepLog(out / "results.jsonl", digest)
    rows = run_plan(plan, lambda seed: task, log, lambda line: show(line, error=as_json))
    if not rows:
        raise ValueError("no method could be trained; see the messages above")
    reference = "erm" if "erm" in names else names[0]
    summaries = summarize_methods(rows, reference)
    result = {"reference": reference, "methods": [s.to_dict() for s in summaries], "rows": rows}
    write_text(out / "report.json", json.dumps(result, indent=1))
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _print_summaries(summaries, reference)
        show(f"see {out / 'report.json'}")


def _print_summaries(summaries: list[SweepSummary], reference: str) -> None:
    """Print a table of the methods."""
    from rich.console import Console
    from rich.table import Table

    from spurmix.train.sweep.statistics import COLUMNS

    table = Table(title=f"worst group of the test split in %, difference from {reference}, 95% bootstrap intervals")
    for name in COLUMNS:
        table.add_column(name, no_wrap=name == "method")
    for summary in summaries:
        table.add_row(*map(cell, summary.cells()))
    Console().print(table)
