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
from spurmix.train.weights import load_weights


def build_model(config: RunConfig, dataset: PackedDataset) -> nn.Module:
    """The model that completed settings name, its head seeded; texts go in mixed.

    Raises:
        ValueError: for weights that are missing, unreadable or do not fit.
    """
    torch.manual_seed(config.seed)
    model = make_model(config.model, dataset, config.weights or None)
    return _mixed(model, config.where) if dataset.kind == "tokens" else model


def make_model(name: str, dataset: PackedDataset, weights: str | None) -> nn.Module:
    """The model of that name for the classes, channels or columns of a dataset; see `spurmix.models`.

    Raises:
        ValueError: for weights that are missing, unreadable or do not fit.
    """
    classes = len(dataset.metadata.class_names)
    if name in ("minilm", "linear") and weights:
        raise ValueError(f"weights: {name} takes none")
    if name in ("bert", "encoder") and not weights:
        raise ValueError(f"weights: {name} starts from a pre-trained model; name its folder")
    if name == "resnet50":
        return models.resnet50(classes, channels=dataset.array.shape[3], weights=weights)
    if name == "small":
        small = models.small_resnet(classes, channels=dataset.array.shape[3])
        if weights:
            load_weights(small, weights)
        return small
    if name == "linear":
        return nn.Linear(dataset.array.shape[1], classes)
    if name == "minilm":
        return models.minilm(classes)
    if name == "bert":
        return models.bert(classes, pretrained=weights)
    return models.text_classifier(classes, pretrained=weights or "")


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
