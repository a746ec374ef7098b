"""Retrains the head of a finished run, or fits one on packed features, and writes the result as a new run."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import torch
from torch import nn

from spurmix.core import checks
from spurmix.data.dataset.packed import PackedDataset
from spurmix.train.checkpoint import remove_leftover_folders, sync_to_disk
from spurmix.train.head import retrain_head
from spurmix.train.heads.options import HeadMethod, HeadOptions
from spurmix.train.heads.result import HeadFit, HeadTrial
from spurmix.train.runs.config import RunConfig, build_policy, portable, resolve, to_toml
from spurmix.train.runs.data import complete, evaluate_split, read_split
from spurmix.train.runs.files import CONFIG, MODEL, write_about, write_text, write_weights
from spurmix.train.runs.finished import open_run
from spurmix.train.runs.model import make_model
from spurmix.train.runs.processes import Processes
from spurmix.train.runs.run import describe_run

HEAD = "head.json"
"""File with the settings and the trials of a retrained head."""


@dataclass(frozen=True)
class HeadSource:
    """A model whose head is retrained, and its data.

    Attributes:
        folder: Folder of the run, or of the packed features.
        config: Settings.
        dataset: The dataset.
        model: The model.
    """

    folder: Path
    config: RunConfig
    dataset: PackedDataset
    model: nn.Module


@dataclass(frozen=True)
class RetrainedHead:
    """A retrained head.

    Attributes:
        folder: Folder of the new run.
        method: Name of the method.
        trials: Settings that were compared, with their accuracies on the validation examples. Empty if there was one
            setting and no validation split.
        best: The chosen trial, or None.
    """

    folder: Path
    method: str
    trials: tuple[HeadTrial, ...]
    best: HeadTrial | None

    def to_dict(self) -> dict[str, object]:
        """Return the result as a dict of JSON types."""
        return {
            "folder": str(self.folder),
            "method": self.method,
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }


def open_source(folder: Path, dataset: str | None, changes: Mapping[str, object]) -> HeadSource:
    """Open a finished run, or a packed dataset of features with a new linear model.

    Args:
        folder: Folder of the run or of the dataset.
        dataset: Packed dataset to use instead of the run's.
        changes: Settings that differ from those of the run, or from the defaults.

    Returns:
        The model and its data.

    Raises:
        ValueError: If the folder has neither, a setting is invalid, or the dataset has no features.
    """
    if (folder / CONFIG).is_file():
        opened = open_run(folder, dataset)
        config = dataclasses.replace(opened.config, dataset=os.path.abspath(opened.dataset.path))
        config = complete(resolve(changes, base=config), opened.dataset)
        return HeadSource(folder, config, opened.dataset, opened.model)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder of a finished run or of packed features")
    if dataset is not None:
        raise ValueError(f"--dataset replaces the dataset of a run, but {folder} is not the folder of a run")
    packed = PackedDataset(folder)
    if packed.kind != "features":
        raise ValueError(
            f"{folder} is a dataset of {packed.kind}, which has no model; give the folder of a finished run, or pack "
            "features (see spurmix features)"
        )
    config = complete(resolve({**changes, "dataset": str(folder)}), packed)
    torch.manual_seed(config.seed)
    return HeadSource(folder, config, packed, make_model(config.model, packed, None))


def check_target(out: Path) -> None:
    """Check that a run can be written to a folder.

    Args:
        out: The folder.

    Raises:
        ValueError: If it has no name, or exists and is not empty.
    """
    checks.new_path(out, "--out", len(".retraining-") + 8)
    if not out.name:
        raise ValueError(f"--out must name a folder for the run, got {str(out)!r}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out: {out} already exists; choose another folder or delete it")


def retrain(
    source: HeadSource, out: Path, method: str, options: HeadOptions, processes: Processes, progress: bool | None = None
) -> RetrainedHead:
    """Retrain the head, and write the model as a new run.

    Args:
        source: The model and its data. The model is changed.
        out: Folder to create. It appears under its name when it is complete.
        method: "sgd", or a method of `fit_head`.
        options: Hyperparameters of the methods of `fit_head`. Method "sgd" reads the settings of the source.
        processes: This process, and its device.
        progress: Whether to show progress bars. Default: only on a terminal.

    Returns:
        The result.

    Raises:
        ValueError: If the data does not fit the method, see `fit_head`, or the folder cannot be written.
    """
    check_target(out)
    config, model = dataclasses.replace(source.config, freeze="backbone"), source.model.to(processes.device)
    train = read_split(config, source.dataset, config.train_split, model)
    validation = None
    if config.validation_split != "none":
        validation = read_split(config, source.dataset, config.validation_split, model)
    if method == "sgd":
        trained = retrain_head(
            model, train.source, train.groups, build_policy(config), epochs=config.epochs, seed=config.seed,
            batch_size=config.batch_size, learning_rate=config.learning_rate, progress=progress,
        )  # fmt: skip
        steps, settings = trained.steps, {"epochs": config.epochs, "learning_rate": config.learning_rate}
        best, trials = None, tuple[HeadTrial, ...]()
        if validation is not None:
            found = evaluate_split(config, model, validation, None, processes)
            average = sum(group.accuracy for group in found.groups) / len(found.groups)
            best = HeadTrial(settings, found.worst_group, average, 1.0)
            trials = (best,)
    else:
        held_out = None if validation is None else (validation.source, validation.groups)
        fitted: HeadFit = retrain_head(
            model, train.source, train.groups, method=_fit_method(method), validation=held_out, head_options=options,
            progress=progress,
        )  # fmt: skip
        steps, best, trials = 0, fitted.best, fitted.trials
    result = RetrainedHead(out, method, trials, best)
    about = describe_run(config, source.dataset, train.groups, model)
    described = dataclasses.asdict(options) if method != "sgd" else {"policy": config.policy}
    write_retrained(result, source, config, {**about, "step": steps}, described)
    return result


def _fit_method(method: str) -> HeadMethod:
    return cast(HeadMethod, checks.choice(method, "method", get_args(HeadMethod)))


def write_retrained(
    result: RetrainedHead,
    source: HeadSource,
    config: RunConfig,
    about: Mapping[str, object],
    options: Mapping[str, object],
) -> None:
    """Write the folder of the run by rename. After an error, nothing is left.

    Args:
        result: The retrained head.
        source: The model and its data.
        config: Settings of the run.
        about: Description of the run, with its number of steps.
        options: Hyperparameters of the method.

    Raises:
        ValueError: If the folder cannot be written.
    """
    out = result.folder
    temporary = out.with_name(f".{out.name}.retraining-{os.getpid()}")
    described = {name: value for name, value in result.to_dict().items() if name != "folder"}
    described["options"] = dict(options)
    described["source"] = os.path.relpath(source.folder, os.path.realpath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftover_folders(out.parent, f".{glob.escape(out.name)}.retraining-[0-9]*")
        temporary.mkdir()
        write_text(temporary / HEAD, json.dumps(described, indent=1))
        write_about(temporary, {name: value for name, value in about.items() if name != "step"})
        write_text(temporary / CONFIG, to_toml(portable(config, out)))
        write_weights(temporary / MODEL, source.model, about, config)
        sync_to_disk(temporary)
        temporary.rename(out)
    except OSError as error:
        raise ValueError(f"--out: cannot write {out} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
