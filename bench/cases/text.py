"""Texts: tokenizing and packing strings, and loading batches of token pairs."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import GroupIndex, MixLoader, TokenSource, policies
from spurmix.data.batch import TokenPairs
from spurmix.data.dataset import tokenize

COMMENTS, VOCABULARY, MAX_LENGTH = 100_000, 30_522, 300
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz")


@functools.cache
def _words() -> list[str]:
    rng = np.random.default_rng(0)
    words = {"".join(rng.choice(LETTERS, n)) for n in rng.integers(2, 11, VOCABULARY)}
    return sorted(words)


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer with BERT's rules and vocabulary size. Four fifths are random words, the rest pieces."""
    words = _words()
    pieces = [*SPECIAL, *".,!?'", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    whole = words[: (VOCABULARY - len(pieces)) * 4 // 5]
    pieces += [*whole, *(f"##{word[:4]}" for word in words)]
    vocabulary = {piece: n for n, piece in enumerate(list(dict.fromkeys(pieces))[:VOCABULARY])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=MAX_LENGTH, **names)


@functools.cache
def _comments() -> list[str]:
    """Return comments of 1 to 200 random words, 50 on average. A few words are much more frequent than most."""
    rng = np.random.default_rng(1)
    words = _words()
    lengths = np.minimum(rng.geometric(1 / 50, COMMENTS), 200)
    ranks = (len(words) ** rng.random(int(lengths.sum()))).astype(np.int64) - 1
    order = rng.permutation(len(words))
    text = [words[k] for k in order[ranks]]
    ends = np.cumsum(lengths)
    return [" ".join(text[end - n : end]).capitalize() + "." for n, end in zip(lengths, ends, strict=True)]


def _digest(ids: Any) -> Tensor:
    """Return the number and sum of token ids, to compare results."""
    values = np.asarray(ids, dtype=np.int64)
    return torch.tensor([values.size, int(values.sum())])


@case("tokenize_100k", quick=False)
def tokenize_100k(context: Context) -> Case:
    """Tokenize 10^5 generated comments of about 70 tokens with a fast WordPiece tokenizer and pack int32 ids."""
    comments, tokenizer = _comments(), _tokenizer()
    core = tokenizer.backend_tokenizer

    def ours() -> Tensor:
        return _digest(TokenSource.from_texts(comments, tokenizer, progress=False).ids)

    def alone() -> None:
        core.enable_truncation(MAX_LENGTH)
        for start in range(0, COMMENTS, tokenize.CHUNK):
            core.encode_batch_fast(comments[start : start + tokenize.CHUNK])
        core.no_truncation()

    def called() -> Tensor:
        rows = tokenizer(comments, truncation=True)["input_ids"]
        return _digest(np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]))

    return Case(
        [
            Contender("spurmix TokenSource.from_texts", ours, "ours"),
            Contender("tokenizer alone, without packing", alone, "baseline"),
            Contender("transformers tokenizer(texts), then NumPy", called),
        ],
        items=COMMENTS,
        repeats=5,
    )


BATCH, BATCHES, LABELS = 32, 200, 2


class _Examples(Dataset[dict[str, Any]]):
    def __init__(self, rows: list[list[int]], labels: list[int]) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {"input_ids": self.rows[n], "labels": self.labels[n]}


def _data_loader(rows: list[list[int]], labels: list[int], workers: int) -> Contender:
    """Return a contender that pads batches with DataCollatorWithPadding."""
    # Mixing needs two texts per sample, so each batch has twice the size and is split in halves.
    collate = DataCollatorWithPadding(_tokenizer(), pad_to_multiple_of=8)
    timed = BATCHES // 10
    sampler = WeightedRandomSampler([1.0] * len(rows), 2 * BATCH * timed)
    batches = DataLoader(
        _Examples(rows, labels), 2 * BATCH, sampler=sampler, collate_fn=collate, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip

    def seconds() -> float:
        began = time.perf_counter()
        for batch in batches:
            batch["input_ids"][:BATCH], batch["input_ids"][BATCH:]
        return (time.perf_counter() - began) * BATCHES / timed

    name = f"DataLoader, DataCollatorWithPadding, {workers} workers"
    return Contender(name, lambda: None, note=f"measured on {timed} batches", seconds=seconds)


@case("text_loader")
def text_loader(context: Context) -> Case:
    """200 batches of 32 text pairs: loader, packing of tokens alone, DataLoader with a padding collator."""
    rng = np.random.default_rng(2)
    count = 20_000
    rows = [[2, *rng.integers(5, VOCABULARY, min(n, 298)).tolist(), 3] for n in rng.geometric(1 / 70, count)]
    source = TokenSource.from_lists(rows, vocab_size=VOCABULARY, sep_id=3)
    labels, attributes = rng.integers(0, LABELS, count), rng.integers(0, 2, count)
    groups, policy = GroupIndex(labels, attributes), policies.balance_attributes()

    def loaded(bucket: int) -> Contender:
        loader = MixLoader(source, groups, policy, BATCH, steps=10**6, bucket=bucket)
        stream: list[Iterator[Any]] = []
        sample = [loader.batch(k) for k in range(BATCHES)]
        pairs = [b.input for b in sample if isinstance(b.input, TokenPairs)]
        tokens = sum(int(p.mask.sum() + p.partner_mask.sum()) for p in pairs)
        positions = sum(2 * p.ids.numel() for p in pairs)

        def run() -> None:
            if not stream:
                stream.append(iter(loader))
            for _ in range(BATCHES):
                next(stream[0])

        name = "spurmix MixLoader" + (f", bucket={bucket}" if bucket > 1 else "")
        return Contender(
            name,
            run,
            "ours" if bucket == 1 else "variant",
            note=f"{100 * tokens / positions:.0f}% of the positions are tokens",
        )

    plain = MixLoader(source, groups, policy, BATCH, steps=10**6)
    drawn = [plain.batch(k) for k in range(BATCHES)]

    def packing() -> None:
        for batch in drawn:
            pairs = batch.input
            assert isinstance(pairs, TokenPairs)
            source.pack(batch.index, pairs.ids, pairs.mask)
            source.pack(batch.partner, pairs.partner_ids, pairs.partner_mask)

    return Case(
        [
            loaded(1),
            loaded(16),
            Contender("spurmix, packing of tokens alone", packing, "variant"),
            _data_loader(rows, labels.tolist(), 0),
            _data_loader(rows, labels.tolist(), 2),
        ],
        items=BATCH * BATCHES,
        repeats=7,
    )
