"""Settings of a training run: defaults, a recipe, a TOML file and flags, in increasing priority, checked before any work."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spurmix.core import checks, files, policies
from spurmix.core.deprecation import warn_renamed
from spurmix.core.lam import Beta, Fixed, TwoPoint, Uniform
from spurmix.core.policy import MixPolicy
from spurmix.train.options import FinetuneOptions, check_setting, setting
from spurmix.train.runs.methods import METHODS, Method
from spurmix.train.runs.recipes import RECIPES

MODELS = {"images": ("resnet50", "small"), "tokens": ("bert", "encoder", "minilm"), "features": ("linear",)}
"""Models by the kind of dataset they read; the first is the default."""
SPLIT_NAMES = {"validation_split": ("val", "valid", "validation"), "test_split": ("test",)}


OPTIONS = {rule.name: rule for rule in dataclasses.fields(FinetuneOptions)}
RENAMED = {"keep": "max_checkpoints", "where": "mix_at"}
"""Deprecated names of settings."""


def _shared(name: str) -> Any:
    """Declare a field as `FinetuneOptions` does."""
    return field(default=OPTIONS[name].default, metadata=OPTIONS[name].metadata)


@dataclass(frozen=True)
class RunConfig:
    """Settings of a training run. Every field is a flag of `spurmix train` and a key of its TOML file."""

    dataset: str = setting("", "Folder of the packed dataset.")
    attribute: str = setting("", "Attribute that defines the groups. Default: the first attribute of the dataset.")
    train_split: str = setting("train", "Split to train on.")
    validation_split: str = setting(
        "auto", 'Split that selects the best weights. "auto" uses val if it exists. "none" disables validation.'
    )
    test_split: str = setting(
        "auto", 'Split to report results on. "auto" uses test if it exists. "none" disables the report.'
    )
    cells: bool = setting(False, "Worst group over all cells (attribute value, label). Cells may overlap.")
    min_group_size: int = setting(
        1, "Minimum size of a group that can be the worst group. Smaller groups are only reported.", low=1
    )
    model: str = setting(
        "", f"Model: {', '.join(name for names in MODELS.values() for name in names)}. Default: depends on the data."
    )
    weights: str = setting("", "File or folder with the initial weights. See models.resnet50 and models.bert.")
    mix_at: str = setting("embeddings", "Layer at which texts are mixed.", ("embeddings", "features"))
    policy: str = setting("balance_attributes", "Policy that draws and mixes examples.", tuple(policies.__all__))
    policy_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": 'Argument of the policy as name=value, for example lam="beta(0.4, 0.4)".', "choices": ()},
    )
    batch_size: int = setting(128, "Number of examples per batch, over all processes.", low=1)
    epochs: float = setting(10.0, "Number of passes over the training split.", low=0)
    steps: int = setting(0, "Number of batches. 0 uses epochs instead.", low=0)
    seed: int = setting(0, "Random seed of sampling, head initialization and dropout.", low=0, high=2**63 - 1)
    crop: bool = setting(False, "Apply random resized crops to images.")
    crop_area: float = setting(0.08, "Minimum fraction of the image area that a crop covers.", low=1e-6, high=1)
    crop_size: int = setting(0, "Height and width of a crop in pixels. 0 uses the size of the images.", low=0)
    flip: bool = setting(False, "Flip images horizontally at random.")
    bucket: int = setting(1, "Number of batches whose texts are grouped by length. 1 disables grouping.", low=1)
    objective: str = setting(
        "erm", "Objective: erm is the mean loss, group_dro weights groups by their losses.", ("erm", "group_dro")
    )
    dro_step: float = setting(0.01, "Step size of the group weights of group_dro. 0 keeps them equal.", low=0)
    dro_adjustment: float = setting(0.0, "Adjustment of group_dro for small groups.", low=0)
    optimizer: str = _shared("optimizer")
    learning_rate: float = _shared("learning_rate")
    weight_decay: float = _shared("weight_decay")
    decay_all: bool = _shared("decay_all")
    momentum: float = _shared("momentum")
    schedule: str = _shared("schedule")
    stages: int = _shared("stages")
    warmup: float = _shared("warmup")
    clip: float = setting(0.0, "Maximum gradient norm (0 disables clipping).", low=0)
    accumulate: int = _shared("accumulate")
    label_smoothing: float = _shared("label_smoothing")
    freeze: str = _shared("freeze")
    mixed_precision: str = _shared("mixed_precision")
    channels_last: bool = setting(False, "Use the channels-last memory format for images.")
    deterministic: bool = setting(False, "Use only deterministic algorithms of PyTorch.")
    evaluate_every: float = setting(
        1.0, "Number of epochs between evaluations on the validation split (0 evaluates only at the end).", low=0
    )
    select: str = setting(
        "best",
        "Weights to keep: best keeps those with the highest worst-group accuracy, last the final ones.",
        ("best", "last"),
    )
    save_every: int = setting(0, "Number of batches between checkpoints (0 saves one per epoch).", low=0)
    max_checkpoints: int = setting(2, "Maximum number of checkpoints to keep.", low=1)
    tier: str = setting(
        "auto",
        "Memory to read training data from. auto uses the fastest that holds the split.",
        ("auto", "device", "pinned", "cache", "disk"),
    )
    memory: float = setting(0.0, "Maximum memory for reading data, in GiB (0 uses what is available).", low=0)
    evaluation_batch: int = setting(256, "Number of examples per batch in evaluations.", low=1)
    prefetch: int = setting(2, "Number of batches to prepare in advance.", low=0)
    device: str = setting("auto", 'Device to train on. "auto" uses a GPU if one is available.', ("auto", "cpu", "cuda"))

    def finetune_options(self) -> FinetuneOptions:
        """Return the options of `finetune`."""
        given = {name: getattr(self, name) for name in OPTIONS}
        return FinetuneOptions(**given | {"clip": self.clip or None})


FIELDS = {f.name: f for f in dataclasses.fields(RunConfig)}
DEFAULT = RunConfig()


_REQUIRES: dict[str, tuple[str, tuple[str, ...]]] = {
    "stages": ("schedule", ("step",)),
    "memory": ("tier", ("auto", "pinned", "disk")),
    "momentum": ("optimizer", ("sgd",)),
    "dro_step": ("objective", ("group_dro",)),
    "dro_adjustment": ("objective", ("group_dro",)),
}
"""Flags that have an effect only if another setting has one of some values."""


def resolve(
    flags: Mapping[str, object],
    config: str | Path | None = None,
    recipe: str | None = None,
    base: RunConfig = DEFAULT,
    *,
    method: str | None = None,
    stage: int = 1,
    warn: bool = True,
) -> RunConfig:
    """Combine settings. Flags override the file, the file overrides the recipe, the recipe overrides `base`.

    Args:
        flags: Values by field name.
        config: TOML file with field names as keys, and optionally the key `recipe`. Paths in it are relative to it.
        recipe: Name of a recipe. It overrides the recipe that the file names.
        base: Settings to start from.
        method: Name of a method of the recipe. Its settings override those of the recipe.
        stage: Stage of the method, 1 or 2.
        warn: Whether deprecated names cause a warning.

    Returns:
        The settings.

    Raises:
        ValueError: If a setting is invalid. The message names the setting, its origin and the accepted values.
    """
    given = read_toml(config) if config is not None else {}
    named = given.pop("recipe", None)
    chosen = recipe if recipe is not None else named
    if chosen is not None:
        chosen = checks.choice(chosen, "recipe", RECIPES)
    result = base
    published = {} if chosen is None else RECIPES[chosen].config()
    if method is not None:
        published |= find_method(chosen, method).stage_settings(stage)
    levels = [("", published), (str(config), given), ("", flags)]
    for origin, level in levels:
        level = _current_names(level, origin, warn)
        values: dict[str, Any] = {name: _checked(name, value, origin) for name, value in level.items()}
        if "epochs" in values:
            values.setdefault("steps", 0)  # epochs override the steps of a lower level
        for name in ("dataset", "weights"):
            if values.get(name):
                values[name] = os.path.abspath(os.path.join(os.path.dirname(origin), values[name]))
        result = dataclasses.replace(result, **values)
    if chosen is not None and not result.weights and result.model == RECIPES[chosen].config()["model"]:
        raise ValueError(
            f"weights: the recipe {chosen} requires {RECIPES[chosen].model}; give its file or folder (--weights)"
        )
    for name, (other, required) in _REQUIRES.items():
        changed = name in flags and getattr(result, name) != getattr(DEFAULT, name)
        if changed and getattr(result, other) not in required:
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect with {other} {getattr(result, other)}; "
                f"it requires {other} {' or '.join(required)}"
            )
    if result.steps == 0 and not result.epochs > 0:
        raise ValueError(f"epochs must be positive, got {result.epochs!r}")
    return result


def find_method(recipe: str | None, method: str) -> Method:
    """Find a method of a recipe.

    Args:
        recipe: Name of the recipe, or None.
        method: Name of the method.

    Returns:
        The method.

    Raises:
        ValueError: If there is no recipe, or it has no such method.
    """
    if recipe is None:
        raise ValueError("--method requires a recipe; give its name (--recipe)")
    methods = METHODS[checks.choice(recipe, "recipe", METHODS)]
    return methods[checks.choice(method, f"method of the recipe {recipe}", methods)]


def read_run_config(path: Path) -> RunConfig:
    """Read the settings that a run has written. Names of earlier versions are accepted without a warning."""
    return resolve({}, path.resolve(), warn=False)


def portable(config: RunConfig, folder: Path) -> RunConfig:
    """Return settings whose paths are relative to the folder of the run.

    A run and its data that are moved together still find each other, and the files of the run have no absolute paths.

    Args:
        config: Settings.
        folder: Folder of the run.

    Returns:
        The settings.
    """
    relative = {
        name: os.path.relpath(value, os.path.realpath(folder))
        for name in ("dataset", "weights")
        if (value := getattr(config, name))
    }
    return dataclasses.replace(config, **relative)  # type: ignore[arg-type]  # both are string fields


def _current_names(level: Mapping[str, object], origin: str, warn: bool) -> dict[str, object]:
    """Replace deprecated names by the current ones."""
    result = dict(level)
    for old, new in RENAMED.items():
        if old not in result:
            continue
        if new in result:
            raise ValueError(f"{_place(old, origin)} is the deprecated name of {new}, got both; remove {old}")
        if warn:
            names = (old, new) if origin else (f"--{old}", f"--{new.replace('_', '-')}")
            warn_renamed(origin or "spurmix train", *names, stacklevel=3)
        result[new] = result.pop(old)
    return result


def _place(name: str, origin: str) -> str:
    """Name of a setting in error messages."""
    flag = "policy-option" if name == "policy_options" else name.replace("_", "-")
    return f"{origin}: {name}" if origin else f"--{flag}"


def _checked(name: str, value: object, origin: str) -> object:
    """Check a value. Return it with the type of its field."""
    place = _place(name, origin)
    if name in ("out", "resume", "config", "method"):
        raise ValueError(f"{place} is a flag of the command, not a setting")
    if name not in FIELDS:
        similar = difflib.get_close_matches(name, FIELDS)
        hint = f"did you mean {similar[0]}?" if similar else "see spurmix train --help"
        raise ValueError(f"{place} is not a setting; {hint}")
    if name == "policy_options":
        if not isinstance(value, dict):
            raise ValueError(f"{place} must be a table, got {value!r}")
        return value
    try:
        return check_setting(value, place, FIELDS[name])
    except TypeError as error:
        raise ValueError(str(error)) from None


def read_toml(path: str | Path) -> dict[str, object]:
    """Read the keys of a TOML file.

    Args:
        path: File to read.

    Returns:
        The keys and values.

    Raises:
        ValueError: If the file is missing or not valid TOML.
    """
    try:
        return files.read_toml(Path(path))
    except files.FileError as error:
        raise ValueError(f"config: {error}") from None


def to_toml(config: RunConfig) -> str:
    """Format the settings as a TOML file that `resolve` can read."""
    lines, tables = [], []
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            tables += ["", f"[{name}]", *(f"{_literal(k)} = {_literal(v)}" for k, v in value.items())]
        else:
            lines.append(f"{name} = {_literal(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _literal(value: object) -> str:
    """Format a TOML value. TOML agrees with JSON except for tables and lists, which are inline here."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)} = {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def parse_policy_option(text: str, flag: str = "--policy-option") -> tuple[str, object]:
    """Parse "name=value". The value is a TOML value (number, true, false, list), or else a string.

    Args:
        text: Text to parse.
        flag: Name of the flag, for errors.

    Returns:
        The name and the value.

    Raises:
        ValueError: If there is no name or no equals sign.
    """
    name, equals, value = text.partition("=")
    if not (equals and name.strip()):
        raise ValueError(f"{flag} must be name=value, got {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
    except RecursionError:
        raise ValueError(f"{flag} {name.strip()} has too many nested brackets") from None


_DISTRIBUTIONS: dict[str, Callable[..., Beta | Uniform | Fixed | TwoPoint]] = {
    "beta": Beta, "uniform": Uniform, "fixed": Fixed, "twopoint": TwoPoint
}  # fmt: skip


def parse_distribution(text: str) -> Beta | Uniform | Fixed | TwoPoint:
    """Parse a distribution of lam, for example "beta(0.4, 0.4)".

    Args:
        text: Text to parse.

    Returns:
        The distribution.

    Raises:
        ValueError: If the name is unknown or an argument is invalid.
    """
    found = re.fullmatch(r"\s*(\w+)\s*\(([^()]*)\)\s*", text)
    make = _DISTRIBUTIONS.get(found[1].lower()) if found else None
    if found is None or make is None:
        raise ValueError(
            f"lam must be beta(a, b), uniform(low, high), fixed(value) or twopoint(low, high, p), got {text!r}"
        )
    try:
        return make(*(float(v) for v in found[2].split(",")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"lam: {text!r}: {error}") from None


def build_policy(config: RunConfig) -> MixPolicy:
    """Create the policy of the settings.

    Args:
        config: Settings.

    Returns:
        The policy.

    Raises:
        ValueError: If an argument of the policy is unknown or invalid.
    """
    make, given = getattr(policies, config.policy), dict(config.policy_options)
    accepted = inspect.signature(make).parameters
    for name in given:
        if name not in accepted:
            raise ValueError(
                f"policy_options: {config.policy} accepts {', '.join(accepted) or 'no arguments'}, got {name!r}"
            )
    if isinstance(given.get("lam"), str):
        given["lam"] = parse_distribution(given["lam"])
    try:
        return make(**given)
    except TypeError as error:
        raise ValueError(f"policy_options: {config.policy}: {error}") from None
