"""`spurmix features`: a packed dataset through a frozen encoder into a packed dataset of features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spurmix.cli.data import Dataset, Shard, shard_of, tell_merge

if TYPE_CHECKING:
    from spurmix.data.dataset.packed import PackedDataset


def encoder(name: str | None, weights: str | None, dataset: PackedDataset) -> Any:
    """A model with its weights that reads `dataset`: of that name, or of the run in the folder `weights`."""
    from spurmix.train.runs.config import MODELS
    from spurmix.train.runs.files import CONFIG, MODEL, read_weights
    from spurmix.train.runs.model import make_model

    if weights is not None and (Path(weights) / CONFIG).is_file() and name is None:
        return read_weights(Path(weights) / MODEL)[0]
    readers = MODELS.get(dataset.kind, ()) if dataset.kind != "features" else ()
    if name not in readers:
        fits = ", ".join(readers) or "none"
        raise ValueError(f"--model: {dataset.path} holds {dataset.kind}, which {fits} can read; got {name!r}")
    if weights is None and name != "minilm":
        raise ValueError(f"--weights: {name} needs weights; features of random ones say nothing")
    return make_model(name, dataset, weights)


def features(
    dataset: Dataset,
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    model: Annotated[
        str | None, typer.Option(help='"resnet50" or "small" for images, "minilm", "bert" or "encoder" for texts.')
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A folder of Hugging Face, a file as of models.resnet50, or a finished run.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples at a time.", min=1)] = 256,
    device: Annotated[str | None, typer.Option(help='Such as "cuda"; default: a GPU where there is one.')] = None,
    dtype: Annotated[str, typer.Option(help='"float32" or "float16".')] = "float32",
    shard: Shard = None,
) -> None:
    """Pack what the last layer of a frozen model takes, for all splits: heads are then trained in seconds."""
    import os

    import torch

    from spurmix.data.dataset.packed import PackedDataset
    from spurmix.train.pack_features import pack_features

    part = shard_of(shard)
    opened = PackedDataset(dataset)
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    report = pack_features(
        encoder(model, weights, opened), opened, target,
        name=model or str(weights), batch_size=batch_size, device=device, dtype=dtype, shard=part,
    )  # fmt: skip
    print(report)
    tell_merge(target, part)
