"""Fine-tuning on mixed batches with Accelerate: precision, accumulation, clipping, schedules, checkpoints, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from torch import nn

from spurmix.core import checks
from spurmix.core.deprecation import renamed_argument
from spurmix.core.progress import bar
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.tokens import TokenSource
from spurmix.train import checkpoint
from spurmix.train.loss_log import LossLog
from spurmix.train.models import modes_kept
from spurmix.train.objectives import Objective
from spurmix.train.options import FinetuneOptions, FinetuneOverrides
from spurmix.train.process import accelerated, check_precision
from spurmix.train.training_state import TrainingState

AfterStep = Callable[[int], None]
"""Function of the number of batches so far."""


@dataclass(frozen=True)
class TrainResult:
    """Result of `finetune`.

    Attributes:
        steps: Number of optimizer steps.
        loss: Loss of the last batch.
        losses: Loss of every global batch. NaN if `metrics.jsonl` of a resumed run has no line for the batch.
        seconds: Training time in seconds.
        rate: Number of examples per second.
    """

    steps: int
    loss: float
    losses: tuple[float, ...]
    seconds: float
    rate: float


class FinetuneArguments(FinetuneOverrides, total=False):
    """Keyword arguments of `finetune`, except `progress`."""

    options: FinetuneOptions | None
    objective: Objective | None
    output: str | Path | None
    save_every: int | None
    max_checkpoints: int
    resume: bool
    after_step: AfterStep | None


ARGUMENTS = ("options", "objective", "output", "save_every", "max_checkpoints", "resume", "progress", "after_step")
"""Keyword arguments of `finetune` that are not options."""


@renamed_argument(keep="max_checkpoints")
def finetune(
    model: nn.Module,
    loader: MixLoader,
    *,
    options: FinetuneOptions | None = None,
    objective: Objective | None = None,
    output: str | Path | None = None,
    save_every: int | None = None,
    max_checkpoints: int = 2,
    resume: bool = False,
    progress: bool | None = None,
    after_step: AfterStep | None = None,
    **overrides: Unpack[FinetuneOverrides],
) -> TrainResult:
    """Fine-tune a model in place on the batches of a loader.

    The training or evaluation mode of every module is restored at the end, also after an error.

    Args:
        model: Model that maps `batch.input` to logits. It returns a tensor, an object with `.logits`, or a tuple whose
            first element is the logits. For texts, use a `MixedInputs`.
        loader: Loader that defines the data, order, batch size and number of batches. With several processes (torchrun,
            accelerate launch), each process passes a loader with its `rank` and `world_size`.
        options: Optimization options. Default: `FinetuneOptions()`.
        objective: Objective to minimize, such as `GroupDRO`. Default: the mean of the losses (ERM).
        output: Folder for `metrics.jsonl` and `checkpoints/`.
        save_every: Number of batches between checkpoints. Default: one checkpoint at the end.
        max_checkpoints: Maximum number of checkpoints to keep.
        resume: If True, continue from the newest valid checkpoint. A finished run returns at once. If False, new
            checkpoints replace those of an earlier run.
        progress: Whether to show a progress bar. Default: only on a terminal.
        after_step: Function that every process calls after each optimizer step, before a checkpoint, with the number
            of batches so far. If it has a method `is_due(step)` that returns False, losses are not read for that step.
        **overrides: Options by name, which replace those of `options`: `optimizer`, `learning_rate`, `weight_decay`,
            `decay_all`, `momentum`, `schedule`, `stages`, `warmup`, `mixed_precision`, `accumulate`, `clip`, `freeze`
            and `label_smoothing`. See `FinetuneOptions` for their meaning and defaults.

    Returns:
        The number of optimizer steps, the loss of every batch and the speed.

    Raises:
        TypeError: If an argument is unknown or has the wrong type.
        ValueError: If an argument is invalid, `output` is not writable, a loss is not finite, or the checkpoints are
            corrupt or belong to another run. Losses are read in blocks, so that an error may come up to 32 batches
            late. It always comes before a checkpoint is written.

    Example:
        >>> loader = MixLoader(features, groups, policies.lisa(), batch_size=32, epochs=3)
        >>> result = finetune(model, loader, learning_rate=1e-4, output="run")
    """
    checks.instance(model, "model", nn.Module)
    checks.instance(loader, "loader", MixLoader)
    checks.instance(options, "options", FinetuneOptions, optional=True)
    checks.instance(objective, "objective", Objective, optional=True)
    options = (options or FinetuneOptions()).replace(overrides, ARGUMENTS)
    resume, max_checkpoints = checks.flag(resume, "resume"), checks.integer(max_checkpoints, "max_checkpoints", 1)
    save_every = None if save_every is None else checks.integer(save_every, "save_every", 1)
    if progress is not None:
        checks.flag(progress, "progress")
    if after_step is not None and not callable(after_step):
        raise TypeError(f"after_step must be a function of a number of batches, got {type(after_step).__name__}")
    check_precision(options.mixed_precision, loader.device)
    if isinstance(loader.source, TokenSource):
        loader.source.check_model(model)
    folder = checks.new_path(output, "output") if output is not None else None
    if folder is None and (resume or save_every):
        raise ValueError("output is required for checkpoints (resume, save_every); give a folder")
    if folder is not None:
        checkpoint.check_writable(folder)
    with accelerated(loader.device, options.mixed_precision) as accelerator, modes_kept(model):
        state = TrainingState(model, loader, options, accelerator, objective)
        log = LossLog(folder, accelerator.is_main_process)
        checkpoints = _Checkpoints(folder, state, log, save_every, max_checkpoints)
        if not (resume and checkpoints.load()) and loader.step >= len(loader):
            loader.set_step(0)  # the previous run of this loader ended there
        first, began = loader.step, time.perf_counter()
        steps = math.ceil(len(loader) / options.accumulate)
        if first >= len(loader):
            return TrainResult(steps, log.losses[-1] if log.losses else math.nan, tuple(log.losses), 0.0, 0.0)
        _train(state, log, checkpoints, progress, after_step)
        seconds = time.perf_counter() - began
        examples = (len(loader) - first) * loader.batch_size
        return TrainResult(steps, log.losses[-1], tuple(log.losses), seconds, examples / seconds)


def _train(
    state: TrainingState, log: LossLog, checkpoints: _Checkpoints, progress: bool | None, after_step: AfterStep | None
) -> None:
    """Train on the remaining batches of the loader."""
    loader = state.loader
    total, first = len(loader), loader.step
    state.set_modes()
    with log:
        for batch in bar(loader, "training", total=total, size=loader.batch_size, done=first, shown=progress):
            done = loader.step
            rate = state.set_learning_rate(done - 1)
            loss = state.forward(batch)
            log.add(done - 1, state.global_mean(loss), rate, len(batch))
            if done - 1 == first:
                log.flush()
            state.backward(loss, done - 1)
            if not state.is_last_of_step(done):
                continue
            state.optimizer_step()
            save = checkpoints.is_due(done)
            # Losses that are not finite are reported before a checkpoint or a callback can save weights.
            if save or done == total or (after_step is not None and getattr(after_step, "is_due", _always)(done)):
                log.flush()
            if after_step is not None:
                after_step(done)
            if save:
                checkpoints.save()


def _always(step: int) -> bool:
    """Used for callbacks without an `is_due` method."""
    return True


class _Checkpoints:
    """Saves and loads the checkpoints of a run. Without a folder, it does nothing."""

    def __init__(
        self, folder: Path | None, state: TrainingState, log: LossLog, save_every: int | None, max_checkpoints: int
    ) -> None:
        self._folder = folder / "checkpoints" if folder is not None else None
        self._state, self._log = state, log
        self._save_every, self._max = save_every, max_checkpoints
        self._run = state.identity()

    def load(self) -> bool:
        """Restore the newest valid checkpoint. Return whether there is one."""
        if self._folder is None or checkpoint.load_latest(self._folder, self._run, self._restore) is None:
            return False
        self._log.warn_if_damaged()
        return True

    def _restore(self, saved: dict[str, object]) -> None:
        self._state.load_state_dict(saved)
        self._log.load_state_dict(saved["losses"], self._state.loader.step)

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint is saved after `done` batches."""
        if self._folder is None:
            return False
        return done == len(self._state.loader) or (self._save_every is not None and done % self._save_every == 0)

    def save(self) -> None:
        """Save a checkpoint. Only the main process writes."""
        if self._folder is None or not self._state.accelerator.is_main_process:
            return
        self._log.flush(to_disk=True)
        saved = {**self._state.state_dict(), "losses": self._log.state_dict()}
        checkpoint.save(self._folder, self._state.loader.step, self._run, saved, self._max)
