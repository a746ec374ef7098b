"""The model of a run: built from settings, or from a description alone."""

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
    """The model that completed settings name, its head seeded; texts go in mixed.

    Raises:
        ValueError: for weights that are missing, unreadable or do not fit.
    """
    torch.manual_seed(config.seed)
    model = make_model(config.model, dataset, config.weights or None)
    return _mixed(model, config.mix_at) if dataset.kind == "tokens" else model


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


def _mixed(model: nn.Module, mix_at: str) -> nn.Module:
    return MixedInputs(model, mix_at="features" if mix_at == "features" else "embeddings")


def describe(model: nn.Module, config: RunConfig) -> dict[str, Any]:
    """What `rebuild` needs."""
    described = {"model": config.model, "mix_at": config.mix_at}
    if isinstance(model, nn.Linear):
        return {**described, "shape": [model.in_features, model.out_features]}
    inner: Any = unwrapped(model)
    head = inner.classifier.out_features if isinstance(inner, models.TextClassifier) else None
    return {**described, "head": head, "config": inner.config.to_dict()}


def rebuild(described: dict[str, Any]) -> nn.Module:
    """A model of the same architecture, its parameters random."""
    if described["model"] == "linear":
        return nn.Linear(*described["shape"])
    import transformers

    mix_at = described.get("mix_at") or described["where"]  # the name in version 0.1.0
    own = dict(described["config"])
    config = transformers.AutoConfig.for_model(own.pop("model_type"), **own)
    if described["model"] in ("encoder", "minilm"):
        return _mixed(models.TextClassifier(transformers.AutoModel.from_config(config), described["head"]), mix_at)
    if described["model"] == "bert":
        return _mixed(transformers.BertForSequenceClassification(config), mix_at)
    return transformers.ResNetForImageClassification(config)
