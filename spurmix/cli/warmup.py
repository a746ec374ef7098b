"""`spurmix warmup`: compiles and tunes the Triton kernels in advance."""

from __future__ import annotations

from typing import Annotated

import typer


def warmup(
    batch: Annotated[list[int], typer.Option(help="Batch size. Repeatable.", min=1)] = [256],  # noqa: B006  # not modified
    dtype: Annotated[
        list[str], typer.Option(help="Data type of inputs and logits: float32, float16 or bfloat16. Repeatable.")
    ] = ["bfloat16"],  # noqa: B006  # not modified
    size: Annotated[int, typer.Option(help="Height and width of the model's input, in pixels.", min=1)] = 224,
    channels: Annotated[int, typer.Option(help="Channels of the images.", min=1)] = 3,
    columns: Annotated[int, typer.Option(help="Columns of the features or embeddings.", min=1)] = 2048,
    classes: Annotated[int, typer.Option(help="Number of classes.", min=1)] = 1000,
    crop: Annotated[bool, typer.Option(help="Compile for random crops.")] = False,
    flip: Annotated[bool, typer.Option(help="Compile for random flips.")] = False,
    channels_last: Annotated[bool, typer.Option(help="Compile for channels-last output.")] = True,
    capability: Annotated[
        int | None,
        typer.Option(
            help="Compile for this compute capability (90: H100) without a GPU.",
            min=70,
            max=130,
            show_default="the GPU of this machine",
        ),
    ] = None,
) -> None:
    """Compile and tune the Triton kernels in advance. Otherwise their first call in a training run takes seconds."""
    from spurmix.cli import warmup_kernels

    unknown = [name for name in dtype if name not in warmup_kernels.DTYPES]
    if unknown:
        raise ValueError(f"--dtype must be {' or '.join(warmup_kernels.DTYPES)}, got {unknown[0]!r}")
    shapes = [
        warmup_kernels.Shapes(
            batch_size, size, channels, columns, classes, warmup_kernels.DTYPES[name], crop, flip, channels_last
        )
        for batch_size in batch
        for name in dtype
    ]
    warmup_kernels.warm_up(shapes, capability)
