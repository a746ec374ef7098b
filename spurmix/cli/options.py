"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spurmix.cli.terminal import show

DatasetArgument = Annotated[Path, typer.Argument(help="Folder of a packed dataset.")]
TargetArgument = Annotated[Path, typer.Argument(help="Folder to create.")]
RunArgument = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
OtherDatasetOption = Annotated[
    str | None, typer.Option(help="Packed dataset to use instead of the run's.", show_default="dataset of the run")
]
AttributeOption = Annotated[
    str | None, typer.Option(help="Attribute that defines the groups.", show_default="first attribute")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ShardOption = Annotated[
    str | None,
    typer.Option(
        help="Pack only shard i of n, given as i/n with i from 0 to n - 1. Join the shards with spurmix merge.",
        show_default="all examples; under torchrun one shard per process",
    ),
]


def parse_shard(text: str | None) -> tuple[int, int]:
    """Parse --shard.

    Args:
        text: "i/n", or None for the shard of this process.

    Returns:
        Number of the shard and number of shards.

    Raises:
        ValueError: If the text is not i/n.
    """
    from spurmix.data.pack.job import process_shard

    if text is None:
        return process_shard()
    try:
        number, count = map(int, text.split("/"))
    except ValueError:
        raise ValueError(f"--shard must be i/n, for example 0/4, got {text!r}") from None
    return number, count


def print_merge_command(target: Path, shard: tuple[int, int]) -> None:
    """Print how to join the shards of `target`, if there are several."""
    if shard[1] > 1:
        show(f"after all {shard[1]} shards are packed, run: spurmix merge --target {target}")
