"""The command line `spurmix`. Set SPURMIX_TRACEBACK=1 to see the traceback of an error."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from spurmix._version import __version__
from spurmix.cli.audit import audit
from spurmix.cli.demo.command import demo
from spurmix.cli.evaluate import evaluate
from spurmix.cli.export import export
from spurmix.cli.failure import run_command
from spurmix.cli.features import features
from spurmix.cli.info import info
from spurmix.cli.inspect import inspect
from spurmix.cli.merge import merge
from spurmix.cli.pack import pack
from spurmix.cli.train import train
from spurmix.cli.verify import verify
from spurmix.cli.warmup import warmup

app = typer.Typer(
    name="spurmix",
    pretty_exceptions_enable=False,
    help="Remove spurious correlations from a model by group-balanced sampling and mixing.",
    no_args_is_help=True,
    add_completion=False,
)
for command in (info, demo, warmup, pack, features, merge, verify, inspect, audit, train, evaluate, export):
    app.command()(command)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"spurmix {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    sys.exit(run_command(app))
