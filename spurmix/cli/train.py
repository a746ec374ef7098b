"""`spurmix train`: trains on a packed dataset and writes a report."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from spurmix.cli.training import train_method, train_run
from spurmix.core import checks
from spurmix.train.runs.config import (
    DEFAULT,
    FIELDS,
    RENAMED,
    find_method,
    parse_policy_option,
    read_run_config,
    resolve,
)
from spurmix.train.runs.methods import METHOD_NAMES
from spurmix.train.runs.recipes import RECIPES

PANELS = {
    "attribute": "Data",
    "model": "Model",
    "policy": "Batches",
    "objective": "Training",
    "evaluate_every": "Evaluation and checkpoints",
    "tier": "Hardware",
}
"""Headings of the help. Each is shown above the setting that is its key."""
DATASET_HELP = "Folder of a packed dataset. Required, unless --config or a resumed run names it."


def train(
    dataset: str | None,
    out: Path,
    config: Path | None,
    recipe: str | None,
    method: str | None,
    resume: bool,
    **flags: object,
) -> None:
    """Train on a packed dataset, keep the best weights, evaluate them per group, and write a report.

    Flags override --config, which overrides --method and --recipe. A method with two stages, such as dfr, writes the first
    to a folder beside --out whose name ends with "-first". To use several processes, run
    torchrun --nproc-per-node 4 -m spurmix train ... or accelerate launch -m spurmix train ...
    """
    from spurmix.train.runs.files import CONFIG
    from spurmix.train.runs.processes import Processes

    if not out.name:
        raise ValueError(f"--out must name a folder for the run, got {str(out)!r}")
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    options = given.get("policy_options")
    if isinstance(options, list):
        given["policy_options"] = dict(map(parse_policy_option, options))
    if dataset is not None:
        given["dataset"] = dataset
    checks.new_path(out, "--out", len("-first"))
    known = resume and method is None and (out / CONFIG).is_file()
    base = read_run_config(out / CONFIG) if known else DEFAULT
    numbers = (1,) if method is None else (1, 2)
    stages = [resolve(given, config, recipe, base, method=method, stage=number) for number in numbers]
    settings = stages[0]
    if not settings.dataset:
        raise ValueError("dataset is required: give the folder of a packed dataset (see spurmix pack)")
    processes = Processes(settings.device)
    if processes.main and recipe is not None:
        print(f"{recipe}: {RECIPES[recipe].model}. {RECIPES[recipe].source}\n")
    if method is None:
        train_run(settings, out, processes, resume=resume)
    else:
        train_method(stages, method, find_method(recipe, method), out, processes, resume=resume)
    processes.leave()


def _signature() -> inspect.Signature:
    """Return the signature that typer reads: the parameters of `train`, and an option for every setting of a run."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = {
        "dataset": (Annotated[str | None, typer.Argument(help=DATASET_HELP)], None),
        "out": (Annotated[Path, typer.Option(help="Folder of the run.")], Path("run")),
        "config": (Annotated[Path | None, typer.Option(help="TOML file with settings.")], None),
        "recipe": (Annotated[str | None, typer.Option(help=f"Published settings: {', '.join(RECIPES)}.")], None),
        "method": (
            Annotated[
                str | None,
                typer.Option(help=f"Debiasing method of the recipe: {', '.join(METHOD_NAMES)}. See docs/recipes.md."),
            ],
            None,
        ),
        "resume": (
            Annotated[bool, typer.Option("--resume", help="Continue the run in --out, or start a new one.")],
            False,
        ),
    }
    parameters = [inspect.Parameter(n, kind, default=d, annotation=a) for n, (a, d) in arguments.items()]
    panel = ""
    for name, spec in FIELDS.items():
        if name in arguments:
            continue
        panel = PANELS.get(name, panel)
        default = getattr(DEFAULT, name)
        text, _, described = str(spec.metadata["help"]).partition(" Default: ")
        if spec.metadata["choices"]:
            text += f" One of {', '.join(spec.metadata['choices'])}."
        if name == "policy_options":
            option = typer.Option("--policy-option", help=f"{text} Repeatable.", rich_help_panel=panel)
            annotation: Any = Annotated[list[str] | None, option]
        else:
            shown = described.rstrip(".") or (f"no-{name.replace('_', '-')}" if default is False else str(default))
            option = typer.Option(help=text, rich_help_panel=panel, show_default=shown or False)
            annotation = Annotated[type(default) | None, option]
        parameters.append(inspect.Parameter(name, kind, default=None, annotation=annotation))
    for old, new in RENAMED.items():
        annotation = Annotated[type(getattr(DEFAULT, new)) | None, typer.Option(hidden=True)]
        parameters.append(inspect.Parameter(old, kind, default=None, annotation=annotation))
    return inspect.Signature(parameters)


train.__signature__ = _signature()  # type: ignore[attr-defined]
train.__annotations__ = {n: p.annotation for n, p in _signature().parameters.items()}
