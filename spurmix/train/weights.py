"""Pre-trained ResNet weights of several layouts, read into the one architecture that `models.resnet50` builds.

Hugging Face folders, state dicts named as torchvision and timm name them (`.pth`, `.pt`, `.safetensors`), and the
checkpoints of the `robustness` library. Nothing is unpickled but tensors and plain containers.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spurmix.core import checks

State = dict[str, Tensor]
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder of Hugging Face."""


class WeightsError(ValueError):
    """Weights that cannot be read, or that belong to another architecture."""


@dataclass(frozen=True)
class Weights:
    """A state dict with the names of transformers' ResNet; mean and std of the inputs where the file carries them."""

    state: State
    layout: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_weights(path: str | Path) -> Weights:
    """Read weights of a ResNet, whatever their layout.

    Args:
        path: a folder with `model.safetensors` or `pytorch_model.bin` (Hugging Face), or a file.

    Raises:
        WeightsError: for what cannot be read safely, is no state dict, or has names of no known layout, listing them.
    """
    place = Path(path)
    if place.is_dir():
        files = [place / name for name in FOLDER_FILES if (place / name).is_file()]
        if not files:
            raise WeightsError(f"weights: {place} has neither model.safetensors nor pytorch_model.bin")
        place = files[0]
    if not place.is_file():
        raise WeightsError(f"weights: there is no file {place}")
    found = _recognise(_tensors(place), place)
    mean, std = _normalisation(place)
    return found if mean is None or std is None else replace(found, mean=mean, std=std)


def _normalisation(path: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and std of the inputs that a run's weights say in their header, or a Hugging Face folder beside them."""
    described: Any = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("spurmix", "{}"))
            described = about.get("architecture", {}).get("config", {})
        beside = path.with_name("preprocessor_config.json")
        if not described and beside.is_file() and path.name in FOLDER_FILES:
            described = json.loads(beside.read_text())
        mean, std = (described.get(f"image_{what}") for what in ("mean", "std"))
        return (tuple(map(float, mean)), tuple(map(float, std))) if mean and std else (None, None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"weights: the normalisation beside {path} cannot be read: {error}") from None


def _tensors(path: Path) -> State:
    """The state dict in a file, taken out of what wraps it."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"weights: {path} cannot be read: {error}") from None
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights: {path} holds more than tensors and plain containers, which is never unpickled; save its state "
            f"dict alone ({str(error).splitlines()[0]})"
        ) from None
    except Exception as error:  # torch.load raises whatever damaged data lead it to
        raise WeightsError(f"weights: {path} cannot be read: {error}") from None
    for name in ("state_dict", "model", "state_dict_ema"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"weights: {path} holds no state dict of tensors")
    return loaded


def _recognise(state: State, path: Path) -> Weights:
    if any(name.startswith("resnet.") for name in state):
        return Weights(state, "transformers")
    mean = std = None
    layout = "torchvision"
    if any(name.startswith("module.model.") for name in state):
        layout = "robustness"
        mean, std = (_numbers(state.get(f"module.normalizer.new_{what}")) for what in ("mean", "std"))
        state = {n.removeprefix("module.model."): v for n, v in state.items() if n.startswith("module.model.")}
    elif all(name.startswith("module.") for name in state):  # of a model wrapped for several devices
        state = {n.removeprefix("module."): v for n, v in state.items()}
    renamed = {_renamed(name): value for name, value in state.items()}
    unknown = [name for name in state if _renamed(name) is None]
    if unknown:
        raise WeightsError(
            f"weights: {path} has names of no known layout (transformers, torchvision, timm, robustness): {_some(unknown)}"
        )
    return Weights({n: v for n, v in renamed.items() if n is not None}, layout, mean, std)


def _numbers(values: Tensor | None) -> tuple[float, ...] | None:
    return tuple(values.flatten().tolist()) if values is not None else None


_PARTS = {"conv": "convolution", "bn": "normalization"}


def _renamed(name: str) -> str | None:
    """transformers' name of a parameter that torchvision and timm name alike; None for another."""
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


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def load_weights(model: nn.Module, path: str | Path) -> Weights:
    """Read weights into a ResNet that `models.resnet50` built. A head for another number of classes is left as it is.

    Raises:
        WeightsError: for parameters that are unknown, missing or of another shape, listing them; the model is unchanged.
    """
    weights = read_weights(checks.path(path, "weights"))
    own = model.state_dict()
    state = dict(weights.state)
    head = [name for name in own if name.startswith("classifier.")]
    if any(name in state and state[name].shape != own[name].shape for name in head):
        for name in head:
            state[name] = own[name]
    for name in own:  # a counter that older files do not have
        if name.endswith("num_batches_tracked") and name not in state:
            state[name] = own[name]
    problems = {
        "unknown": [n for n in state if n not in own],
        "missing": [n for n in own if n not in state],
        "of another shape": [
            f"{n} ({list(state[n].shape)}, not {list(own[n].shape)})"
            for n in own
            if n in state and state[n].shape != own[n].shape
        ],
    }
    told = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if told:
        raise WeightsError(f"weights: {path} ({weights.layout} layout) does not fit the model; " + "; ".join(told))
    model.load_state_dict(state)
    return weights
