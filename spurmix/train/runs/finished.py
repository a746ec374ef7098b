"""Opens a finished run, to evaluate or export its model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.names import listed
from spurmix.data.dataset.packed import PackedDataset
from spurmix.train.runs.config import MODELS, RunConfig, read_run_config
from spurmix.train.runs.data import SplitData, dataset_of, example_shape, read_split
from spurmix.train.runs.files import CONFIG, MODEL, RunDescription, read_finished


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        config: Settings.
        dataset: Dataset of the run, or another one that fits its model.
        model: Trained model.
        train_groups: Groups of the training split.
        same_data: Whether the dataset is the one that the model was trained on.
    """

    config: RunConfig
    dataset: PackedDataset
    model: nn.Module
    train_groups: GroupIndex | None
    same_data: bool

    def split(self, name: str | None = None) -> SplitData:
        """Open a split of the dataset.

        Args:
            name: Name of the split. Default: see `split_name`.

        Returns:
            The split.

        Raises:
            ValueError: If no name is given and the run has no held-out split.
        """
        return read_split(self.config, self.dataset, self.split_name(name), self.model)

    def split_name(self, name: str | None = None) -> str:
        """Return the name of a split, by default of the test split of the run, or else of its validation split.

        Args:
            name: Name of the split, or None for the default.

        Returns:
            The name.

        Raises:
            ValueError: If no name is given and the run has no held-out split.
        """
        held_out = [s for s in (self.config.test_split, self.config.validation_split) if s != "none"]
        if name is None and not held_out:
            raise ValueError(f"split: the run has no held-out split; use one of {listed(self.dataset.splits)}")
        return name if name is not None else held_out[0]


def open_run(folder: Path, dataset: str | None = None) -> FinishedRun:
    """Open a finished run.

    Args:
        folder: Folder of the run.
        dataset: Folder of a dataset of the same kind, shape and classes. Default: the dataset of the run.

    Returns:
        The run.

    Raises:
        ValueError: If the folder has no finished run, or the dataset does not fit the model.
    """
    if not os.path.isfile(folder / CONFIG):
        raise ValueError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    config = read_run_config(folder / CONFIG)
    if not os.path.isfile(folder / MODEL):
        raise ValueError(f"the run in {folder} is not finished: it has no {MODEL}; resume it (spurmix train --resume)")
    opened = PackedDataset(dataset) if dataset is not None else dataset_of(config)
    model, about = read_finished(folder / MODEL)
    if config.model not in MODELS[opened.kind]:
        raise ValueError(f"dataset: {opened.path} has {opened.kind}, which the model {config.model} does not accept")
    names = list(opened.metadata.class_names)
    if names != about["classes"]:
        raise ValueError(
            f"dataset: the classes of {opened.path} are {listed(names, about['classes'])}, those of the run "
            f"{listed(about['classes'], names)}"
        )
    if example_shape(opened) != about["shape"]:
        raise ValueError(
            f"dataset: examples of {opened.path} have shape {example_shape(opened)}, those of the run {about['shape']}"
        )
    same_data = opened.digest() == about["dataset"]
    attribute_names: Sequence[str] | None = about.get("attribute_names")
    if attribute_names is None and same_data:  # a run of an earlier version
        attribute_names = opened.metadata.attribute_names.get(config.attribute)
    return FinishedRun(config, opened, model, _train_groups(about, config.attribute, attribute_names), same_data)


def _train_groups(about: RunDescription, attribute: str, attribute_names: Sequence[str] | None) -> GroupIndex | None:
    """Groups of the training split, from the description of the run. None if they are not cells."""
    label, value, size = np.array(about["groups"], dtype=np.int64).reshape(-1, 3).T
    if (label < 0).any():
        return None
    masked = np.ma.MaskedArray(value, mask=value == UNKNOWN)
    return GroupIndex(
        np.repeat(label, size),
        masked.repeat(size) if attribute else None,
        class_names=about["classes"],
        attribute_names=attribute_names or None,
    )
