"""The model of a run: built from settings, or from its own file alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spurmix.data.store import PackedDataset
from spurmix.train import models
from spurmix.train.config import RunConfig
from spurmix.train.text import MixedInputs, unwrapped


def build_model(config: RunConfig, dataset: PackedDataset) -> nn.Module:
    """The model that completed settings name, its head seeded; see `spurmix.models`.

    Raises:
        ValueError: for weights that are missing, unreadable or do not fit.
    """
    torch.manual_seed(config.seed)
    classes, weights = len(dataset.metadata.class_names), config.weights or None
    if config.model in ("minilm", "linear", "small") and weights:
        raise ValueError(f"weights: {config.model} takes none")
    if config.model in ("bert", "encoder") and weights is None:
        raise ValueError(f"weights: {config.model} starts from a pre-trained model; name its folder")
    if config.model == "resnet50":
        return models.resnet50(classes, weights=weights)
    if config.model == "small":
        return models.small_resnet(classes)
    if config.model == "linear":
        return nn.Linear(dataset.array.shape[1], classes)
    if config.model == "minilm":
        text: nn.Module = models.minilm(classes)
    elif config.model == "bert":
        text = models.bert(classes, pretrained=weights)
    else:
        text = models.text_classifier(classes, pretrained=weights or "")
    return _mixed(text, config.where)


def _mixed(model: nn.Module, where: str) -> nn.Module:
    return MixedInputs(model, where="features" if where == "features" else "embeddings")


def _describe(model: nn.Module, config: RunConfig) -> dict[str, Any]:
    """What `_rebuild` needs."""
    described = {"model": config.model, "where": config.where}
    if isinstance(model, nn.Linear):
        return {**described, "shape": [model.in_features, model.out_features]}
    inner: Any = unwrapped(model)
    head = inner.classifier.out_features if isinstance(inner, models.TextClassifier) else None
    return {**described, "head": head, "config": inner.config.to_dict()}


def _rebuild(described: dict[str, Any]) -> nn.Module:
    """A model of the same architecture, its parameters random."""
    if described["model"] == "linear":
        return nn.Linear(*described["shape"])
    import transformers

    own = dict(described["config"])
    config = transformers.AutoConfig.for_model(own.pop("model_type"), **own)
    if described["model"] in ("encoder", "minilm"):
        return _mixed(
            models.TextClassifier(transformers.AutoModel.from_config(config), described["head"]), described["where"]
        )
    if described["model"] == "bert":
        return _mixed(transformers.BertForSequenceClassification(config), described["where"])
    return transformers.ResNetForImageClassification(config)


def write_text(path: Path, text: str) -> None:
    """Write a file by rename."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_weights(path: Path, model: nn.Module, about: dict[str, Any], config: RunConfig) -> None:
    """The model's parameters and buffers as one safetensors file; its architecture and `about` in the header."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    header = {"spurmix": json.dumps({**about, "architecture": _describe(model, config)})}
    temporary.touch()
    mode = temporary.stat().st_mode
    save_file(state, str(temporary), metadata=header)
    temporary.chmod(mode)  # safetensors lets nobody else read its files
    temporary.replace(path)


def read_weights(path: Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load what `write_weights` wrote into `model` (default: one that is made for it), and what its header says.

    Raises:
        ValueError: for a file that is missing, damaged or of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["spurmix"])
            into = model if model is not None else _rebuild(about["architecture"])
            into.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as the weights of this model: {error}") from None
    return into, about
