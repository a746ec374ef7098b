"""A training run in a folder: settings, metrics, evaluations, checkpoints and the weights that are kept.

The folder has `config.toml`, `run.json` (a digest of the data and the architecture of the model), `metrics.jsonl` (one line
per batch), `evaluations.jsonl` (one line per evaluation), `checkpoints/`, `best-<batch>.safetensors` (the best weights so
far) and, at the end, `model.safetensors` and `predictions.safetensors` (the predicted classes of the held-out splits). All
files except `metrics.jsonl` are written by rename.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import nn

from spurmix.core.groups import GroupIndex
from spurmix.core.names import listed
from spurmix.core.policy import MixPolicy
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import ImageSource
from spurmix.ops.augment import Augment
from spurmix.train import loss_log
from spurmix.train.evaluation import Evaluation
from spurmix.train.finetune import TrainResult, finetune
from spurmix.train.loss_log import read_losses
from spurmix.train.metrics import check_options
from spurmix.train.objectives import GroupDRO, Objective
from spurmix.train.process import check_precision
from spurmix.train.runs import files
from spurmix.train.runs.config import RunConfig, build_policy, portable, read_run_config, to_toml
from spurmix.train.runs.data import (
    SplitData,
    complete,
    dataset_of,
    evaluate_split,
    example_shape,
    predict_split,
    read_split,
)
from spurmix.train.runs.files import (
    CONFIG,
    MODEL,
    EvaluationRow,
    read_evaluations,
    read_finished,
    read_weights,
    write_text,
    write_weights,
)  # fmt: skip
from spurmix.train.runs.model import build_model, describe, rebuild
from spurmix.train.runs.predictions import write_predictions
from spurmix.train.runs.processes import Processes

CHANGEABLE = ("device", "evaluation_batch", "max_checkpoints", "memory", "prefetch", "save_every", "tier")
"""Settings that do not affect the result, so that a resumed run may change them."""
Regroup = Callable[[GroupIndex], GroupIndex]
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingRun:
    """A run that is ready to train.

    Attributes:
        config: Completed settings.
        folder: Folder of the run.
        processes: Processes that train.
        policy: Policy that draws and mixes examples.
        model: Model to train.
        train: Split to train on.
        held_out: Validation and test split, by name.
        loader: Loader of the training batches.
        about: Contents of `run.json`.
        lock: Open file that locks the folder. None except in the main process.
    """

    config: RunConfig
    folder: Path
    processes: Processes
    policy: MixPolicy
    model: nn.Module
    train: SplitData
    held_out: dict[str, SplitData]
    loader: MixLoader
    about: dict[str, object]
    lock: IO[str] | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        training: Result of `finetune`.
        kept_step: Number of batches after which the kept weights were saved.
        evaluations: Evaluation of each held-out split, by name.
    """

    training: TrainResult
    kept_step: int
    evaluations: dict[str, Evaluation]


def prepare(
    config: RunConfig,
    folder: Path,
    processes: Processes,
    *,
    resume: bool = False,
    regroup: Regroup | None = None,
) -> TrainingRun:
    """Check everything that can be checked before training, lock the folder, and write the settings into it.

    Args:
        config: Settings.
        folder: Folder of the run.
        processes: Processes that train.
        resume: If True, continue the run in `folder`, which must have the same settings and data. If there is none,
            start one. If False, a run without a checkpoint is replaced.
        regroup: Function that maps the groups of the training split to those that batches are drawn by. Default: the same.

    Returns:
        The run.

    Raises:
        ValueError: If settings do not fit the data, the folder has another run, or another process trains into it.
    """
    dataset = dataset_of(config)
    config = complete(config, dataset)
    check_precision(config.mixed_precision, processes.device)
    policy = build_policy(config)
    _check_folder(folder, config, dataset, resume)
    before = files.read_about(folder) if resume and files.has_progress(folder) else None
    # A resumed run does not read the initial weights, which may have been moved.
    model = rebuild(before["architecture"]) if before else build_model(config, dataset)
    torch.manual_seed(config.seed)
    train_data = read_split(config, dataset, config.train_split, model, processes.device)
    held_out = {
        split: read_split(config, dataset, split, model)
        for split in (config.validation_split, config.test_split)
        if split != "none"
    }
    for data in held_out.values():
        check_options(
            data.groups, train_groups=train_data.groups, membership=data.membership, cell_names=data.cell_names,
            min_group_size=config.min_group_size,
        )  # fmt: skip
    groups = train_data.groups if regroup is None else regroup(train_data.groups)
    loader = make_loader(config, dataclasses.replace(train_data, groups=groups), policy, processes)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs of PyTorch
    about = describe_run(config, dataset, train_data.groups, model)
    lock = None
    if processes.main:
        lock = files.lock(folder)
        _check_folder(folder, config, dataset, resume)  # another process may have trained into it before the lock
        if not files.has_progress(folder):
            files.clear(folder)
            files.write_about(folder, about)
            write_text(folder / CONFIG, to_toml(portable(config, folder)))
    processes.wait()
    return TrainingRun(config, folder, processes, policy, model, train_data, held_out, loader, about, lock)


def describe_run(config: RunConfig, dataset: PackedDataset, groups: GroupIndex, model: nn.Module) -> dict[str, object]:
    """Return the contents of `run.json`: what identifies the data of a run, and the architecture of its model."""
    cells = zip(groups.group_labels.tolist(), groups.group_attributes.tolist(), groups.sizes.tolist(), strict=True)
    return {
        "dataset": dataset.digest(),
        "shape": example_shape(dataset),
        "classes": list(dataset.metadata.class_names),
        "attribute_names": list(groups.attribute_names or ()),
        "groups": [list(cell) for cell in cells],
        "architecture": describe(model, config),
    }


def _check_folder(folder: Path, config: RunConfig, dataset: PackedDataset, resume: bool) -> None:
    """Check that a run in the folder, if there is one, can be resumed with these settings and data."""
    if not files.has_progress(folder):
        return
    if not resume:
        raise ValueError(f"out: {folder} already has a run; resume it (--resume) or choose another folder")
    before, about = read_run_config(folder / CONFIG), files.read_about(folder)
    if about.get("dataset") != dataset.digest():
        raise ValueError(f"dataset: {dataset.path} differs from the data of the run in {folder}")
    _check_names(folder, about, config, dataset)
    unchecked = (*CHANGEABLE, "dataset", "weights")  # these two may have been moved
    names = (f.name for f in dataclasses.fields(config) if f.name not in unchecked)
    changed = [name for name in names if getattr(before, name) != getattr(config, name)]
    if changed:
        listed = ", ".join(f"{n} ({getattr(before, n)!r} in the folder, {getattr(config, n)!r} given)" for n in changed)
        raise ValueError(f"out: the run in {folder} has other settings: {listed}")
    read_evaluations(folder)  # reports corrupt lines before training


def _check_names(folder: Path, about: Mapping[str, list[str]], config: RunConfig, dataset: PackedDataset) -> None:
    """Check that numbers have the same names as in the run. The digest of the data does not include names."""
    found = {
        "classes": list(dataset.metadata.class_names),
        "attribute_names": list(dataset.metadata.attribute_names.get(config.attribute, ())),
    }
    for key, names in found.items():
        if about.get(key, names) != names:  # runs of earlier versions do not store the names of attributes
            raise ValueError(
                f"dataset: {key.replace('_', ' ')} of {dataset.path} are {listed(names, about[key])}, those of the run in "
                f"{folder} are {listed(about[key], names)}"
            )


def make_loader(config: RunConfig, data: SplitData, policy: MixPolicy, processes: Processes) -> MixLoader:
    """Create the loader of the training batches.

    Args:
        config: Completed settings.
        data: Split to train on.
        policy: Policy that draws and mixes examples.
        processes: Processes that train.

    Returns:
        The loader.
    """
    augment = None
    if config.crop or config.flip:
        size = config.crop_size or None
        augment = Augment(size=size, crop=config.crop, scale=(config.crop_area, 1.0), flip=config.flip)
    image = isinstance(data.source, ImageSource)
    return MixLoader(
        data.source, data.groups, policy, config.batch_size, seed=config.seed,
        steps=config.steps or None, epochs=None if config.steps else config.epochs,
        device=processes.device, dtype=DTYPES[config.mixed_precision] if image else torch.float32,
        channels_last=config.channels_last, augment=augment, rank=processes.rank, world_size=processes.count,
        prefetch=config.prefetch, bucket=config.bucket,
    )  # fmt: skip


def _objective(run: TrainingRun) -> Objective | None:
    config = run.config
    if config.objective == "group_dro":
        return GroupDRO(run.loader.groups, config.dro_step, config.dro_adjustment)
    return None


def train(run: TrainingRun, *, resume: bool = False) -> Outcome:
    """Train, keep the best weights on the validation split, and evaluate them. Every process calls this function.

    Args:
        run: The run.
        resume: Whether to resume from the newest checkpoint.

    Returns:
        The result, the same in every process.

    Raises:
        ValueError: See `finetune`.
    """
    config, model = run.config, run.model
    with _deterministic_algorithms(config.deterministic):
        if resume and (run.folder / MODEL).exists():
            training, kept_step = _load_finished(run)
        else:
            validation = _Validation(run)
            training = finetune(
                model, run.loader, options=config.finetune_options(), objective=_objective(run),
                output=run.folder, resume=resume, progress=run.processes.progress,
                max_checkpoints=config.max_checkpoints, after_step=validation,
                save_every=validation.whole_steps(config.save_every or validation.batches_per_epoch),
            )  # fmt: skip
            kept_step = validation.restore_best()
            if run.processes.main:
                write_weights(run.folder / MODEL, model, {**run.about, "step": kept_step}, config)
        evaluated = {
            name: predict_split(config, model, data, run.train.groups, run.processes)
            for name, data in run.held_out.items()
        }
        if run.processes.main and evaluated:
            predictions = {name: predicted for name, (_, predicted) in evaluated.items()}
            write_predictions(run.folder, predictions, str(run.about["dataset"]))
    if run.lock is not None:
        run.lock.close()
    return Outcome(training, kept_step, {name: evaluation for name, (evaluation, _) in evaluated.items()})


@contextmanager
def _deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use only deterministic algorithms of PyTorch, if enabled."""
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _load_finished(run: TrainingRun) -> tuple[TrainResult, int]:
    """Load the weights of a finished run. Return its training result and the step of the weights."""
    _, about = read_finished(run.folder / MODEL, run.model)
    run.model.to(run.processes.device)
    losses = read_losses(run.folder / loss_log.FILE, len(run.loader))
    steps = math.ceil(len(run.loader) / run.config.accumulate)
    return TrainResult(steps, losses[-1], tuple(losses), 0.0, 0.0), int(about["step"])


class _Validation:
    """Evaluates the model on the validation split during training, and keeps the best weights."""

    def __init__(self, run: TrainingRun) -> None:
        self._run, self._batches = run, len(run.loader)
        self._data = run.held_out.get(run.config.validation_split)
        self.batches_per_epoch = max(1, math.ceil(run.train.groups.num_examples / run.config.batch_size))
        every = run.config.evaluate_every * self.batches_per_epoch
        self._every = self.whole_steps(max(1, round(every))) if every > 0 else self._batches

    def whole_steps(self, batches: int) -> int:
        """Round a number of batches up to whole optimizer steps."""
        return math.ceil(batches / self._run.config.accumulate) * self._run.config.accumulate

    def is_due(self, step: int) -> bool:
        """Whether the model is evaluated after `step` batches."""
        return self._data is not None and (step % self._every == 0 or step == self._batches)

    def __call__(self, step: int) -> None:
        """Evaluate the model if an evaluation is due, and save its weights if they are the best so far."""
        run = self._run
        if self._data is None or not self.is_due(step):
            return
        found = evaluate_split(run.config, run.model, self._data, run.train.groups, run.processes)
        if not run.processes.main:
            return
        # A run that resumes from an earlier checkpoint repeats evaluations. Discard those of the interrupted run.
        rows = [earlier for earlier in read_evaluations(run.folder) if earlier["step"] < step]
        for later, path in files.bests(run.folder).items():
            if later >= step:
                path.unlink()
        best = files.highest_before(run.folder, rows, step)
        row = EvaluationRow(
            step=step, worst_group=found.worst_group, average=found.average, adjusted_average=found.adjusted_average,
            worst_name=found.worst_name,
        )  # fmt: skip
        if run.config.select == "best" and found.worst_group > best:
            about = {name: value for name, value in row.items() if name != "worst_name"}
            write_weights(files.best_path(run.folder, step), run.model, about, run.config)
        files.prune_bests(run.folder)
        files.write_evaluations(run.folder, [*rows, row])

    def restore_best(self) -> int:
        """Load the best weights in every process. Return the number of batches after which they were saved."""
        if self._run.config.select == "last" or self._data is None:
            return self._batches
        self._run.processes.wait()
        step, path = max(files.bests(self._run.folder).items())
        read_weights(path, self._run.model)
        self._run.processes.wait()
        return step
