"""Reads pre-trained ResNet weights of several layouts into the architecture of `models.resnet50`.

The layouts are Hugging Face folders, state dicts with the names of torchvision and timm (`.pth`, `.pt`, `.safetensors`), and
checkpoints of the `robustness` library. Only tensors and plain containers are unpickled.
"""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.files import parse_json, read_json

State = dict[str, Tensor]
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file of weights in a Hugging Face folder."""


class WeightsError(ValueError):
    """Weights cannot be read, or belong to another architecture."""


@dataclass(frozen=True)
class Weights:
    """Weights of a ResNet.

    Attributes:
        state: State dict with the names of transformers.
        layout: "transformers", "torchvision" or "robustness".
        mean: Mean of each input channel, if the weights have a normalization.
        std: Standard deviation of each input channel, if the weights have a normalization.
    """

    state: State
    layout: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_weights(path: str | Path) -> Weights:
    """Read weights of a ResNet in any known layout.

    Args:
        path: A file, or a Hugging Face folder with `model.safetensors` or `pytorch_model.bin`.

    Returns:
        The weights.

    Raises:
        WeightsError: If the weights cannot be read safely, are not a state dict, or have an unknown layout.
    """
    file = Path(path)
    if os.path.isdir(file):
        files = [file / name for name in FOLDER_FILES if (file / name).is_file()]
        if not files:
            raise WeightsError(f"weights: {file} has neither model.safetensors nor pytorch_model.bin")
        file = files[0]
    if not os.path.isfile(file):
        raise WeightsError(f"weights: there is no file {file}")
    found = _recognize(_read_tensors(file), file)
    mean, std = _read_normalization(file)
    return found if mean is None or std is None else replace(found, mean=mean, std=std)


def _read_normalization(path: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Read mean and std of the inputs from the header of the weights of a run, or from a Hugging Face folder."""
    described: Any = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                about = parse_json((file.metadata() or {}).get("spurmix", "{}"), str(path), dict[str, Any])
            described = about.get("architecture", {}).get("config", {})
        beside = path.with_name("preprocessor_config.json")
        if not described and beside.is_file() and path.name in FOLDER_FILES:
            described = read_json(beside, dict[str, Any])
        mean, std = (described.get(f"image_{name}") for name in ("mean", "std"))
        return (tuple(map(float, mean)), tuple(map(float, std))) if mean and std else (None, None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"weights: cannot read the normalization of {path}: {error}") from None


def _read_tensors(path: Path) -> State:
    """Read the state dict in a file, which may be nested in a dict."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"weights: cannot read {path}: {error}") from None
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights: {path} has other objects than tensors and plain containers, which are not unpickled; save only "
            f"the state dict ({str(error).splitlines()[0]})"
        ) from None
    except Exception as error:  # torch.load raises errors of many types for corrupt files
        raise WeightsError(f"weights: cannot read {path}: {error}") from None
    for name in ("state_dict", "model", "state_dict_ema"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"weights: {path} must be a state dict of tensors")
    return loaded


def _recognize(state: State, path: Path) -> Weights:
    if any(name.startswith("resnet.") for name in state):
        return Weights(state, "transformers")
    mean = std = None
    layout = "torchvision"
    if any(name.startswith("module.model.") for name in state):
        layout = "robustness"
        mean, std = (_numbers(state.get(f"module.normalizer.new_{name}")) for name in ("mean", "std"))
        state = {n.removeprefix("module.model."): v for n, v in state.items() if n.startswith("module.model.")}
    elif all(name.startswith("module.") for name in state):  # saved from a DataParallel model
        state = {n.removeprefix("module."): v for n, v in state.items()}
    renamed = {_renamed(name): value for name, value in state.items()}
    unknown = [name for name in state if _renamed(name) is None]
    if unknown:
        raise WeightsError(
            f"weights: {path} has no known layout (transformers, torchvision, timm, robustness); "
            f"unknown names: {_abbreviated(unknown)}"
        )
    return Weights({n: v for n, v in renamed.items() if n is not None}, layout, mean, std)


def _numbers(values: Tensor | None) -> tuple[float, ...] | None:
    return tuple(values.flatten().tolist()) if values is not None else None


_PARTS = {"conv": "convolution", "bn": "normalization"}


def _renamed(name: str) -> str | None:
    """Convert a parameter name of torchvision and timm to that of transformers. None if it is unknown."""
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"resnet.embedder.embedder.{_PARTS[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", name):
        stage, block, part, number, rest = match.groups()
        return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(number) - 1}.{_PARTS[part]}.{rest}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.([01])\.(\w+)", name):
        stage, block, part, rest = match.groups()
        kind = ("convolution", "normalization")[int(part)]
        return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.shortcut.{kind}.{rest}"
    if match := re.fullmatch(r"fc\.(weight|bias)", name):
        return f"classifier.1.{match[1]}"
    return None


def _abbreviated(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def load_weights(model: nn.Module, path: str | Path) -> Weights:
    """Load weights into a ResNet of `models.resnet50`. A head for another number of classes is not loaded.

    Args:
        model: The model. It is unchanged after an error.
        path: See `read_weights`.

    Returns:
        The weights.

    Raises:
        WeightsError: If the weights cannot be read, or parameters are unknown, missing or of another shape.
    """
    weights = read_weights(checks.path(path, "weights"))
    expected = model.state_dict()
    state = dict(weights.state)
    head = [name for name in expected if name.startswith("classifier.")]
    if any(name in state and state[name].shape != expected[name].shape for name in head):
        for name in head:
            state[name] = expected[name]
    for name in expected:  # older files do not have this counter
        if name.endswith("num_batches_tracked") and name not in state:
            state[name] = expected[name]
    problems = {
        "unknown": [n for n in state if n not in expected],
        "missing": [n for n in expected if n not in state],
        "of another shape": [
            f"{n} ({list(state[n].shape)}, expected {list(expected[n].shape)})"
            for n in expected
            if n in state and state[n].shape != expected[n].shape
        ],
    }
    listed = [f"{problem}: {_abbreviated(names)}" for problem, names in problems.items() if names]
    if listed:
        raise WeightsError(f"weights: {path} ({weights.layout} layout) does not fit the model; " + "; ".join(listed))
    model.load_state_dict(state)
    return weights
