"""`spurmix features`: a packed dataset through a frozen encoder into a packed dataset of features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spurmix.cli.data import Dataset, Shard, shard_of, tell_merge

if TYPE_CHECKING:
    from spurmix.data.store import PackedDataset

MODELS = {"resnet50": "images", "small": "images", "minilm": "tokens", "bert": "tokens"}
"""What each model reads."""


def encoder(name: str, weights: Path | None, dataset: PackedDataset) -> Any:
    """The model of that name with its weights, for the kind, channels and classes of `dataset`."""
    from spurmix.train import models
    from spurmix.train.weights import load_weights

    if name not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {name!r}")
    if dataset.kind != MODELS[name]:
        raise ValueError(f"--model {name} reads {MODELS[name]}; {dataset.path} holds {dataset.kind}")
    if weights is None and name != "minilm":
        raise ValueError(f"--weights: {name} needs weights; features of random ones say nothing")
    classes = len(dataset.metadata.class_names)
    if name == "minilm":
        folder = weights if weights is not None else models.minilm_folder()
        return models.text_classifier(classes, pretrained=folder)
    if name == "bert":
        return models.bert(classes, pretrained=weights)
    channels = dataset.array.shape[3]
    if name == "resnet50":
        return models.resnet50(classes, channels=channels, weights=weights)
    model = models.small_resnet(classes, channels=channels)
    load_weights(model, str(weights))
    return model


def features(
    dataset: Dataset,
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    model: Annotated[str, typer.Option(help='"resnet50" or "small" for images, "minilm" or "bert" for texts.')],
    weights: Annotated[
        Path | None, typer.Option(help="Weights: a folder of Hugging Face, or a file, as of `models.resnet50`.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples at a time.", min=1)] = 256,
    device: Annotated[str | None, typer.Option(help='Such as "cuda"; default: a GPU where there is one.')] = None,
    dtype: Annotated[str, typer.Option(help='"float32" or "float16".')] = "float32",
    shard: Shard = None,
) -> None:
    """Pack what the last layer of a frozen model takes, for all splits: heads are then trained in seconds."""
    import os

    import torch

    from spurmix.data.store import PackedDataset
    from spurmix.train.pack_features import pack_features

    part = shard_of(shard)
    opened = PackedDataset(dataset)
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    report = pack_features(
        encoder(model, weights, opened), opened, target,
        name=model, batch_size=batch_size, device=device, dtype=dtype, shard=part,
    )  # fmt: skip
    print(report)
    tell_merge(target, part)
