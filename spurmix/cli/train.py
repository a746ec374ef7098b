"""Commands on training runs: train, evaluate, export."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from spurmix.train.runs.config import DEFAULT, FIELDS, RENAMED, parse_policy_option, read_run_config, resolve
from spurmix.train.runs.recipes import RECIPES

PANELS = {
    "attribute": "Data",
    "model": "Model",
    "policy": "Batches",
    "optimizer": "Training",
    "evaluate_every": "Evaluation and checkpoints",
    "tier": "Machine",
}
"""Headings of the help, by the setting that follows them."""
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
DatasetOption = Annotated[str | None, typer.Option(help="Another packed dataset; default: the run's.")]


def train(dataset: str | None, out: Path, config: Path | None, recipe: str | None, resume: bool, **flags: Any) -> None:
    """Train on a packed dataset, choose the best weights, evaluate them per group, and write a report.

    Settings are those of the flags, over those of --config, over those of --recipe. Several processes:
    torchrun --nproc-per-node 4 -m spurmix train ..., or accelerate launch -m spurmix train ...
    """
    from spurmix.train.runs import run
    from spurmix.train.runs.files import CONFIG
    from spurmix.train.runs.processes import Processes

    began = time.perf_counter()
    if not out.name:
        raise ValueError(f"--out: name a folder of its own, got {str(out)!r}")
    given = {name: value for name, value in flags.items() if value is not None and name != "policy_options"}
    if flags["policy_options"]:
        given["policy_options"] = dict(map(parse_policy_option, flags["policy_options"]))
    if dataset is not None:
        given["dataset"] = dataset
    goes_on = resume and (out / CONFIG).is_file()
    base = read_run_config(out / CONFIG) if goes_on else DEFAULT
    settings = resolve(given, config, recipe, base)
    if not settings.dataset:
        raise ValueError("dataset: name the folder of a packed dataset (see spurmix pack)")
    processes = Processes(settings.device)
    training_run = run.prepare(settings, out, processes, resume=resume)
    audit = training_run.policy.audit(training_run.train.groups)
    if processes.main:
        if recipe is not None:
            print(f"{recipe}: {RECIPES[recipe].model}. {RECIPES[recipe].source}\n")
        print(f"{audit}\n\n{training_run.train.source!r}", flush=True)
    try:
        outcome = run.train(training_run, resume=resume)
    except KeyboardInterrupt:
        if processes.main:
            print(f"spurmix: interrupted; spurmix train --resume --out {out} goes on", file=sys.stderr)
        raise
    if processes.main:
        from spurmix.cli import train_report

        train_report.write(training_run, outcome, audit, time.perf_counter() - began)
    processes.leave()


def _signature() -> inspect.Signature:
    """The parameters of `train`: its own, then a flag for every setting."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = {
        "dataset": (Annotated[str | None, typer.Argument(help="Folder of a packed dataset.")], None),
        "out": (Annotated[Path, typer.Option(help="Folder of the run.")], Path("run")),
        "config": (Annotated[Path | None, typer.Option(help="TOML file with settings.")], None),
        "recipe": (Annotated[str | None, typer.Option(help=f"Published settings: {', '.join(RECIPES)}.")], None),
        "resume": (
            Annotated[bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")],
            False,
        ),
    }
    parameters = [inspect.Parameter(n, kind, default=d, annotation=a) for n, (a, d) in own.items()]
    panel = ""
    for name, spec in FIELDS.items():
        if name in own:
            continue
        panel = PANELS.get(name, panel)
        default = getattr(DEFAULT, name)
        text = str(spec.metadata["help"])
        if spec.metadata["choices"]:
            text += f" One of {', '.join(spec.metadata['choices'])}."
        if name == "policy_options":
            several = typer.Option("--policy-option", help=f"{text} Repeatable.", rich_help_panel=panel)
            annotation: Any = Annotated[list[str] | None, several]
        else:
            text += f" Default: {default}." if default != "" else ""
            annotation = Annotated[type(default) | None, typer.Option(help=text, rich_help_panel=panel)]
        parameters.append(inspect.Parameter(name, kind, default=None, annotation=annotation))
    for old, new in RENAMED.items():
        annotation = Annotated[type(getattr(DEFAULT, new)) | None, typer.Option(hidden=True)]
        parameters.append(inspect.Parameter(old, kind, default=None, annotation=annotation))
    return inspect.Signature(parameters)


train.__signature__ = _signature()  # type: ignore[attr-defined]
train.__annotations__ = {n: p.annotation for n, p in _signature().parameters.items()}


def _open(folder: Path, dataset: str | None, main: bool = True) -> Any:
    from spurmix.train.runs.finished import open_run

    opened = open_run(folder, dataset)
    if main and dataset is None and not opened.same_data:
        print(f"note: {opened.dataset.path} was packed anew since the run was trained on it", file=sys.stderr)
    return opened


def evaluate(
    folder: Run,
    dataset: DatasetOption = None,
    split: Annotated[str | None, typer.Option(help="Split; default: the run's test split, or else validation.")] = None,
    min_group_size: Annotated[int | None, typer.Option(help="As of train; default: the run's.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples read at once.", min=1)] = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu" or "cuda".')] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Accuracy of a run's model in every group of a split, with intervals. Several processes share the work."""
    from spurmix.train.runs.data import evaluate_split
    from spurmix.train.runs.processes import Processes

    processes = Processes(device)
    opened = _open(folder, dataset, processes.main)
    given: dict[str, Any] = {"min_group_size": min_group_size, "evaluation_batch": batch_size}
    settings = dataclasses.replace(opened.config, **{k: v for k, v in given.items() if v is not None})
    data = opened.split(split)
    found = evaluate_split(settings, opened.model.to(processes.device), data, opened.train_groups, processes)
    if processes.main:
        print(json.dumps({"split": data.name, **found.to_dict()}, indent=1) if as_json else f"{data.name}\n{found}")
    processes.leave()


def export(
    folder: Run,
    out: Annotated[Path | None, typer.Option(help="File to write; default: model.onnx in the run's folder.")] = None,
    dataset: DatasetOption = None,
    split: Annotated[str | None, typer.Option(help="Split the file is proven on; default: as of evaluate.")] = None,
    tolerance: Annotated[float, typer.Option(help="Largest accepted difference of a logit.")] = 1e-3,
) -> None:
    """Write a run's model as ONNX, its preprocessing inside, proven per group on held-out data before the file appears."""
    from spurmix.deploy.export import export_onnx

    opened = _open(folder, dataset)
    data = opened.split(split)
    extra: dict[str, Any] = {"tokenizer": opened.dataset.tokenizer()} if opened.dataset.kind == "tokens" else {}
    report = export_onnx(
        opened.model, out if out is not None else folder / "model.onnx", source=data.source, groups=data.groups,
        train_groups=opened.train_groups, membership=data.membership, cell_names=data.cell_names,
        min_group_size=opened.config.min_group_size, tolerance=tolerance, batch_size=opened.config.evaluation_batch,
        **extra,
    )  # fmt: skip
    print(report)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (train, evaluate, export):
        app.command()(command)
