"""Small models, tokenizers and data for tests of export."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from spurmix import GroupIndex

IMAGE_RNG = np.random.default_rng(2)
IMAGES = IMAGE_RNG.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
IMAGE_GROUPS = GroupIndex(IMAGE_RNG.integers(0, 3, 50), IMAGE_RNG.integers(0, 2, 50), class_names=["a", "b", "c"])

WORDS = [f"w{k}" for k in range(30)]
MAX_LENGTH = 12
RNG = np.random.default_rng(6)
TEXTS = ["", *(" ".join(RNG.choice(WORDS, RNG.integers(1, 20))) for _ in range(39))]
TEXT_GROUPS = GroupIndex(RNG.integers(0, 2, 40), RNG.integers(0, 2, 40), class_names=["kind", "rude"])
CELLS = RNG.random((40, 3)) < 0.6


class ImageModel(nn.Module):
    """A linear model of images. The exported graph, and only that, adds `drift` to the logits: a faulty export."""

    def __init__(self, drift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        self.drift = drift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + (self.drift if torch.compiler.is_exporting() else 0.0)


class NeverCalled(nn.Module):
    """A model that must not run, because an argument is wrong."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model ran before the arguments were checked")


class FaultyTextModel(nn.Module):
    """A text model that gives other logits in the exported graph: a faulty export."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = text_model()

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None) -> Any:
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits + (0.5 if torch.compiler.is_exporting() else 0.0)


def tokenizer(pad_first: bool = True, words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """A tokenizer of `words`, with padding enabled, as some published tokenizers have it."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"] if pad_first else ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    vocabulary = {word: k for k, word in enumerate([*special, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    inner.enable_padding(length=64)
    names: Any = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=MAX_LENGTH, **names)


def text_model(kind: str = "bert", vocabulary: int = 40) -> nn.Module:
    """A tiny BERT, RoBERTa, or encoder with mean pooling."""
    from spurmix.train.models import TextClassifier

    torch.manual_seed(2)
    small: Any = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                      vocab_size=vocabulary, max_position_embeddings=MAX_LENGTH, initializer_range=0.5)  # fmt: skip
    if kind == "roberta":
        small["max_position_embeddings"] = MAX_LENGTH + 2
        return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**small, pad_token_id=1))
    if kind == "mean":
        return TextClassifier(transformers.BertModel(transformers.BertConfig(**small)), 2)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**small))
