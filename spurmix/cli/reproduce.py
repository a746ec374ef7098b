"""`spurmix reproduce`: trains the methods of a recipe, and compares their worst groups with the published ones."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spurmix.cli.options import DatasetArgument
from spurmix.cli.terminal import cell, show
from spurmix.cli.training import train_method
from spurmix.core import checks
from spurmix.train.runs.config import find_method, resolve
from spurmix.train.runs.methods import METHODS, published_result
from spurmix.train.runs.recipes import RECIPES

if TYPE_CHECKING:
    from spurmix.train.evaluation import Evaluation
    from spurmix.train.runs.processes import Processes

RESULTS = "results.json"


@dataclass(frozen=True)
class MethodResult:
    """Accuracies of one method, one for each seed, as fractions.

    Attributes:
        method: Name of the method.
        worst_group: Accuracy of the worst group.
        adjusted_average: Average of the group accuracies, weighted by the sizes of the training groups.
        published: Published accuracy of the worst group in percent, or None.
        source: Publication of this accuracy, or "".
    """

    method: str
    worst_group: list[float]
    adjusted_average: list[float]
    published: float | None
    source: str


def reproduce(
    recipe: Annotated[str, typer.Argument(help=f"Recipe: {', '.join(RECIPES)}.")],
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the results.")] = Path("reproduction"),
    weights: Annotated[
        str | None, typer.Option(help="File or folder with the pre-trained weights, see spurmix train.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Method of the recipe. Repeatable.", show_default="all")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.", min=1)] = 1,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with settings that override those of every method.")
    ] = None,
    device: Annotated[str, typer.Option(help='"auto", "cpu" or "cuda".')] = "auto",
) -> None:
    """Train the methods of a recipe on your copy of its data, and compare the worst groups with the published ones.

    An interrupted command continues when it is repeated. Finished runs are only evaluated. Pack the data with spurmix pack
    first.
    """
    checks.choice(recipe, "recipe", METHODS)
    names = list(dict.fromkeys(method or METHODS[recipe]))
    for name in names:
        find_method(recipe, name)
    given: dict[str, object] = {"dataset": str(dataset), "device": device}
    if weights is not None:
        given["weights"] = weights
    resolve(given, config, recipe)  # checks the settings before the first training
    from spurmix.train.runs.files import write_text
    from spurmix.train.runs.processes import Processes

    processes = Processes(device)
    results = []
    for name in names:
        found = [_train(given, config, recipe, name, out, seed, processes) for seed in range(seeds)]
        published = published_result(recipe, name)
        results.append(
            MethodResult(
                name,
                [evaluation.worst_group for evaluation in found],
                [evaluation.adjusted_average for evaluation in found],
                published.worst_group if published is not None else None,
                published.source if published is not None else "",
            )
        )
    if processes.main:
        rows = [dataclasses.asdict(result) for result in results]
        write_text(out / RESULTS, json.dumps({"recipe": recipe, "results": rows}, indent=1))
        _print(recipe, results, out)
    processes.leave()


def _train(
    given: dict[str, object], config: Path | None, recipe: str, name: str, out: Path, seed: int, processes: Processes
) -> Evaluation:
    """Train a method with one seed. Return the evaluation on the test split, or else the validation split."""
    chosen = find_method(recipe, name)
    flags = given | {"seed": seed}
    stages = [resolve(flags, config, recipe, method=name, stage=stage) for stage in (1, 2)]
    if processes.main:
        show(f"\n{name}, seed {seed}", lines=True)
    first = out / f"{chosen.first_of or name}-first-{seed}"
    found = train_method(stages, name, chosen, out / f"{name}-{seed}", processes, resume=True, first=first)
    if not found:
        raise ValueError(f"dataset: {stages[0].dataset} has no validation or test split to evaluate on")
    return list(found.values())[-1]


def _print(recipe: str, results: Sequence[MethodResult], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        "method", "worst group", "adjusted average", "published worst group", "publication",
        title=f"{recipe}: accuracy in %, mean and standard deviation over seeds", title_justify="left",
    )  # fmt: skip
    for result in results:
        published = f"{result.published:.1f}" if result.published is not None else "-"
        table.add_row(
            result.method,
            _percent(result.worst_group),
            _percent(result.adjusted_average),
            published,
            cell(result.source),
        )
    console.print(table)
    show("Publications differ in their settings and in the number of trials, see docs/recipes.md.")
    console.print(cell(f"wrote {out / RESULTS}"), soft_wrap=True)


def _percent(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"
