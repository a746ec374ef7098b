"""`spurmix verify`: checks the contents of a packed dataset or of an exported file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from spurmix.cli.terminal import show

VerifiedArgument = Annotated[
    Path, typer.Argument(help="Folder of a packed dataset, or an ONNX file of spurmix export.")
]


def verify(path: VerifiedArgument) -> None:
    """Check the contents of a packed dataset or an exported ONNX file against the checksums in it."""
    if os.path.isfile(path):
        _verify_model(path)
        return
    from spurmix.data.dataset.packed import PackedDataset
    from spurmix.data.pack.job import counted

    opened = PackedDataset(path)
    damages = opened.verify()
    for damage in damages:
        show(damage)
    if damages:
        raise ValueError(f"{path} is damaged in {counted(len(damages), 'place')}; pack it again")
    show(f"{opened}: all checksums match")


def _verify_model(path: Path) -> None:
    from spurmix.deploy.file_metadata import parse_metadata
    from spurmix.deploy.model_file import DIGEST, read_model_file

    stored = read_model_file(path)
    stored.check(path)
    parse_metadata(path, stored.metadata)
    if DIGEST not in stored.metadata:
        raise ValueError(f"{path} has no checksum, because an earlier version wrote it; export the model again")
    show(f"{path}: the checksum matches")
