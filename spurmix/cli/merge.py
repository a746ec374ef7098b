"""`spurmix merge`: joins packed datasets, such as shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spurmix.cli.terminal import show


def merge(
    target: Annotated[Path, typer.Option(help="Folder to create.")],
    parts: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of packed datasets, in order.", show_default="all shards of the target: TARGET.shard-*-of-n"
        ),
    ] = None,
) -> None:
    """Join packed datasets, such as shards, into one."""
    from spurmix.data.pack.merge import merge as merge_datasets
    from spurmix.data.pack.merge import shards_of

    show(merge_datasets(parts or shards_of(target), target), lines=True)
