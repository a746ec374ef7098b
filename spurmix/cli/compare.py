"""`spurmix compare`: paired tests of finished runs on the same test set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spurmix.cli.finished_run import open_finished_run
from spurmix.cli.options import JsonOption, OtherDatasetOption
from spurmix.cli.terminal import cell, show
from spurmix.core.names import distinct_names

if TYPE_CHECKING:
    from spurmix.train.comparison import Comparison


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_A RUN_B...", help="Folders of finished runs. Each is compared with RUN_A."),
    ],
    dataset: OtherDatasetOption = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split to compare on.", show_default="test split of each run, or else its validation split"),
    ] = None,
    attribute: Annotated[
        str | None, typer.Option(help="Attribute that defines the groups.", show_default="setting of the runs")
    ] = None,
    min_group_size: Annotated[
        int | None,
        typer.Option(
            help="Minimum size of a group that can be the worst group.", min=1, show_default="setting of RUN_A"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, report.json and a picture.", show_default="no report")
    ] = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu" or "cuda".')] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare the models of finished runs on the same test set, in every group.

    The test is the exact McNemar test. The intervals of differences are paired bootstrap intervals. The predictions that a
    run saved are used. Without them, its model predicts again.
    """
    from spurmix.cli.report.compare import write_report
    from spurmix.data.pack.job import process_shard
    from spurmix.train.checkpoint import check_writable
    from spurmix.train.runs.compare import compare_runs, predict_run
    from spurmix.train.runs.processes import Processes

    if len(folders) < 2:
        raise ValueError("compare requires two or more runs, for example: spurmix compare run-erm run-debiased")
    if process_shard()[1] > 1:
        raise ValueError("compare runs in one process; start it without torchrun")
    if out is not None:
        check_writable(out)
    processes = Processes(device)
    runs = [predict_run(folder, open_finished_run(folder, dataset), split, processes) for folder in folders]
    comparisons = compare_runs(runs, attribute, min_group_size)
    names = distinct_names([folder.resolve().name for folder in folders])
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    result: dict[str, object] = {
        "first": names[0],
        "split": runs[0].split,
        "runs": [
            {"name": name, "folder": str(run.folder), "saved_predictions": run.saved}
            for name, run in zip(names, runs, strict=True)
        ],
        "comparisons": [
            {"second": name, **comparison.to_dict()} for name, comparison in zip(names[1:], comparisons, strict=True)
        ],
    }
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        for name, comparison in zip(names[1:], comparisons, strict=True):
            _print_table(names[0], name, comparison)
    if out is not None:
        write_report(out, names, comparisons, result)
        if not as_json:
            show(f"see {out / 'report.html'}")


def _print_table(first: str, second: str, comparison: Comparison) -> None:
    """Print the differences of a run from the first."""
    from rich.console import Console
    from rich.table import Table

    title = f"accuracy of {cell(second)} against {cell(first)} in %, with exact McNemar tests"
    table = Table(comparison.unit, "examples", cell(first), cell(second), "difference", "p", "adjusted p", title=title)
    shown = distinct_names([row.name for row in comparison.rows])
    for name, row in zip(shown, comparison.rows, strict=True):
        table.add_row(
            cell(name), f"{row.count:,}", f"{100 * row.first:.1f}", f"{100 * row.second:.1f}",
            _with_interval(row.difference, row.low, row.high), f"{row.p_value:.2g}", f"{row.holm:.2g}",
        )  # fmt: skip
    table.add_section()
    table.add_row(
        f"worst {comparison.unit}", "", f"{100 * comparison.worst_first:.1f}", f"{100 * comparison.worst_second:.1f}",
        _with_interval(comparison.difference, comparison.low, comparison.high), "", "",
    )  # fmt: skip
    Console().print(table)


def _with_interval(difference: float, low: float, high: float) -> str:
    return f"{100 * difference:+.1f} ({100 * low:.1f} to {100 * high:.1f})"
