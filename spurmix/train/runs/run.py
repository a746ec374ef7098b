"""A training run as a folder: settings, metrics, evaluations, checkpoints and the weights that are kept.

`config.toml`, `run.json` (what identifies the data, and the model's architecture), `metrics.jsonl` (a line a batch),
`evaluations.jsonl` (a line an evaluation), `checkpoints/`, `best-<batch>.safetensors` (the best weights so far) and, at
the end, `model.safetensors`. All but `metrics.jsonl`, which is appended to, appear by rename.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from spurmix.core.groups import GroupIndex
from spurmix.core.memory import available
from spurmix.core.policy import MixPolicy
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import ImageSource, Source
from spurmix.ops.augment import Augment
from spurmix.train import loss_log
from spurmix.train.evaluate import evaluate
from spurmix.train.finetune import TrainResult, finetune
from spurmix.train.loss_log import read_losses
from spurmix.train.metrics import Evaluation, check_options
from spurmix.train.process import check_precision
from spurmix.train.runs import files
from spurmix.train.runs.config import MODELS, SPLIT_NAMES, RunConfig, build_policy, read_run_config, to_toml
from spurmix.train.runs.files import ABOUT, CONFIG, MODEL, read_evaluations, read_weights, write_text, write_weights
from spurmix.train.runs.model import build_model, describe, rebuild

FREE = ("device", "evaluation_batch", "max_checkpoints", "memory", "prefetch", "save_every", "tier")
"""Settings that decide nothing about the result: a resumed run may have others."""
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Processes:
    """The processes of this job, by Accelerate: of torchrun, `accelerate launch`, or this one alone.

    Attributes:
        rank, count, device: of this process. main: whether it is the one that writes.
    """

    def __init__(self, device: str = "auto") -> None:
        from accelerate import PartialState

        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: CUDA is not available here")
        state = PartialState(cpu=device == "cpu")
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        self.device: torch.device = state.device
        self.main = self.rank == 0

    @property
    def progress(self) -> bool | None:
        """What bars are told: one process shows them, on a terminal."""
        return None if self.main else False

    def wait(self) -> None:
        """Go on when all processes are here."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    def leave(self) -> None:
        """Leave together, the process group closed: gloo's threads may abort a process that ends before that."""
        self.wait()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Part:
    """A split, ready to be read: its examples, groups, and overlapping cells where they decide."""

    name: str
    source: Source
    groups: GroupIndex
    membership: Any = None
    cell_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Job:
    """A run that is ready to begin: completed settings, its folder and processes, what it reads, trains and evaluates on."""

    config: RunConfig
    folder: Path
    processes: Processes
    policy: MixPolicy
    model: nn.Module
    train: Part
    held_out: dict[str, Part]
    loader: MixLoader
    about: dict[str, Any]
    held: IO[str] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run left: what training did, the batch whose weights were kept, and evaluations by split."""

    training: TrainResult
    kept_step: int
    evaluations: dict[str, Evaluation]


def complete(config: RunConfig, dataset: PackedDataset) -> RunConfig:
    """The settings with what "auto" and "" stand for filled in from the dataset.

    Raises:
        ValueError: for splits or a model that do not fit the dataset.
    """
    splits = dataset.splits
    filled: dict[str, Any] = {"model": config.model or MODELS[dataset.kind][0]}
    if filled["model"] not in MODELS[dataset.kind]:
        raise ValueError(f"model: of {dataset.kind} one of {', '.join(MODELS[dataset.kind])}, got {config.model!r}")
    for key, names in SPLIT_NAMES.items():
        value = getattr(config, key)
        found = next((n for n in names if n in splits and n != config.train_split), "none")
        filled[key] = found if value == "auto" else value
        if filled[key] == config.train_split:
            raise ValueError(f"{key}: {value!r} is trained on; name another split, or none")
    for key in ("train_split", *SPLIT_NAMES):
        name = filled.get(key, config.train_split)
        if name not in splits and not (name == "none" and key != "train_split"):
            raise ValueError(f"{key} must be one of {', '.join(splits)}, got {name!r}")
    if not config.attribute and dataset.metadata.attribute_names:
        filled["attribute"] = next(iter(dataset.metadata.attribute_names))
    for key in ("crop", "flip", "channels_last"):
        if getattr(config, key) and dataset.kind != "images":
            raise ValueError(f"{key} is for images; this dataset holds {dataset.kind}")
    if dataset.kind != "tokens" and config.mix_at != "embeddings":
        raise ValueError(f"mix_at is for texts; this dataset holds {dataset.kind}")
    return dataclasses.replace(config, **filled)


def read_part(
    config: RunConfig, dataset: PackedDataset, split: str, model: nn.Module, device: torch.device | None = None
) -> Part:
    """One split of the dataset, normalised as the model expects it; device: where training wants its batches."""
    part = dataset.split(split)
    memory = int(config.memory * 2**30) or available() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    source = part.source(tier=config.tier if device is not None else "auto", device=device, memory=memory)
    mean = getattr(getattr(model, "config", None), "image_mean", None)
    if isinstance(source, ImageSource) and mean is not None:
        source = source.normalized(mean, model.config.image_std)  # type: ignore[union-attr, arg-type]
    cells = part.cells() if config.cells else None
    if config.cells and cells is None:
        raise ValueError(f"cells: {dataset.path} has no attributes whose cells overlap")
    return Part(split, source, part.groups(config.attribute or None), *(cells or ()))


def prepare(config: RunConfig, folder: Path, processes: Processes, *, resume: bool = False) -> Job:
    """Check everything that can be checked before training, take the folder, and write the settings into it.

    Args:
        resume: continue the run in `folder`, whose settings and data must be the same; from its beginning where there is
            none. Without it, a run that made no checkpoint is begun anew.

    Raises:
        ValueError: for settings that do not fit, and a folder that holds another run, or one while `resume` is not given,
            or that another process trains into.
    """
    dataset = PackedDataset(config.dataset)
    config = complete(config, dataset)
    check_precision(config.mixed_precision, processes.device)
    policy = build_policy(config)
    _check_folder(folder, config, dataset, resume)
    before = files.read_about(folder) if resume and files.has_progress(folder) else None
    # Weights that training began with are not needed any more, and may be elsewhere by now.
    model = rebuild(before["architecture"]) if before else build_model(config, dataset)
    torch.manual_seed(config.seed)
    part = read_part(config, dataset, config.train_split, model, processes.device)
    held_out = {
        split: read_part(config, dataset, split, model)
        for split in (config.validation_split, config.test_split)
        if split != "none"
    }
    for one in held_out.values():
        check_options(
            one.groups, train_groups=part.groups, membership=one.membership, cell_names=one.cell_names,
            min_group_size=config.min_group_size,
        )  # fmt: skip
    loader = _loader(config, part, policy, processes)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    about = _about(config, dataset, part.groups, model)
    held = None
    if processes.main:
        held = files.hold(folder)
        _check_folder(folder, config, dataset, resume)  # another job may have been there since
        if not files.has_progress(folder):
            files.clear(folder)
            write_text(folder / ABOUT, json.dumps(about, indent=1))
            write_text(folder / CONFIG, to_toml(config))
    processes.wait()
    return Job(config, folder, processes, policy, model, part, held_out, loader, about, held)


def _about(config: RunConfig, dataset: PackedDataset, groups: GroupIndex, model: nn.Module) -> dict[str, Any]:
    """What identifies a run's data and describes its model."""
    cells = zip(groups.group_labels.tolist(), groups.group_attributes.tolist(), groups.sizes.tolist(), strict=True)
    return {
        "dataset": dataset.digest(),
        "shape": _shape(dataset),
        "classes": list(dataset.metadata.class_names),
        "groups": [list(cell) for cell in cells],
        "architecture": describe(model, config),
    }


def _shape(dataset: PackedDataset) -> list[int]:
    """Of an example; texts have none."""
    return [] if dataset.kind == "tokens" else list(dataset.array.shape[1:])


def _check_folder(folder: Path, config: RunConfig, dataset: PackedDataset, resume: bool) -> None:
    """Check that the run in `folder`, if there is one, may be continued with these settings and data."""
    if not files.has_progress(folder):
        return
    if not resume:
        raise ValueError(f"out: {folder} holds a run already; continue it (--resume) or choose another folder")
    before, about = read_run_config(folder / CONFIG), files.read_about(folder)
    if about.get("dataset") != dataset.digest():
        raise ValueError(f"dataset: {dataset.path} is not the data that the run in {folder} was begun with")
    free = (*FREE, "dataset", "weights")  # wherever they lie by now
    names = (f.name for f in dataclasses.fields(config) if f.name not in free)
    changed = [name for name in names if getattr(before, name) != getattr(config, name)]
    if changed:
        listed = ", ".join(f"{n} ({getattr(before, n)!r} there, {getattr(config, n)!r} here)" for n in changed)
        raise ValueError(f"out: the run in {folder} has other settings: {listed}")
    read_evaluations(folder)  # damaged lines are told now


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms alone, if that is wanted, as long as this lasts."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS refuses
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _loader(config: RunConfig, part: Part, policy: MixPolicy, processes: Processes) -> MixLoader:
    augment = None
    if config.crop or config.flip:
        size = config.crop_size or None
        augment = Augment(size=size, crop=config.crop, scale=(config.crop_area, 1.0), flip=config.flip)
    image = isinstance(part.source, ImageSource)
    return MixLoader(
        part.source, part.groups, policy, config.batch_size, seed=config.seed,
        steps=config.steps or None, epochs=None if config.steps else config.epochs,
        device=processes.device, dtype=DTYPES[config.mixed_precision] if image else torch.float32,
        channels_last=config.channels_last, augment=augment, rank=processes.rank, world_size=processes.count,
        prefetch=config.prefetch, bucket=config.bucket,
    )  # fmt: skip


def train(job: Job, *, resume: bool = False) -> Outcome:
    """Train, keep the weights that are best on the validation split, and evaluate them; every process calls.

    Raises:
        ValueError: as of `finetune`.
    """
    config, model = job.config, job.model
    with _deterministic(config.deterministic):
        if resume and (job.folder / MODEL).exists():
            training, kept_step = _finished(job)
        else:
            watch = _Watch(job)
            training = _finetune(job, watch, resume)
            kept_step = watch.restore_best()
            if job.processes.main:
                write_weights(job.folder / MODEL, model, {**job.about, "step": kept_step}, config)
        evaluations = {
            name: measure(config, model, p, job.train.groups, job.processes) for name, p in job.held_out.items()
        }
    if job.held is not None:
        job.held.close()
    return Outcome(training, kept_step, evaluations)


def _finetune(job: Job, watch: _Watch, resume: bool) -> TrainResult:
    config = job.config
    return finetune(
        job.model, job.loader, options=config.finetune_options(), output=job.folder, resume=resume,
        progress=job.processes.progress, save_every=watch.multiple(config.save_every or watch.pass_length),
        max_checkpoints=config.max_checkpoints, after_step=watch,
    )  # fmt: skip


def _finished(job: Job) -> tuple[TrainResult, int]:
    """Load the weights of a finished run; what its metrics say of the training."""
    _, about = read_weights(job.folder / MODEL, job.model)
    job.model.to(job.processes.device)
    losses = read_losses(job.folder / loss_log.FILE, len(job.loader))
    steps = math.ceil(len(job.loader) / job.config.accumulate)
    return TrainResult(steps, losses[-1], tuple(losses), 0.0, 0.0), int(about["step"])


def measure(
    config: RunConfig, model: nn.Module, part: Part, train_groups: GroupIndex | None, processes: Processes
) -> Evaluation:
    """Accuracy of every group of a split, read by all processes together."""
    if processes.count > 1:  # running means of norms are each process's own until the next step
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    return evaluate(
        model, part.source, part.groups, batch_size=config.evaluation_batch, train_groups=train_groups,
        membership=part.membership, cell_names=part.cell_names, min_group_size=config.min_group_size,
        device=processes.device, sharded=processes.count > 1,
    )  # fmt: skip


class _Watch:
    """Evaluations on the validation split while training goes on, and the weights that were best there."""

    def __init__(self, job: Job) -> None:
        self._job, self._steps = job, len(job.loader)
        self._part = job.held_out.get(job.config.validation_split)
        self.pass_length = max(1, math.ceil(job.train.groups.num_examples / job.config.batch_size))
        every = job.config.evaluate_every * self.pass_length
        self._every = self.multiple(max(1, round(every))) if every > 0 else self._steps

    def multiple(self, batches: int) -> int:
        """`batches`, or somewhat more: whole optimizer steps."""
        return math.ceil(batches / self._job.config.accumulate) * self._job.config.accumulate

    def is_due(self, step: int) -> bool:
        """Whether the model is evaluated after `step` batches."""
        return self._part is not None and (step % self._every == 0 or step == self._steps)

    def __call__(self, step: int) -> None:
        """Evaluate the model if an evaluation is due, and save its weights if they are the best so far."""
        job = self._job
        if self._part is None or not self.is_due(step):
            return
        found = measure(job.config, job.model, self._part, job.train.groups, job.processes)
        if not job.processes.main:
            return
        rows = [
            row for row in read_evaluations(job.folder) if row["step"] < step
        ]  # a resumed run makes later ones again
        for later, path in files.bests(job.folder).items():
            if later >= step:
                path.unlink()
        best = max((row["worst_group"] for row in rows), default=-1.0)
        summary = {"step": step, **{k: getattr(found, k) for k in ("worst_group", "average", "adjusted_average")}}
        if job.config.select == "best" and found.worst_group > best:
            write_weights(files.best_path(job.folder, step), job.model, summary, job.config)
        files.prune_bests(job.folder)  # which the checkpoints since may allow
        rows.append({**summary, "worst_name": found.worst_name})
        files.write_evaluations(job.folder, rows)

    def restore_best(self) -> int:
        """Load the best weights into every process's model, and say of which batch they are."""
        if self._job.config.select == "last" or self._part is None:
            return self._steps
        self._job.processes.wait()
        step, path = max(files.bests(self._job.folder).items())
        read_weights(path, self._job.model)
        self._job.processes.wait()
        return step


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: settings, its dataset or another one, its model, the groups it was trained on, and whether the
    dataset is the one it was trained on."""

    config: RunConfig
    dataset: PackedDataset
    model: nn.Module
    train_groups: GroupIndex | None
    same_data: bool

    def part(self, split: str | None = None) -> Part:
        """A split of the dataset; default: the run's test split, or else its validation split."""
        held_out = [s for s in (self.config.test_split, self.config.validation_split) if s != "none"]
        if split is None and not held_out:
            raise ValueError("split: the run has no held-out split; name one of its dataset's")
        return read_part(self.config, self.dataset, split if split is not None else held_out[0], self.model)


def open_run(folder: Path, dataset: str | None = None) -> FinishedRun:
    """Open the finished run in `folder`, with its own dataset or another one of the same kind, shape and classes.

    Raises:
        ValueError: for a folder without a finished run, or a dataset that does not fit its model.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no run: it has no {CONFIG}")
    config = read_run_config(folder / CONFIG)
    if not (folder / MODEL).is_file():
        raise ValueError(f"the run in {folder} is not finished: it has no {MODEL}; continue it (train --resume)")
    opened = PackedDataset(dataset if dataset is not None else config.dataset)
    model, about = read_weights(folder / MODEL)
    if config.model not in MODELS[opened.kind]:
        raise ValueError(f"dataset: {opened.path} holds {opened.kind}, the run's model is {config.model}")
    names = list(opened.metadata.class_names)
    if names != about["classes"]:
        theirs = ", ".join(about["classes"])
        raise ValueError(f"dataset: {opened.path} has the classes {', '.join(names)}, the run's model {theirs}")
    if _shape(opened) != about["shape"]:
        raise ValueError(
            f"dataset: an example of {opened.path} has the shape {_shape(opened)}, the run's {about['shape']}"
        )
    label, attribute, size = np.array(about["groups"], dtype=np.int64).reshape(-1, 3).T
    groups = GroupIndex(np.repeat(label, size), np.repeat(attribute, size)) if (label >= 0).all() else None
    return FinishedRun(config, opened, model, groups, opened.digest() == about["dataset"])
