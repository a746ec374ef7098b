"""Published settings, to be compared with published figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a model was fine-tuned on a dataset, and who published it.

    Attributes:
        model: name of the pre-trained model. max_length: tokens kept of a text. source: where the settings stand.

    Example:
        >>> recipe = CIVILCOMMENTS
        >>> data = read_civilcomments("folder").split("train")  # doctest: +SKIP
        >>> texts = TokenSource.from_texts(data.texts, tokenizer, max_length=recipe.max_length)  # doctest: +SKIP
        >>> loader = MixLoader(texts, data.groups(), policy, **recipe.loader_options())  # doctest: +SKIP
        >>> finetune(MixedInputs(bert), loader, **recipe.finetune_options())  # doctest: +SKIP
    """

    model: str
    max_length: int
    batch_size: int
    epochs: float
    learning_rate: float
    weight_decay: float
    optimizer: str
    schedule: str
    warmup: float
    clip: float
    source: str

    def loader_options(self) -> dict[str, Any]:
        """Arguments of `MixLoader`."""
        return {"batch_size": self.batch_size, "epochs": self.epochs}

    def finetune_options(self) -> dict[str, Any]:
        """Arguments of `finetune`."""
        names = ("learning_rate", "weight_decay", "optimizer", "schedule", "warmup", "clip")
        return {name: getattr(self, name) for name in names}


CIVILCOMMENTS = Recipe(
    model="bert-base-uncased",
    max_length=300,
    batch_size=16,
    epochs=5,
    learning_rate=1e-5,
    weight_decay=0.01,
    optimizer="adamw",
    schedule="linear",
    warmup=0.0,
    clip=1.0,
    source="Koh et al. 2021 (WILDS, arXiv 2012.07421): examples/configs/datasets.py of its code, at commit 039241d",
)
"""ERM on CivilComments, as the code of WILDS first set it. WILDS trains on groups of (black, label) and stops at the epoch
that is best for the worst group of the validation split; both are the caller's to do, or to state otherwise."""
