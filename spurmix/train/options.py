"""Options of `finetune`. The configuration of a run shares their defaults, checks and help texts."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from spurmix.core import checks
from spurmix.train.schedule import SCHEDULES

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
OptimizerFactory = Callable[[list[dict[str, Any]]], "torch.optim.Optimizer"]
"""Function that maps parameter groups to an optimizer."""


def setting(default: T, help: str, choices: tuple[str, ...] = (), low: float = -math.inf, high: float = math.inf) -> T:
    """Declare a dataclass field that `check_setting` can check.

    Args:
        default: Default value. Its type is the type of the field.
        help: Help text of the command-line flag.
        choices: Accepted values of a string. Empty: all.
        low: Minimum of a number.
        high: Maximum of a number.

    Returns:
        The field.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


def check_setting(value: object, name: str, rule: dataclasses.Field[object]) -> object:
    """Check the value of a field that `setting` declares.

    Args:
        value: The value.
        name: Name of the field in error messages.
        rule: The field.

    Returns:
        The value with the type of the field's default.

    Raises:
        TypeError: If the value has the wrong type.
        ValueError: If the value is out of range or not among the choices.
    """
    low, high, choices = (rule.metadata[key] for key in ("low", "high", "choices"))
    if isinstance(rule.default, bool):
        return checks.flag(value, name)
    if isinstance(rule.default, int):
        limits = (None if math.isinf(limit) else int(limit) for limit in (low, high))
        return checks.integer(value, name, *limits)
    if isinstance(rule.default, float):
        return checks.number(value, name, low, high)
    if choices:
        return checks.choice(value, name, choices)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    return value


@dataclass(frozen=True)
class FinetuneOptions:
    """Optimization options of `finetune`.

    Args:
        optimizer: "adamw", "sgd", or a function that maps parameter groups to an optimizer.
        learning_rate: Maximum learning rate, 0 or more.
        weight_decay: Weight decay coefficient, 0 or more.
        decay_all: If True, weight decay applies to biases and normalization layers too.
        momentum: Momentum of "sgd", in [0, 1].
        schedule: "cosine", "one_cycle", "linear", "step" or "constant". The schedule counts optimizer steps.
        stages: Number of equal stages of "step". Each stage divides the learning rate by 10.
        warmup: Fraction of the optimizer steps used for warmup, in [0, 1].
        mixed_precision: "no", "bf16" or "fp16". "fp16" needs a GPU.
        accumulate: Number of batches per optimizer step. An incomplete last group of batches is a step of its own, and
            its gradient is scaled by its own size.
        clip: Maximum gradient norm. None disables clipping.
        freeze: "none", or "backbone" to train only the head (see `models.head_of`). Frozen modules stay in evaluation
            mode.
        label_smoothing: Label smoothing factor, in [0, 1].

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of range.

    Example:
        >>> options = FinetuneOptions(optimizer="sgd", learning_rate=0.01)
        >>> result = finetune(model, loader, options=options, warmup=0.1)
    """

    # RUF009: `setting` returns a field of a dataclass.
    optimizer: str | OptimizerFactory = setting("adamw", "Optimizer to train with.", ("adamw", "sgd"))  # noqa: RUF009
    learning_rate: float = setting(1e-3, "Maximum learning rate.", low=0)
    weight_decay: float = setting(1e-2, "Weight decay coefficient.", low=0)
    decay_all: bool = setting(False, "Apply weight decay to biases and normalization layers too.")
    momentum: float = setting(0.9, "Momentum of the sgd optimizer.", low=0, high=1)
    schedule: str = setting("cosine", "Learning-rate schedule.", SCHEDULES)
    stages: int = setting(
        3, 'Number of equal stages of the "step" schedule. Each stage divides the learning rate by 10.', low=1
    )
    warmup: float = setting(0.0, "Fraction of the optimizer steps used for warmup.", low=0, high=1)
    mixed_precision: str = setting("no", "Mixed precision of the model. fp16 needs a GPU.", ("no", "bf16", "fp16"))
    accumulate: int = setting(1, "Number of batches per optimizer step (gradient accumulation).", low=1)
    clip: float | None = None
    freeze: str = setting("none", 'Part of the model to freeze. "backbone" trains only the head.', ("none", "backbone"))
    label_smoothing: float = setting(0.0, "Label smoothing factor.", low=0, high=1)

    def __post_init__(self) -> None:
        if self.clip is not None:
            self._set("clip", checks.number(self.clip, "clip", positive=True))
        for rule in dataclasses.fields(self):
            value = getattr(self, rule.name)
            if rule.metadata and not (rule.name == "optimizer" and callable(value)):
                self._set(rule.name, check_setting(value, rule.name, rule))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def replace(self, changes: Mapping[str, object], others: Iterable[str] = ()) -> FinetuneOptions:
        """Copy the options with some changed.

        Args:
            changes: New values by name.
            others: Names of further arguments of the caller, which the error for an unknown name may suggest.

        Returns:
            The new options.

        Raises:
            TypeError: If an option is unknown, naming similar ones, or has the wrong type.
            ValueError: If an option is out of range.
        """
        names = [rule.name for rule in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                similar = difflib.get_close_matches(name, [*names, *others])
                hint = f"did you mean {' or '.join(similar)}?" if similar else f"options are {', '.join(names)}"
                raise TypeError(f"{name} is not an option of finetune; {hint}")
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # the constructor checks the types


class FinetuneOverrides(TypedDict, total=False):
    """Keyword arguments of `finetune` that replace single `FinetuneOptions`."""

    optimizer: str | OptimizerFactory
    learning_rate: float
    weight_decay: float
    decay_all: bool
    momentum: float
    schedule: str
    stages: int
    warmup: float
    mixed_precision: str
    accumulate: int
    clip: float | None
    freeze: str
    label_smoothing: float
