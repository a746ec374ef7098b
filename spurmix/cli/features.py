"""`spurmix features`: packs the features that a frozen encoder computes for a packed dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spurmix.cli.options import DatasetArgument, ShardOption, TargetArgument, parse_shard, print_merge_command
from spurmix.cli.terminal import show

if TYPE_CHECKING:
    from torch import nn

    from spurmix.data.dataset.packed import PackedDataset


def load_encoder(name: str | None, weights: str | None, dataset: PackedDataset) -> nn.Module:
    """Load a model that reads `dataset`, with its weights.

    Args:
        name: Name of the model. Default: the model of the run in the folder `weights`.
        weights: File or folder with the weights.
        dataset: The dataset to read.

    Returns:
        The model.

    Raises:
        ValueError: If the model does not read the dataset, or the weights are missing.
    """
    from spurmix.train.runs.config import MODELS
    from spurmix.train.runs.files import CONFIG, MODEL, read_weights
    from spurmix.train.runs.model import make_model

    if weights is not None and os.path.isfile(Path(weights) / CONFIG) and name is None:
        return read_weights(Path(weights) / MODEL)[0]
    accepted = MODELS.get(dataset.kind, ()) if dataset.kind != "features" else ()
    if name not in accepted:
        models = f"must be one of {', '.join(accepted)}" if accepted else "does not apply"
        raise ValueError(f"--model {models} for {dataset.kind} ({dataset.path}), got {name!r}")
    if weights is None and name != "minilm":
        raise ValueError(f"--weights is required for {name}: features of random weights are useless")
    return make_model(name, dataset, weights)


def features(
    dataset: DatasetArgument,
    target: TargetArgument,
    model: Annotated[
        str | None,
        typer.Option(
            help="Encoder: resnet50 or small for images, minilm, bert or encoder for texts. Required, unless --weights is "
            "the folder of a finished run.",
            show_default="model of the run in --weights",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights of the encoder: a folder in Hugging Face format, a weights file, or the folder of a finished run. "
            "Required, except for minilm."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Number of examples per batch.", min=1)] = 256,
    device: Annotated[
        str | None, typer.Option(help='Device, for example "cuda".', show_default="a GPU if available")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Data type of the features: float32 or float16.")] = "float32",
    shard: ShardOption = None,
) -> None:
    """Pack the features of a frozen encoder, for all splits. A linear model on them trains in seconds.

    Features are the inputs of the encoder's last linear layer.
    """
    import torch

    from spurmix.data.dataset.packed import PackedDataset
    from spurmix.train.pack_features import pack_features

    number = parse_shard(shard)
    opened = PackedDataset(dataset)
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    report = pack_features(
        load_encoder(model, weights, opened), opened, target,
        name=model or str(weights), batch_size=batch_size, device=device, dtype=dtype, shard=number,
    )  # fmt: skip
    show(report, lines=True)
    print_merge_command(target, number)
