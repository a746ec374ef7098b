"""A small tokenizer, texts and tables for tests of packing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from spurmix.data.pack.layouts.civilcomments import FILE, IDENTITIES, SPLITS

RNG = np.random.default_rng(7)
WORDS = [f"w{k}" for k in range(30)]


def tokenizer(special: bool = True) -> Any:
    """A tokenizer of words "w0" to "w29", with or without [CLS] and [SEP] around each text."""
    vocabulary = {w: k for k, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=20, **names)


def sentences(count: int) -> list[str]:
    """Random sentences. Every fifth has a line break, a comma and unknown words."""
    return [
        " ".join(RNG.choice(WORDS, RNG.integers(0, 30))) + ("\nnew, line" if n % 5 == 0 else "") for n in range(count)
    ]


def write_table(path: Path, texts: list[Any], **columns: list[Any]) -> Path:
    """Write a Parquet file with columns text and label."""
    known = {"text": pyarrow.array(texts, pyarrow.string()), "label": [n % 2 for n in range(len(texts))], **columns}
    pyarrow.parquet.write_table(pyarrow.table(known), path)
    return path


def write_comments(folder: Path, count: int = 60) -> Path:
    """Write a file in the layout of CivilComments. Comments 4 and 9 are empty."""
    with (folder / FILE).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "split", "comment_text", "toxicity", *IDENTITIES, "identity_any"])
        for n in range(count):
            mentioned = [round(RNG.random() ** 4, 2) for _ in IDENTITIES]
            writer.writerow(
                [n, SPLITS[n % 3], "" if n in (4, 9) else f"w{n % 30} é", round(RNG.random(), 2), *mentioned, 0]
            )
    return folder
