"""The model of a run: created from settings, or from a description."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spurmix.data.dataset.packed import PackedDataset
from spurmix.train import models
from spurmix.train.runs.config import RunConfig
from spurmix.train.text import MixedInputs, unwrapped
from spurmix.train.weights import load_weights


def build_model(config: RunConfig, dataset: PackedDataset) -> nn.Module:
    """Create the model of a run, its head initialized with the seed. Models of texts are wrapped in `MixedInputs`.

    Args:
        config: Completed settings.
        dataset: Dataset of the run.

    Returns:
        The model.

    Raises:
        ValueError: If weights are missing, unreadable or do not fit.
    """
    torch.manual_seed(config.seed)
    model = make_model(config.model, dataset, config.weights or None)
    return _mixed(model, config.mix_at) if dataset.kind == "tokens" else model


def make_model(name: str, dataset: PackedDataset, weights: str | None) -> nn.Module:
    """Create a model for the classes, channels or columns of a dataset. See `spurmix.models`.

    Args:
        name: Name of the model.
        dataset: Dataset.
        weights: File or folder with the initial weights.

    Returns:
        The model.

    Raises:
        ValueError: If weights are missing, unreadable or do not fit.
    """
    classes = len(dataset.metadata.class_names)
    if name in ("minilm", "linear") and weights:
        raise ValueError(f"weights: {name} accepts no weights; remove the setting")
    if name in ("bert", "encoder") and not weights:
        raise ValueError(f"weights: {name} requires the folder of a pre-trained model")
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


def _mixed(model: nn.Module, mix_at: str) -> nn.Module:
    return MixedInputs(model, mix_at="features" if mix_at == "features" else "embeddings")


def describe(model: nn.Module, config: RunConfig) -> dict[str, object]:
    """Describe the architecture of a model for `rebuild`."""
    described: dict[str, object] = {"model": config.model, "mix_at": config.mix_at}
    if isinstance(model, nn.Linear):
        return {**described, "shape": [model.in_features, model.out_features]}
    inner: Any = unwrapped(model)
    head = inner.classifier.out_features if isinstance(inner, models.TextClassifier) else None
    config_dict = inner.config.to_dict()
    config_dict.pop("_name_or_path", None)  # a path of this machine
    return {**described, "head": head, "config": config_dict}


def rebuild(described: dict[str, Any]) -> nn.Module:
    """Create a model of a described architecture with random parameters."""
    if described["model"] == "linear":
        return nn.Linear(*described["shape"])
    import transformers

    mix_at = described.get("mix_at") or described["where"]  # the name in version 0.1.0
    options = dict(described["config"])
    config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
    if described["model"] in ("encoder", "minilm"):
        encoder = transformers.AutoModel.from_config(config, trust_remote_code=False)
        return _mixed(models.TextClassifier(encoder, described["head"]), mix_at)
    if described["model"] == "bert":
        return _mixed(transformers.BertForSequenceClassification(config), mix_at)
    return transformers.ResNetForImageClassification(config)
