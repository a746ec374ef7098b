"""The settings of a training run: defaults, a recipe, a TOML file and flags, one over the other, checked before any work."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spurmix.core import policies
from spurmix.core.lam import Beta, Fixed, Uniform
from spurmix.core.policy import MixPolicy
from spurmix.train.runs.recipes import RECIPES
from spurmix.train.schedule import SCHEDULES

MODELS = {"images": ("resnet50", "small"), "tokens": ("bert", "encoder", "minilm"), "features": ("linear",)}
"""Models by the kind of dataset they read; the first is the default."""
SPLIT_NAMES = {"validation_split": ("val", "valid", "validation"), "test_split": ("test",)}


def _about(help: str, choices: tuple[str, ...] = (), low: float = -math.inf, high: float = math.inf) -> dict[str, Any]:
    """What a command line says of a field: choices of a text, the least and the largest value of a number."""
    return {"help": help, "choices": choices, "low": low, "high": high}


def _option(
    default: Any, help: str, choices: tuple[str, ...] = (), low: float = -math.inf, high: float = math.inf
) -> Any:
    return field(default=default, metadata=_about(help, choices, low, high))


@dataclass(frozen=True)
class RunConfig:
    """What decides a training run. Every field is a flag of `spurmix train` and a key of its TOML file."""

    dataset: str = _option("", "Folder of the packed dataset.")
    attribute: str = _option("", "Attribute that defines the groups. Default: the first attribute of the dataset.")
    train_split: str = _option("train", "Split to train on.")
    validation_split: str = _option(
        "auto", 'Split that selects the best weights. "auto" uses val if it exists. "none" disables validation.'
    )
    test_split: str = _option(
        "auto", 'Split to report results on. "auto" uses test if it exists. "none" disables the report.'
    )
    cells: bool = _option(False, "Take the worst group over the overlapping attribute x label cells.")
    min_group_size: int = _option(
        1, "Minimum size of a group that can be the worst group. Smaller groups are only reported.", low=1
    )
    model: str = _option(
        "", f"Model: {', '.join(name for names in MODELS.values() for name in names)}. Default: depends on the data."
    )
    weights: str = _option("", "File or folder with the initial weights. See models.resnet50 and models.bert.")
    where: str = _option("embeddings", "Layer at which texts are mixed.", ("embeddings", "features"))
    policy: str = _option("balance_attributes", "Policy that draws and mixes examples.", tuple(policies.__all__))
    policy_options: dict[str, Any] = field(
        default_factory=dict, metadata=_about('Argument of the policy as name=value, for example lam="beta(0.4, 0.4)".')
    )
    batch_size: int = _option(128, "Number of examples per batch, over all processes.", low=1)
    epochs: float = _option(10.0, "Number of passes over the training split.", low=0)
    steps: int = _option(0, "Number of batches. 0 uses epochs instead.", low=0)
    seed: int = _option(0, "Random seed of sampling, head initialization and dropout.", low=0, high=2**63 - 1)
    crop: bool = _option(False, "Apply random resized crops to images.")
    crop_area: float = _option(0.08, "Minimum fraction of the image area that a crop covers.", low=1e-6, high=1)
    crop_size: int = _option(0, "Height and width of a crop in pixels. 0 uses the size of the images.", low=0)
    flip: bool = _option(False, "Flip images horizontally at random.")
    bucket: int = _option(1, "Number of batches whose texts are grouped by length. 1 disables grouping.", low=1)
    optimizer: str = _option("adamw", "Optimizer to train with.", ("adamw", "sgd"))
    learning_rate: float = _option(1e-3, "Maximum learning rate.", low=0)
    weight_decay: float = _option(1e-2, "Weight decay coefficient.", low=0)
    decay_all: bool = _option(False, "Apply weight decay to biases and normalization layers too.")
    momentum: float = _option(0.9, "Momentum of the sgd optimizer.", low=0, high=0.9999)
    schedule: str = _option("cosine", "Learning-rate schedule.", SCHEDULES)
    stages: int = _option(
        3, 'Number of equal stages of the "step" schedule. Each stage divides the learning rate by 10.', low=1
    )
    warmup: float = _option(0.0, "Fraction of the optimizer steps used for warmup.", low=0, high=1)
    clip: float = _option(0.0, "Maximum gradient norm (0 disables clipping).", low=0)
    accumulate: int = _option(1, "Number of batches per optimizer step (gradient accumulation).", low=1)
    label_smoothing: float = _option(0.0, "Label smoothing factor.", low=0, high=0.9999)
    freeze: str = _option("none", 'Part of the model to freeze. "backbone" trains only the head.', ("none", "backbone"))
    mixed_precision: str = _option("no", "Mixed precision of the model. fp16 needs a GPU.", ("no", "bf16", "fp16"))
    channels_last: bool = _option(False, "Use the channels-last memory format for images.")
    deterministic: bool = _option(False, "Use only deterministic algorithms of PyTorch.")
    evaluate_every: float = _option(
        1.0, "Number of epochs between evaluations on the validation split (0 evaluates only at the end).", low=0
    )
    select: str = _option(
        "best",
        "Weights to keep: best keeps those with the highest worst-group accuracy, last the final ones.",
        ("best", "last"),
    )
    save_every: int = _option(0, "Number of batches between checkpoints (0 saves one per epoch).", low=0)
    keep: int = _option(2, "Maximum number of checkpoints to keep.", low=1)
    tier: str = _option(
        "auto",
        "Memory to read training data from. auto uses the fastest that holds the split.",
        ("auto", "device", "pinned", "cache", "disk"),
    )
    memory: float = _option(0.0, "Maximum memory for reading data, in GiB (0 uses what is available).", low=0)
    evaluation_batch: int = _option(256, "Number of examples per batch in evaluations.", low=1)
    prefetch: int = _option(2, "Number of batches to prepare in advance.", low=0)
    device: str = _option("auto", 'Device to train on. "auto" uses a GPU if one is available.', ("auto", "cpu", "cuda"))


FIELDS = {f.name: f for f in dataclasses.fields(RunConfig)}
DEFAULT = RunConfig()


_NEEDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "stages": ("schedule", ("step",)),
    "memory": ("tier", ("auto", "pinned", "disk")),
    "momentum": ("optimizer", ("sgd",)),
}
"""Flags that do nothing unless another setting has one of some values."""


def resolve(
    flags: dict[str, Any], config: str | Path | None = None, recipe: str | None = None, base: RunConfig = DEFAULT
) -> RunConfig:
    """The settings that the flags given, over the file's, over the recipe's, over `base` make.

    Args:
        flags: by field name. config: a TOML file with field names as keys; it may name a `recipe` too. Its paths are
            relative to it.

    Raises:
        ValueError: naming the key, where it stands, and what is accepted.
    """
    given = read_toml(config) if config is not None else {}
    named = given.pop("recipe", None)
    chosen = recipe if recipe is not None else named
    if chosen is not None and chosen not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {chosen!r}")
    made = base
    levels = [("", {} if chosen is None else RECIPES[chosen].config()), (str(config), given), ("", flags)]
    for origin, level in levels:
        values = {name: _checked(name, value, origin) for name, value in level.items()}
        if "epochs" in values:
            values.setdefault("steps", 0)  # one says how long, the later one
        for name in ("dataset", "weights"):
            if values.get(name):
                values[name] = os.path.abspath(os.path.join(os.path.dirname(origin), values[name]))
        made = dataclasses.replace(made, **values)
    if chosen is not None and not made.weights and made.model == RECIPES[chosen].config()["model"]:
        raise ValueError(
            f"weights: the recipe {chosen} starts from {RECIPES[chosen].model}; say where it lies (--weights)"
        )
    for name, (other, needed) in _NEEDS.items():
        says = name in flags and getattr(made, name) != getattr(DEFAULT, name)
        if says and getattr(made, other) not in needed:
            fits, got = " or ".join(map(str, needed)), getattr(made, other)
            raise ValueError(f"--{name.replace('_', '-')} does nothing with {other} {got}; it is for {other} {fits}")
    if made.steps == 0 and not made.epochs > 0:
        raise ValueError(f"epochs must be positive, got {made.epochs!r}")
    return made


def _checked(name: str, value: Any, origin: str) -> Any:
    """`value` with the type of its field."""
    flag = "policy-option" if name == "policy_options" else name.replace("_", "-")
    where = f"{origin}: {name}" if origin else f"--{flag}"
    if name in ("out", "resume", "config"):
        raise ValueError(f"{where} is a flag of the command, no setting")
    if name not in FIELDS:
        close = difflib.get_close_matches(name, FIELDS)
        raise ValueError(
            f"{where} is not a setting; {f'did you mean {close[0]}?' if close else 'see spurmix train --help'}"
        )
    default, metadata = getattr(DEFAULT, name), FIELDS[name].metadata
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}")
    if metadata["choices"] and value not in metadata["choices"]:
        raise ValueError(f"{where} must be one of {', '.join(metadata['choices'])}, got {value!r}")
    if (kind in (int, float) and not metadata["low"] <= value <= metadata["high"]) or value == math.inf:
        top = f" and {metadata['high']:g} or less" if metadata["high"] < math.inf else ""
        raise ValueError(f"{where} must be {metadata['low']:g} or more{top}, got {value!r}")
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """The keys of a TOML file.

    Raises:
        ValueError: for a file that is not there or no TOML, with the line.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"config: cannot read {path} ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is no TOML: {error}") from None


def to_toml(config: RunConfig) -> str:
    """The settings as a TOML file that `resolve` reads back."""
    lines, tables = [], []
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            tables += ["", f"[{name}]", *(f"{_literal(k)} = {_literal(v)}" for k, v in value.items())]
        else:
            lines.append(f"{name} = {_literal(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _literal(value: Any) -> str:
    """A value of TOML: what JSON writes, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)} = {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def option(text: str) -> tuple[str, Any]:
    """The name and value in "name=value": a number, true, false, a list, or else a text.

    Raises:
        ValueError: without a name.
    """
    name, equals, value = text.partition("=")
    if not (equals and name.strip()):
        raise ValueError(f"--policy-option must be name=value, got {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


_DISTRIBUTIONS: dict[str, Callable[..., Any]] = {"beta": Beta, "uniform": Uniform, "fixed": Fixed}


def distribution(text: str) -> Any:
    """The distribution of lam that a text such as "beta(0.4, 0.4)" names.

    Raises:
        ValueError: for another one.
    """
    found = re.fullmatch(r"\s*(\w+)\s*\(([^()]*)\)\s*", text)
    make = _DISTRIBUTIONS.get(found[1].lower()) if found else None
    if found is None or make is None:
        raise ValueError(f"lam must be beta(a, b), uniform(low, high) or fixed(value), got {text!r}")
    try:
        return make(*(float(v) for v in found[2].split(",")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"lam: {text!r}: {error}") from None


def build_policy(config: RunConfig) -> MixPolicy:
    """The policy that the settings name, with its arguments.

    Raises:
        ValueError: for arguments it does not have or take.
    """
    make, given = getattr(policies, config.policy), dict(config.policy_options)
    takes = inspect.signature(make).parameters
    for name in given:
        if name not in takes:
            raise ValueError(f"policy_options: {config.policy} takes {', '.join(takes) or 'none'}, got {name!r}")
    if isinstance(given.get("lam"), str):
        given["lam"] = distribution(given["lam"])
    try:
        return make(**given)
    except TypeError as error:
        raise ValueError(f"policy_options: {config.policy}: {error}") from None
