"""Published settings, to be compared with published figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a model was fine-tuned on a dataset, and who published it.

    Attributes:
        model: name of the pre-trained model. max_length: tokens kept of a text. source: where the settings stand.
        decay_all: weight decay of biases and norms too. stages: parts of a "step" schedule. crop, flip: augmentation.
        attribute: what the published groups are made of. cells: the worst group is one of overlapping cells.

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
    warmup: float = 0.0
    clip: float | None = None
    momentum: float = 0.9
    decay_all: bool = False
    stages: int = 3
    max_length: int | None = None
    crop: bool = False
    flip: bool = False
    attribute: str = ""
    cells: bool = False

    def loader_options(self) -> dict[str, Any]:
        """Arguments of `MixLoader`."""
        return {"batch_size": self.batch_size, "epochs": self.epochs}

    def finetune_options(self) -> dict[str, Any]:
        """Arguments of `finetune`."""
        names = (
            "learning_rate", "weight_decay", "optimizer", "schedule", "warmup", "clip", "momentum", "decay_all", "stages",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def config(self) -> dict[str, Any]:
        """Settings of `spurmix train`. The policy is the user's: the published figures are of erm."""
        model = "bert" if self.model.startswith("bert") else "resnet50"
        own = {"model": model, "crop": self.crop, "flip": self.flip, "cells": self.cells, "select": "best"}
        own |= {"attribute": self.attribute} if self.attribute else {}
        return {**own, **self.loader_options(), **self.finetune_options(), "clip": self.clip or 0.0}


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
"""ERM on CivilComments, as the code of WILDS first set it. WILDS trains on groups of (black, label) and stops at the epoch
that is best for the worst group of the validation split."""

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
"""ERM on Waterbirds: strong decay, no augmentation, the epoch that is best for the worst group of the validation split.
WILDS stretches images to 256 x 256 and cuts out 224 x 224; `spurmix pack --size 224` covers and cuts out the centre."""

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
"""ERM on CelebA (Blond_Hair against Male): no decay, no augmentation, the epoch that is best for the worst group."""

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
    source="Salman et al. 2020 (arXiv 2007.08489): full-network transfer as the README of its code shows it; there the "
    "colours and lighting of training images vary too",
)
"""Transfer from a robust checkpoint to a dataset laid out like ImageNet: a tenth of the rate after each fifth of the run."""

RECIPES = {"waterbirds": WATERBIRDS, "celeba": CELEBA, "civilcomments": CIVILCOMMENTS, "imagenet": IMAGENET}
"""By the names that `spurmix train --recipe` takes."""
