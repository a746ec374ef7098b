"""Published training settings, to reproduce published results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from spurmix.train.options import FinetuneOptions, FinetuneOverrides

DEFAULTS = FinetuneOptions()


class LoaderOptions(TypedDict):
    """Arguments of `MixLoader`."""

    batch_size: int
    epochs: float


@dataclass(frozen=True)
class Recipe:
    """Published settings of fine-tuning a model on a dataset.

    Attributes:
        model: Name of the pre-trained model.
        batch_size: Number of examples per batch.
        epochs: Number of passes over the training split.
        learning_rate: See `FinetuneOptions`.
        weight_decay: See `FinetuneOptions`.
        optimizer: See `FinetuneOptions`.
        schedule: See `FinetuneOptions`.
        source: Publication of the settings.
        warmup: See `FinetuneOptions`.
        clip: See `FinetuneOptions`.
        momentum: See `FinetuneOptions`.
        decay_all: See `FinetuneOptions`.
        stages: See `FinetuneOptions`.
        max_length: Maximum number of tokens of a text.
        crop: Whether to apply random resized crops.
        flip: Whether to flip images at random.
        attribute: Attribute of the published groups.
        cells: Whether the worst group is one of overlapping cells.

    Example:
        >>> recipe = CIVILCOMMENTS
        >>> data = read_civilcomments("folder").split("train")  # doctest: +SKIP
        >>> texts = TokenSource.from_texts(data.texts, tokenizer, max_length=recipe.max_length)  # doctest: +SKIP
        >>> loader = MixLoader(texts, data.groups(), policy, **recipe.loader_options())  # doctest: +SKIP
        >>> finetune(MixedInputs(bert), loader, **recipe.finetune_options())  # doctest: +SKIP
    """

    model: str
    batch_size: int
    epochs: float
    learning_rate: float
    weight_decay: float
    optimizer: str
    schedule: str
    source: str
    warmup: float = DEFAULTS.warmup
    clip: float | None = DEFAULTS.clip
    momentum: float = DEFAULTS.momentum
    decay_all: bool = DEFAULTS.decay_all
    stages: int = DEFAULTS.stages
    max_length: int | None = None
    crop: bool = False
    flip: bool = False
    attribute: str = ""
    cells: bool = False

    def loader_options(self) -> LoaderOptions:
        """Return arguments of `MixLoader`."""
        return {"batch_size": self.batch_size, "epochs": self.epochs}

    def finetune_options(self) -> FinetuneOverrides:
        """Return arguments of `finetune`."""
        return FinetuneOverrides(
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, optimizer=self.optimizer,
            schedule=self.schedule, warmup=self.warmup, clip=self.clip, momentum=self.momentum,
            decay_all=self.decay_all, stages=self.stages,
        )  # fmt: skip

    def config(self) -> dict[str, object]:
        """Return settings of `spurmix train`. The policy is not included. Published results are those of `erm`."""
        model = "bert" if self.model.startswith("bert") else "resnet50"
        settings = {"model": model, "crop": self.crop, "flip": self.flip, "cells": self.cells, "select": "best"}
        settings |= {"attribute": self.attribute} if self.attribute else {}
        return {**settings, **self.loader_options(), **self.finetune_options(), "clip": self.clip or 0.0}


_WILDS = "Koh et al. 2021 (WILDS, arXiv 2012.07421): examples/configs/datasets.py of its code, at commit 039241d"

CIVILCOMMENTS = Recipe(
    model="bert-base-uncased",
    max_length=300,
    batch_size=16,
    epochs=5.0,
    learning_rate=1e-5,
    weight_decay=0.01,
    optimizer="adamw",
    schedule="linear",
    clip=1.0,
    attribute="black",
    cells=True,
    source=_WILDS,
)
"""ERM on CivilComments, with the initial settings in the code of WILDS. WILDS defines groups by (black, label) and keeps
the epoch with the highest worst-group accuracy on the validation split."""

WATERBIRDS = Recipe(
    model="resnet50 pre-trained on ImageNet",
    batch_size=128,
    epochs=300.0,
    learning_rate=1e-5,
    weight_decay=1.0,
    decay_all=True,
    optimizer="sgd",
    schedule="constant",
    source=_WILDS,
)
"""ERM on Waterbirds: strong weight decay and no augmentation. The kept epoch has the highest worst-group accuracy on the
validation split. WILDS resizes images to 256 x 256 and crops the center of 224 x 224. `spurmix pack --size 224` keeps the
aspect ratio, resizes the shorter side to 224 and crops the center."""

CELEBA = Recipe(
    model="resnet50 pre-trained on ImageNet",
    batch_size=64,
    epochs=200.0,
    learning_rate=1e-3,
    weight_decay=0.0,
    optimizer="sgd",
    schedule="constant",
    source=_WILDS,
)
"""ERM on CelebA (label Blond_Hair, attribute Male): no weight decay and no augmentation. The kept epoch has the highest
worst-group accuracy on the validation split."""

IMAGENET = Recipe(
    model="resnet50 adversarially pre-trained on ImageNet",
    batch_size=64,
    epochs=150.0,
    learning_rate=0.01,
    weight_decay=5e-4,
    decay_all=True,
    optimizer="sgd",
    schedule="step",
    stages=5,
    crop=True,
    flip=True,
    source="Salman et al. 2020 (arXiv 2007.08489): full-network transfer in the README of its code, which also varies the "
    "color and lighting of training images",
)
"""Transfer of a robust checkpoint to a dataset in the layout of ImageNet. The learning rate is divided by 10 after each
fifth of the run."""

RECIPES = {"waterbirds": WATERBIRDS, "celeba": CELEBA, "civilcomments": CIVILCOMMENTS, "imagenet": IMAGENET}
"""Recipes by name, as accepted by `spurmix train --recipe`."""
