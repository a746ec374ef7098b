"""The data of a run: settings completed from the dataset, its splits, and their evaluation."""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spurmix.core.groups import GroupIndex
from spurmix.core.memory import available
from spurmix.core.names import listed
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.strays import is_stray
from spurmix.data.sources.arrays import ImageSource, Source
from spurmix.train.evaluate import evaluate_examples
from spurmix.train.evaluation import Evaluation
from spurmix.train.metrics import check_options
from spurmix.train.process import lost_process_named
from spurmix.train.runs.config import MODELS, SPLIT_NAMES, RunConfig
from spurmix.train.runs.processes import Processes


@dataclass(frozen=True)
class SplitData:
    """Examples and groups of a split.

    Attributes:
        name: Name of the split.
        source: Examples.
        groups: Groups of the examples.
        membership: Overlapping cells that decide the worst group, bool `[N, K]`.
        cell_names: Names of the K cells.
    """

    name: str
    source: Source
    groups: GroupIndex
    membership: NDArray[np.bool_] | None = None
    cell_names: tuple[str, ...] | None = None


def dataset_of(config: RunConfig) -> PackedDataset:
    """Open the dataset of a run.

    Args:
        config: Settings.

    Returns:
        The dataset.

    Raises:
        ValueError: If it is not there. A run finds its dataset by a path that is relative to its folder.
    """
    if not os.path.isdir(config.dataset):
        raise ValueError(
            f"dataset: {config.dataset} is not a folder; give the folder of the packed dataset, for example if it was "
            "moved"
        )
    return PackedDataset(config.dataset)


def complete(config: RunConfig, dataset: PackedDataset) -> RunConfig:
    """Replace the values "auto" and "" by those of the dataset.

    Args:
        config: Settings.
        dataset: Dataset of the run.

    Returns:
        Completed settings.

    Raises:
        ValueError: If splits or the model do not fit the dataset.
    """
    splits = dataset.splits
    strays = [name for name in dataset.metadata.class_names if dataset.kind == "images" and is_stray(name)]
    if strays:
        warnings.warn(
            f"dataset: classes of {dataset.path} are hidden or system folders: {', '.join(map(ascii, strays))}; pack the "
            "images again to leave them out",
            UserWarning,
            stacklevel=2,
        )
    filled = {"model": config.model or MODELS[dataset.kind][0]}
    if filled["model"] not in MODELS[dataset.kind]:
        raise ValueError(
            f"model must be one of {', '.join(MODELS[dataset.kind])} for {dataset.kind}, got {config.model!r}"
        )
    for key, names in SPLIT_NAMES.items():
        value = getattr(config, key)
        found = next((n for n in names if n in splits and n != config.train_split), "none")
        filled[key] = found if value == "auto" else value
        if filled[key] == config.train_split:
            raise ValueError(f"{key}: {value!r} is the training split; use another split or none")
    for key in ("train_split", *SPLIT_NAMES):
        name = filled.get(key, config.train_split)
        if name not in splits and not (name == "none" and key != "train_split"):
            raise ValueError(f"{key} must be one of {listed(splits, [name])}, got {name!r}")
    if not config.attribute and dataset.metadata.attribute_names:
        filled["attribute"] = next(iter(dataset.metadata.attribute_names))
    for key in ("crop", "flip", "channels_last"):
        if getattr(config, key) and dataset.kind != "images":
            raise ValueError(f"{key} requires images, the dataset has {dataset.kind}")
    if dataset.kind != "tokens" and config.mix_at != "embeddings":
        raise ValueError(f"mix_at requires texts, the dataset has {dataset.kind}")
    return dataclasses.replace(config, **filled)  # type: ignore[arg-type]  # every key is a string field


def read_split(
    config: RunConfig, dataset: PackedDataset, split: str, model: nn.Module, device: torch.device | None = None
) -> SplitData:
    """Open a split of the dataset, normalized as the model expects.

    Args:
        config: Completed settings.
        dataset: Dataset.
        split: Name of the split.
        model: Model.
        device: Device of the training batches. None for a split that is not trained on.

    Returns:
        The split.

    Raises:
        ValueError: If cells are requested and the dataset defines none.
    """
    part = dataset.split(split)
    memory = int(config.memory * 2**30) or available() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    source = part.source(tier=config.tier if device is not None else "auto", device=device, memory=memory)
    model_config = getattr(model, "config", None)
    mean = getattr(model_config, "image_mean", None)
    if isinstance(source, ImageSource) and model_config is not None and mean is not None:
        source = source.normalized(mean, model_config.image_std)
    cells = part.cells() if config.cells else None
    if config.cells and cells is None:
        raise ValueError(f"cells: {dataset.path} defines no overlapping cells; remove the setting")
    return SplitData(split, source, part.groups(config.attribute or None), *(cells or ()))


def evaluate_split(
    config: RunConfig, model: nn.Module, data: SplitData, train_groups: GroupIndex | None, processes: Processes
) -> Evaluation:
    """Evaluate a model on a split. Every process calls this function and reads its share.

    Args:
        config: Settings.
        model: Model.
        data: Split.
        train_groups: Groups whose sizes weight the adjusted average.
        processes: Processes.

    Returns:
        The evaluation.
    """
    return _evaluate_split(config, model, data, train_groups, processes, None)


def predict_split(
    config: RunConfig, model: nn.Module, data: SplitData, train_groups: GroupIndex | None, processes: Processes
) -> tuple[Evaluation, NDArray[np.int32]]:
    """Evaluate a model on a split as `evaluate_split` does, and return the predicted classes.

    Args:
        config: Settings.
        model: Model.
        data: Split.
        train_groups: Groups whose sizes weight the adjusted average.
        processes: Processes.

    Returns:
        The evaluation, and the predicted class of each example, int32 `[N]`.
    """
    predicted = torch.zeros(data.groups.num_examples, dtype=torch.int32, device=processes.device)
    evaluation = _evaluate_split(config, model, data, train_groups, processes, predicted)
    return evaluation, predicted.cpu().numpy()


def _evaluate_split(
    config: RunConfig, model: nn.Module, data: SplitData, train_groups: GroupIndex | None, processes: Processes,
    predicted: torch.Tensor | None,
) -> Evaluation:  # fmt: skip
    if processes.count > 1:  # running statistics differ between processes until the next training step
        with lost_process_named():
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
    options = check_options(
        data.groups, train_groups=train_groups, membership=data.membership, cell_names=data.cell_names,
        min_group_size=config.min_group_size,
    )  # fmt: skip
    return evaluate_examples(
        model, data.source, data.groups, options, batch_size=config.evaluation_batch, device=processes.device,
        sharded=processes.count > 1, predicted=predicted,
    )  # fmt: skip


def example_shape(dataset: PackedDataset) -> list[int]:
    """Shape of an example. Texts have none."""
    return [] if dataset.kind == "tokens" else list(dataset.array.shape[1:])
