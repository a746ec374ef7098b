"""`spurmix export`: exports the model of a finished run to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spurmix.cli.finished_run import open_finished_run
from spurmix.cli.options import OtherDatasetOption, RunArgument
from spurmix.cli.terminal import show
from spurmix.deploy.model_file import MAX_OPSET, MIN_OPSET, OPSET


def export(
    folder: RunArgument,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="model.onnx in the folder of the run")
    ] = None,
    dataset: OtherDatasetOption = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to verify the file on.", show_default="test split of the run, or else its validation split"
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Maximum difference between logits of the file and the model, as a fraction of the largest."),
    ] = 1e-3,
    opset: Annotated[
        int, typer.Option(help=f"Version of the ONNX operator set, from {MIN_OPSET} to {MAX_OPSET}.")
    ] = OPSET,
) -> None:
    """Export a run's model to ONNX, with preprocessing.

    The file is written only if its outputs on held-out data match the model's within the tolerance.
    """
    from spurmix.deploy.export import export_onnx
    from spurmix.deploy.export.onnx_export import check_request

    target = out if out is not None else folder / "model.onnx"
    check_request(target, tolerance, opset)
    opened = open_finished_run(folder, dataset)
    data = opened.split(split)
    report = export_onnx(
        opened.model, target, source=data.source, groups=data.groups,
        train_groups=opened.train_groups, membership=data.membership, cell_names=data.cell_names,
        min_group_size=opened.config.min_group_size, tolerance=tolerance, opset=opset,
        batch_size=opened.config.evaluation_batch,
        tokenizer=opened.dataset.tokenizer() if opened.dataset.kind == "tokens" else None,
    )  # fmt: skip
    show(report, lines=True)
