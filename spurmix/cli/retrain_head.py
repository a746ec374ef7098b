"""`spurmix retrain-head`: retrains the last layer of a finished run's model, or fits one on packed features."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spurmix.cli.options import JsonOption
from spurmix.cli.terminal import cell, show
from spurmix.core import checks

if TYPE_CHECKING:
    from spurmix.train.runs.retrain import RetrainedHead

METHODS = ("dfr", "dispel", "inferred", "logistic", "sgd")
FITS, SUBSETS = METHODS[:4], METHODS[:3]
BELONGS = {
    "C": FITS, "penalty": FITS, "fits": SUBSETS, "search_fits": SUBSETS, "s": ("dispel",), "alpha": ("dispel",),
    "policy": ("sgd",), "policy_option": ("sgd",), "epochs": ("sgd",), "learning_rate": ("sgd",), "batch_size": ("sgd",),
}  # fmt: skip
"""Methods that read an option."""
FIT_PANEL, SGD_PANEL = "Options of dfr, dispel, inferred and logistic", "Options of sgd"


def retrain_head(
    source: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a packed dataset of features.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "dfr",
    out: Annotated[
        Path | None, typer.Option(help="Folder to create.", show_default="SOURCE with the method appended")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Packed dataset to use instead of the run's.", show_default="dataset of the run")
    ] = None,
    attribute: Annotated[
        str | None, typer.Option(help="Attribute that defines the groups.", show_default="setting of the run")
    ] = None,
    validation_split: Annotated[
        str | None,
        typer.Option(
            help='Split that chooses hyperparameters. "none" uses half of the attributed training examples.',
            show_default="setting of the run",
        ),
    ] = None,
    c: Annotated[
        list[float] | None,
        typer.Option("--C", help="Inverse strength of the penalty. Repeatable.", rich_help_panel=FIT_PANEL),
    ] = None,
    penalty: Annotated[
        str | None, typer.Option(help="l1 or l2.", show_default="l2 for inferred, else l1", rich_help_panel=FIT_PANEL)
    ] = None,
    s: Annotated[
        list[float] | None,
        typer.Option("--s", help="Weight of the donor, for dispel. Repeatable.", rich_help_panel=FIT_PANEL),
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="Probability of mixing, for dispel. Repeatable.", rich_help_panel=FIT_PANEL),
    ] = None,
    fits: Annotated[
        int | None, typer.Option(help="Number of fits that are averaged.", rich_help_panel=FIT_PANEL)
    ] = None,
    search_fits: Annotated[
        int | None, typer.Option(help="Number of fits per setting of the search.", rich_help_panel=FIT_PANEL)
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Policy that draws and mixes features.", show_default="balance_attributes", rich_help_panel=SGD_PANEL
        ),
    ] = None,
    policy_option: Annotated[
        list[str] | None,
        typer.Option(help="Argument of the policy as name=value. Repeatable.", rich_help_panel=SGD_PANEL),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Number of passes over the training split.", show_default="10", rich_help_panel=SGD_PANEL),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate.", show_default="0.001", rich_help_panel=SGD_PANEL)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Number of examples per batch.", show_default="128", rich_help_panel=SGD_PANEL),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help='Device of the model: "auto", "cpu" or "cuda".')] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Retrain the last layer of a model, and write the model as a new run.

    dfr fits balanced subsets of the attributed examples, inferred subsets of all examples with inferred attributes, dispel
    all examples mixed with attributed ones, and logistic all examples. sgd trains with a policy. spurmix evaluate and
    spurmix export open the new run.
    """
    checks.choice(method, "--method", METHODS)
    own = {
        "C": c, "penalty": penalty, "fits": fits, "search_fits": search_fits, "s": s, "alpha": alpha, "policy": policy,
        "policy_option": policy_option, "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size,
    }  # fmt: skip
    given = {name: value for name, value in own.items() if value not in (None, [])}
    shared = {"attribute": attribute, "validation_split": validation_split, "seed": seed}
    target = out if out is not None else source.with_name(f"{source.resolve().name}-{method}")
    result = _retrain(
        source, dataset, method, target, given, {k: v for k, v in shared.items() if v is not None}, device
    )
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        _print_trials(result)


def _retrain(
    source: Path, dataset: str | None, method: str, out: Path, given: Mapping[str, object], shared: Mapping[str, object],
    device: str,
) -> RetrainedHead:  # fmt: skip
    """Check the options and retrain. `given` are options of the method, and `shared` settings of any method."""
    foreign = next((name for name in given if method not in BELONGS[name]), None)
    if foreign is not None:
        raise ValueError(
            f"--{foreign.replace('_', '-')} is not an option of method {method}; it belongs to "
            f"{' and '.join(BELONGS[foreign])}"
        )
    from spurmix.data.pack.job import process_shard
    from spurmix.train.heads.options import default_options
    from spurmix.train.runs.config import DEFAULT, parse_policy_option
    from spurmix.train.runs.processes import Processes
    from spurmix.train.runs.retrain import check_target, open_source, retrain

    if process_shard()[1] > 1:
        raise ValueError("retrain-head runs in one process; start it without torchrun")
    check_target(out)
    options, changes = default_options(method), dict(shared)
    if method == "sgd":
        names = ("policy", "policy_options", "epochs", "learning_rate", "batch_size")
        changes |= {**{name: getattr(DEFAULT, name) for name in names}, **given}
        texts = changes.pop("policy_option", [])
        assert isinstance(texts, list)
        changes["policy_options"] = dict(map(parse_policy_option, texts))
    else:
        options = dataclasses.replace(options, **given, seed=shared["seed"])  # type: ignore[arg-type]
    return retrain(open_source(source, dataset, changes), out, method, options, Processes(device))


def _print_trials(result: RetrainedHead) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if result.trials:
        names = list(result.trials[0].settings)
        title = f"{result.method}: accuracy on the validation examples"
        table = Table("", *names, "worst group", "mean of groups", "weights not 0", title=title, title_justify="left")
        for trial in result.trials:
            marks = "chosen" if trial is result.best else ""
            numbers = (f"{100 * value:.1f}%" for value in (trial.worst_group, trial.average, trial.nonzero))
            table.add_row(marks, *(f"{trial.settings[name]:g}" for name in names), *numbers)
        console.print(table)
    console.print(cell(f"wrote {result.folder}; to evaluate it, run: spurmix evaluate {result.folder}"), soft_wrap=True)
    if not result.trials:
        show("no validation examples were used, because there is one setting")
