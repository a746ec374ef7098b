"""Fine-tuning on mixed batches, on Accelerate: precision, accumulation, clipping, schedules, checkpoints, resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.progress import bar
from spurmix.data.batch import Batch
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops import functional
from spurmix.train import checkpoint
from spurmix.train.models import head_of, logits_of, modes_kept, parameter_groups
from spurmix.train.process import accelerated, check_precision
from spurmix.train.schedule import SCHEDULES, factor
from spurmix.train.text import apply


@dataclass(frozen=True)
class TrainResult:
    """Result of `finetune`.

    Attributes:
        steps: Number of optimizer steps.
        loss: Loss of the last batch.
        losses: Loss of every global batch.
        seconds: Training time in seconds.
        rate: Number of examples per second.
    """

    steps: int
    loss: float
    losses: tuple[float, ...]
    seconds: float
    rate: float


def finetune(
    model: nn.Module,
    loader: MixLoader,
    *,
    optimizer: str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = "adamw",
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    decay_all: bool = False,
    momentum: float = 0.9,
    schedule: str = "cosine",
    stages: int = 3,
    warmup: float = 0.0,
    mixed_precision: str = "no",
    accumulate: int = 1,
    clip: float | None = None,
    freeze: str = "none",
    label_smoothing: float = 0.0,
    output: str | Path | None = None,
    save_every: int | None = None,
    keep: int = 2,
    resume: bool = False,
    progress: bool | None = None,
    after_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Fine-tune a model in place on the batches of a loader.

    The training or evaluation mode of every module is restored at the end, also after an error.

    Args:
        model: Model that maps `batch.input` to logits. It returns a tensor, an object with `.logits`, or a tuple whose
            first element is the logits. For texts, use a `MixedInputs`.
        loader: Loader that defines the data, order, batch size and number of batches. With several processes (torchrun,
            accelerate launch), each process passes a loader with its `rank` and `world_size`.
        optimizer: "adamw", "sgd", or a function that maps parameter groups to an optimizer.
        learning_rate: Maximum learning rate.
        weight_decay: Weight decay coefficient.
        decay_all: If True, weight decay applies to biases and normalization layers too.
        momentum: Momentum of "sgd".
        schedule: "cosine", "one_cycle", "linear", "step" or "constant". The schedule counts optimizer steps.
        stages: Number of equal stages of "step". Each stage divides the learning rate by 10.
        warmup: Fraction of the optimizer steps used for warmup, in [0, 1].
        mixed_precision: "no", "bf16" or "fp16". "fp16" needs a GPU.
        accumulate: Number of batches per optimizer step. An incomplete last group makes a step of its own and is
            scaled accordingly.
        clip: Maximum gradient norm. None disables clipping.
        freeze: "none", or "backbone" to train only the head (see `models.head_of`). Frozen modules stay in evaluation
            mode.
        label_smoothing: Label smoothing factor, in [0, 1].
        output: Folder for `metrics.jsonl` and `checkpoints/`.
        save_every: Number of batches between checkpoints. Default: one checkpoint at the end.
        keep: Maximum number of checkpoints to keep.
        resume: If True, continue from the newest valid checkpoint. A finished run returns at once. If False, new
            checkpoints replace those of an earlier run.
        progress: Whether to show a progress bar. Default: only on a terminal.
        after_step: Function that every process calls after each optimizer step, before a checkpoint, with the number
            of batches so far. If it has a method `is_due(step)` that returns False, losses are not read for that step.

    Returns:
        The number of optimizer steps, the loss of every batch and the speed.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, `output` is not writable, a loss is not finite, or the checkpoints are
            corrupt or belong to another run. Losses are read in blocks, so that an error may come up to 32 batches
            late. It always comes before a checkpoint is written.

    Example:
        >>> loader = MixLoader(features, groups, policies.lisa(), batch_size=32, epochs=3)
        >>> result = finetune(model, loader, learning_rate=1e-4, output="run")
    """
    checks.instance(model, "model", nn.Module)
    checks.instance(loader, "loader", MixLoader)
    checks.choice(schedule, "schedule", SCHEDULES)
    checks.choice(mixed_precision, "mixed_precision", ("no", "bf16", "fp16"))
    checks.choice(freeze, "freeze", ("none", "backbone"))
    if not callable(optimizer):
        checks.choice(optimizer, "optimizer, where it is no function of parameter groups,", ("adamw", "sgd"))
    decay_all, resume = checks.flag(decay_all, "decay_all"), checks.flag(resume, "resume")
    learning_rate = checks.number(learning_rate, "learning_rate", 0)
    weight_decay = checks.number(weight_decay, "weight_decay", 0)
    momentum = checks.number(momentum, "momentum", 0)
    warmup, label_smoothing = (
        checks.number(warmup, "warmup", 0, 1),
        checks.number(label_smoothing, "label_smoothing", 0, 1),
    )
    stages, keep = checks.integer(stages, "stages", 1), checks.integer(keep, "keep", 1)
    accumulate = checks.integer(accumulate, "accumulate", 1)
    save_every = None if save_every is None else checks.integer(save_every, "save_every", 1)
    clip = None if clip is None else checks.number(clip, "clip", positive=True)
    if progress is not None:
        checks.flag(progress, "progress")
    if after_step is not None and not callable(after_step):
        raise TypeError(f"after_step must be a function of a number of batches, got {type(after_step).__name__}")
    check_precision(mixed_precision, loader.device)
    if isinstance(loader.source, TokenSource):
        loader.source.check_model(model)
    folder = checks.path(output, "output") if output is not None else None
    if folder is None and (resume or save_every):
        raise ValueError("output: a folder is needed for checkpoints")
    if folder is not None:
        checkpoint.check_writable(folder)
    with accelerated(loader.device, mixed_precision) as accelerator, modes_kept(model):
        frozen = _freeze(model, freeze)
        optim = _optimizer(model, optimizer, learning_rate, weight_decay, momentum, decay_all)
        model, optim = accelerator.prepare(model, optim)
        # Without Accelerate's own autocast in `forward`, which would stay there after training: the loss below has one.
        plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)

        settings = {
            "schedule": schedule,
            "stages": stages if schedule == "step" else None,
            "warmup": warmup,
            "accumulate": accumulate,
            "steps": len(loader),
            "learning_rate": learning_rate,
            "optimizer": type(optim.optimizer).__name__,
            "weight_decay": weight_decay,
            "decay_all": decay_all,
            "momentum": momentum if optimizer == "sgd" else None,
            "mixed_precision": mixed_precision,
            "clip": clip,
            "freeze": freeze,
            "label_smoothing": label_smoothing,
            "dtype": str(loader.dtype),
            "augment": repr(loader.augment),
        }
        run = checkpoint.identity(plain, loader.fingerprint(), settings)
        losses: list[float] = []

        def restore(state: dict[str, Any]) -> None:
            found = [float(loss) for loss in state["losses"]]
            if len(found) != state["loader"]["step"]:
                raise ValueError(f"{len(found)} losses of {state['loader']['step']} batches")
            plain.load_state_dict(state["model"])
            optim.load_state_dict(state["optimizer"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            checkpoint.set_rng_state(state["rng"])
            loader.load_state_dict(state["loader"])
            losses[:] = found

        restored = resume and folder is not None and checkpoint.load_latest(folder / "checkpoints", run, restore)
        if not restored and loader.step >= len(loader):  # its last run ended there
            loader.set_step(0)

        def save() -> None:
            assert folder is not None
            state = {
                "model": plain.state_dict(),
                "optimizer": optim.state_dict(),
                "rng": checkpoint.rng_state(),
                "loader": loader.state_dict(),
                "losses": losses,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            }
            checkpoint.save(folder / "checkpoints", loader.step, run, state, keep)

        model.train()
        for module in frozen:
            module.eval()
        total, began, first = len(loader), time.perf_counter(), loader.step
        optimizer_steps = math.ceil(total / accumulate)
        if first >= total:
            return TrainResult(optimizer_steps, losses[-1] if losses else math.nan, tuple(losses), 0.0, 0.0)
        with _Metrics(folder, losses, accelerator.is_main_process) as metrics:
            for batch in bar(loader, "training", total=total, size=loader.batch_size, done=first, shown=progress):
                step = loader.step - 1
                group_start = step - step % accumulate
                group = min(accumulate, total - group_start)
                rate = learning_rate * factor(schedule, step // accumulate, optimizer_steps, warmup, stages)
                for parameters in optim.param_groups:
                    parameters["lr"] = rate
                batch = batch.to(accelerator.device)
                loss = _loss(model, batch, accelerator, label_smoothing)
                value = accelerator.reduce(loss.detach(), reduction="mean")  # loss of the global batch, on every rank
                metrics.add(step, value, rate, len(batch))
                if step == first:
                    metrics.flush()
                accelerator.backward(loss / group)
                if (step + 1) % accumulate == 0 or step + 1 == total:
                    if clip is not None:
                        accelerator.clip_grad_norm_(model.parameters(), clip)
                    optim.step()
                    optim.zero_grad(set_to_none=True)
                at_boundary = (step + 1) % accumulate == 0 or step + 1 == total
                due = save_every is not None and (step + 1) % save_every == 0 and at_boundary
                notify = after_step is not None and at_boundary
                # Losses that are not finite are reported before a checkpoint or a callback can save weights.
                if due or step + 1 == total or (notify and getattr(after_step, "is_due", _always)(step + 1)):
                    metrics.flush()
                if after_step is not None and at_boundary:
                    after_step(step + 1)
                if folder is not None and accelerator.is_main_process and (due or step + 1 == total):
                    save()
        seconds = time.perf_counter() - began
        return TrainResult(
            optimizer_steps, losses[-1], tuple(losses), seconds, (total - first) * loader.batch_size / seconds
        )


def _freeze(model: nn.Module, freeze: str) -> list[nn.Module]:
    """Freeze all but the head; the modules that must stay in evaluation mode."""
    if freeze == "none":
        return []
    inside = set(head_of(model).modules())
    trained = {p for module in inside for p in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    return [m for m in model.modules() if m not in inside and not inside.intersection(m.modules())]


def _optimizer(
    model: nn.Module, kind: Any, learning_rate: float, weight_decay: float, momentum: float, decay_all: bool
) -> Any:
    groups = parameter_groups(model, weight_decay)
    if decay_all:
        for group in groups:
            group["weight_decay"] = weight_decay
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)
    return kind(groups)


def _loss(model: nn.Module, batch: Batch, accelerator: Any, label_smoothing: float) -> Tensor:
    with accelerator.autocast():
        logits = logits_of(apply(model, batch.input))
    if accelerator.mixed_precision != "no":
        logits = logits.float()
    return functional.mixed_cross_entropy(
        logits, batch.label, batch.partner_label, batch.lam, label_smoothing=label_smoothing
    )


def _always(step: int) -> bool:
    """Used for callbacks without an `is_due` method."""
    return True


LOSSES_PER_READ = 32
"""Number of batches whose losses are read from the device at once."""


class _Metrics:
    """Writes `metrics.jsonl`, one line per batch.

    Losses stay on the device and are read in blocks, because each read waits for the device. Lines of batches that a
    resumed run repeats are dropped. Missing or damaged lines are rewritten from the losses.
    """

    def __init__(self, folder: Path | None, losses: list[float], main: bool) -> None:
        self.path = folder / "metrics.jsonl" if folder is not None and main else None
        self.losses = losses
        self.began = time.perf_counter()
        self._values: list[Tensor] = []
        self._rows: list[dict[str, float]] = []

    def __enter__(self) -> _Metrics:
        if self.path is not None:
            lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
            kept = [line if _is_of(line, n) else "" for n, line in enumerate(lines[: len(self.losses)])]
            kept += [""] * (len(self.losses) - len(kept))
            rows = (line or json.dumps({"step": n, "loss": self.losses[n]}) for n, line in enumerate(kept))
            temporary = self.path.with_suffix(f".{os.getpid()}")
            temporary.write_text("".join(f"{row}\n" for row in rows))
            temporary.replace(self.path)
            self.file = self.path.open("a", buffering=1)
        return self

    def add(self, step: int, loss: Tensor, rate: float, examples: int) -> None:
        """Record the loss of a batch. It is read from the device at most `LOSSES_PER_READ` batches later."""
        seconds = round(time.perf_counter() - self.began, 4)
        self._values.append(loss)
        self._rows.append({"step": step, "learning_rate": rate, "examples": examples, "seconds": seconds})
        if len(self._rows) >= LOSSES_PER_READ:
            self.flush()

    def flush(self) -> None:
        """Read and write the losses recorded so far.

        Raises:
            ValueError: If a loss is not finite.
        """
        if not self._rows:
            return
        values: list[float] = torch.stack(self._values).tolist()
        rows, self._values, self._rows = self._rows, [], []
        for row, value in zip(rows, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"the loss is {value} at step {row['step']}; lower the learning rate or check the data"
                )
            self.losses.append(value)
            if self.path is not None:
                line = {"step": row["step"], "loss": value, **row}
                self.file.write(json.dumps(line) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, (Exception, KeyboardInterrupt)):
                self.flush()
        except Exception:
            if kind is None:
                raise  # otherwise the first error is the one to report
        finally:
            if self.path is not None:
                self.file.close()


def _is_of(line: str, step: int) -> bool:
    """Whether a line of `metrics.jsonl` is whole, and of that batch."""
    try:
        return bool(json.loads(line)["step"] == step)
    except (ValueError, KeyError, TypeError):
        return False
