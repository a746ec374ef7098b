"""Small text models, and texts of two classes: build them without pre-trained weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from spurmix import GroupIndex, MixLoader, TokenPairs, TokenSource, policies
from spurmix.train.models import TextClassifier, logits_of

VOCABULARY, LONGEST = 60, 24
SMALL: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                             vocab_size=VOCABULARY)  # fmt: skip


def build(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "bert":
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(**SMALL, num_labels=3, max_position_embeddings=LONGEST)
        )
    if kind == "roberta":
        config = transformers.RobertaConfig(
            **SMALL, num_labels=3, max_position_embeddings=LONGEST + 2, pad_token_id=1, type_vocab_size=1
        )
        return transformers.RobertaForSequenceClassification(config)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=VOCABULARY, num_labels=3,
            max_position_embeddings=LONGEST,
        )  # fmt: skip
        return transformers.DistilBertForSequenceClassification(config)
    assert kind == "mean"  # as MiniLM
    encoder = transformers.BertModel(transformers.BertConfig(**SMALL, max_position_embeddings=LONGEST))
    return TextClassifier(encoder, 3)


KINDS = ["bert", "roberta", "distilbert", "mean"]
PADDING = {"roberta": 1}


def pairs(kind: str, lam: Any = None, seed: int = 0) -> TokenPairs:
    """Five pairs of texts of 2 to 9 tokens, padded together."""
    rng = np.random.default_rng(seed)
    padding = PADDING.get(kind, 0)
    lengths = rng.integers(2, 10, (2, 5))
    lengths[:, 0] = 9, 2
    masks = torch.from_numpy(np.arange(9) < lengths[:, :, None])
    ids = torch.from_numpy(rng.integers(3, VOCABULARY, (2, 5, 9))).where(masks, padding)
    weights = rng.random(5) if lam is None else np.full(5, lam)
    return TokenPairs(ids[0], ids[1], masks[0], masks[1], torch.from_numpy(weights).float())


def plain(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits of each text, computed without padding."""
    return torch.cat(
        [
            logits_of(model(input_ids=row[m][None], attention_mask=m[m][None].long()))
            for row, m in zip(ids, mask, strict=True)
        ]
    )


# The label is 1 if the second last token is in [7, 11), 0 if it is in [3, 7). The attribute is 1 if the first token is 58.
# Tokens 0 to 2 are special.
RNG = np.random.default_rng(4)
LABELS = RNG.integers(0, 2, 160)
ATTRIBUTES = np.where(RNG.random(160) < 0.8, LABELS, 1 - LABELS)


def _ids(n: int) -> list[int]:
    middle = RNG.integers(12, 50, RNG.integers(1, 6)).tolist()
    return [59 - int(ATTRIBUTES[n]), *middle, int(RNG.integers(3, 7) + 4 * LABELS[n]), 2]


IDS = [_ids(n) for n in range(160)]
GROUPS = GroupIndex(LABELS, ATTRIBUTES)


def source(**options: Any) -> TokenSource:
    return TokenSource.from_lists(IDS, vocab_size=VOCABULARY, sep_id=2, pad_multiple=4, **options)


def text_loader(batch: int = 32, **options: Any) -> MixLoader:
    return MixLoader(source(), GROUPS, policies.balance_attributes(), batch, **dict(steps=6, seed=1) | options)


def two_classes(kind: str = "bert") -> nn.Module:
    torch.manual_seed(5)
    config = transformers.BertConfig(
        **SMALL, num_labels=2, max_position_embeddings=LONGEST, attn_implementation="eager"
    )
    if kind == "mean":
        return TextClassifier(transformers.BertModel(config), 2)
    return transformers.BertForSequenceClassification(config)
