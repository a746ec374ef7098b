"""The command line `spurmix`. Set SPURMIX_TRACEBACK=1 to see the traceback of an error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from spurmix._version import __version__
from spurmix.cli.audit import audit
from spurmix.cli.compare import compare
from spurmix.cli.demo.command import demo
from spurmix.cli.evaluate import evaluate
from spurmix.cli.export import export
from spurmix.cli.failure import run_command
from spurmix.cli.features import features
from spurmix.cli.info import info
from spurmix.cli.inspect import inspect
from spurmix.cli.merge import merge
from spurmix.cli.pack import pack
from spurmix.cli.reproduce import reproduce
from spurmix.cli.retrain_head import retrain_head
from spurmix.cli.sweep import sweep
from spurmix.cli.train import train
from spurmix.cli.verify import verify
from spurmix.cli.warmup import warmup

if TYPE_CHECKING:
    from typer._click import Context, Parameter


def _hide_flag_values(parameters: list[Parameter]) -> list[Parameter]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


class _Command(TyperCommand):
    """A command. Its help shows no value after flags."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        return _hide_flag_values(super().get_params(ctx))


class _Commands(TyperGroup):
    """All commands. The help shows no value after flags."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        return _hide_flag_values(super().get_params(ctx))


app = typer.Typer(
    name="spurmix",
    cls=_Commands,
    pretty_exceptions_enable=False,
    help="Remove spurious correlations from a model by group-balanced sampling and mixing.",
    no_args_is_help=True,
    add_completion=False,
)
for command in (
    info,
    demo,
    warmup,
    pack,
    features,
    merge,
    verify,
    inspect,
    audit,
    train,
    retrain_head,
    reproduce,
    evaluate,
    compare,
    sweep,
    export,
):
    app.command(cls=_Command)(command)


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
