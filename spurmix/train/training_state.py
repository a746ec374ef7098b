"""State of a training run: model, optimizer, gradient scaler, random generators and position of the loader."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spurmix.data.batch import Batch
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.ops import functional
from spurmix.train import checkpoint
from spurmix.train.models import head_of, logits_of, parameter_groups
from spurmix.train.objectives import Objective
from spurmix.train.options import FinetuneOptions
from spurmix.train.schedule import factor
from spurmix.train.text import apply

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingState:
    """What training changes, and the operations of a training step.

    Args:
        model: Model to train, in place.
        loader: Loader of the batches.
        options: Optimization options.
        accelerator: Accelerator that places and wraps the model.
        objective: Objective of training. Default: the mean of the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: MixLoader,
        options: FinetuneOptions,
        accelerator: Accelerator,
        objective: Objective | None = None,
    ) -> None:
        self.loader, self.options, self.accelerator, self.objective = loader, options, accelerator, objective
        if objective is not None:
            objective.start(loader)
        self._frozen = _freeze(model, options.freeze)
        self._model, self._optimizer = accelerator.prepare(model, _make_optimizer(model, options))
        # Without Accelerate's autocast in `forward`, which would stay there after training. `forward` below has its own.
        self._inner: nn.Module = accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)
        self._optimizer_steps = math.ceil(len(loader) / options.accumulate)

    def identity(self) -> dict[str, object]:
        """Return what must agree for a checkpoint to be resumed."""
        options = self.options
        settings: dict[str, object] = {
            "schedule": options.schedule,
            "stages": options.stages if options.schedule == "step" else None,
            "warmup": options.warmup,
            "accumulate": options.accumulate,
            "steps": len(self.loader),
            "learning_rate": options.learning_rate,
            "optimizer": type(self._optimizer.optimizer).__name__,
            "weight_decay": options.weight_decay,
            "decay_all": options.decay_all,
            "momentum": options.momentum if options.optimizer == "sgd" else None,
            "mixed_precision": options.mixed_precision,
            "clip": options.clip,
            "freeze": options.freeze,
            "label_smoothing": options.label_smoothing,
            "dtype": str(self.loader.dtype),
            "augment": repr(self.loader.augment),
            "objective": repr(self.objective) if self.objective is not None else None,
        }
        return checkpoint.identity(self._inner, self.loader.fingerprint(), settings)

    def state_dict(self) -> dict[str, object]:
        """Return the state that a checkpoint holds."""
        scaler = self.accelerator.scaler
        return {
            "model": self._inner.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rng": checkpoint.rng_state(),
            "loader": self.loader.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "objective": self.objective.state_dict() if self.objective is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._inner.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.objective is not None:
            self.objective.load_state_dict(state["objective"])
        checkpoint.set_rng_state(state["rng"])
        self.loader.load_state_dict(state["loader"])

    def set_modes(self) -> None:
        """Put the model into training mode, and frozen modules into evaluation mode."""
        self._model.train()
        for module in self._frozen:
            module.eval()

    def set_learning_rate(self, step: int) -> float:
        """Set and return the learning rate of batch number `step`."""
        options = self.options
        optimizer_step = step // options.accumulate
        rate = options.learning_rate * factor(
            options.schedule, optimizer_step, self._optimizer_steps, options.warmup, options.stages
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        batch = batch.to(self.accelerator.device)
        with self.accelerator.autocast():
            logits = logits_of(apply(self._model, batch.input))
        if self.accelerator.mixed_precision != "no":
            logits = logits.float()
        losses = functional.mixed_cross_entropy(
            logits, batch.label, batch.partner_label, batch.lam, label_smoothing=self.options.label_smoothing,
            reduction="mean" if self.objective is None else "none",
        )  # fmt: skip
        return losses if self.objective is None else self.objective(losses, batch)

    def global_mean(self, loss: Tensor) -> Tensor:
        """Return the loss of the global batch, on every process."""
        return self.accelerator.reduce(loss.detach(), reduction="mean")

    def backward(self, loss: Tensor, step: int) -> None:
        """Add the gradients of batch number `step`, divided by the number of batches of its optimizer step."""
        accumulate = self.options.accumulate
        first = step - step % accumulate
        self.accelerator.backward(loss / min(accumulate, len(self.loader) - first))

    def is_last_of_step(self, done: int) -> bool:
        """Whether an optimizer step follows after `done` batches."""
        return done % self.options.accumulate == 0 or done == len(self.loader)

    def optimizer_step(self) -> None:
        """Update the parameters, and reset the gradients."""
        if self.options.clip is not None:
            self.accelerator.clip_grad_norm_(self._model.parameters(), self.options.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _freeze(model: nn.Module, freeze: str) -> list[nn.Module]:
    """Freeze all but the head. Return the modules that must stay in evaluation mode."""
    if freeze == "none":
        return []
    inside = set(head_of(model).modules())
    trained = {p for module in inside for p in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    return [m for m in model.modules() if m not in inside and not inside.intersection(m.modules())]


def _make_optimizer(model: nn.Module, options: FinetuneOptions) -> torch.optim.Optimizer:
    groups = parameter_groups(model, options.weight_decay)
    if options.decay_all:
        for group in groups:
            group["weight_decay"] = options.weight_decay
    if callable(options.optimizer):
        return options.optimizer(groups)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum)
    return torch.optim.AdamW(groups, lr=options.learning_rate)
