"""TokenSource.from_texts: ids, limits and settings of tokenizers, and their identity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from token_samples import check_rows, source
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from spurmix import TokenSource
from spurmix.data.dataset import tokenize

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "movie", "the", "was", "##s", "!", "fish"]
SENTENCES = ["the movie was good!", "", "The movies was BAD", "fish " * 40, "xyz the", " \n"]


def bert_tokenizer(words: list[str] = WORDS, **options: Any) -> BertTokenizerFast:
    vocabulary = {w: n for n, w in enumerate(words)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=core, **names | options)


@pytest.mark.parametrize("limit", [None, 6])
@pytest.mark.parametrize("chunk", [1, 4, 4096])
def test_ids_equal_those_of_the_tokenizer(monkeypatch: pytest.MonkeyPatch, limit: int | None, chunk: int) -> None:
    monkeypatch.setattr(tokenize, "CHUNK", chunk)
    tokenizer = bert_tokenizer()
    cut = dict(truncation=True, max_length=limit) if limit else {}
    expected = tokenizer(SENTENCES, **cut)["input_ids"]
    texts = TokenSource.from_texts(SENTENCES, tokenizer, max_length=limit)
    check_rows(*texts.gather(torch.arange(6)).tensors(), expected)
    assert texts.gather(torch.tensor([1])).ids[0, :2].tolist() == [2, 3]  # "" has its special tokens
    assert (texts.vocab_size, texts.pad_id, texts.sep_id) == (12, 0, 3)
    for form in (np.array(SENTENCES), np.array(SENTENCES, dtype=object), tuple(SENTENCES)):
        assert np.array_equal(TokenSource.from_texts(form, tokenizer, max_length=limit).ids, texts.ids)
    assert np.array_equal(
        TokenSource.from_texts(SENTENCES, tokenizer.backend_tokenizer, max_length=limit).ids, texts.ids
    )


def test_the_limit_of_the_tokenizer_is_used_and_its_settings_are_restored() -> None:
    tokenizer = bert_tokenizer(model_max_length=10)
    tokenizer.backend_tokenizer.enable_padding(pad_id=0, length=64)
    tokenizer.backend_tokenizer.enable_truncation(5, stride=1)
    before = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    texts = TokenSource.from_texts(SENTENCES, tokenizer)
    assert (texts.max_length, texts.longest) == (10, 10)
    assert texts.ids[texts.offsets[4] - 1] == 3
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == before


def test_a_tokenizer_written_in_python() -> None:
    fast = bert_tokenizer()

    class SlowTokenizer:
        """The interface of a tokenizer without a compiled backend."""

        pad_token_id, sep_token_id, eos_token_id, special_tokens_map = 0, 3, None, {}

        def get_vocab(self) -> dict[str, int]:
            return fast.get_vocab()

        def __call__(self, texts: list[str], **options: Any) -> Any:
            return fast(texts, **options)

    slow = TokenSource.from_texts(SENTENCES, SlowTokenizer(), max_length=6)
    assert np.array_equal(slow.ids, TokenSource.from_texts(SENTENCES, fast, max_length=6).ids)
    assert slow.tokenizer_fingerprint != bert_tokenizer()


def test_another_tokenizer_is_rejected() -> None:
    tokenizer = bert_tokenizer()
    texts = TokenSource.from_texts(SENTENCES, tokenizer)
    tokenizer(SENTENCES, truncation=True, padding=True, max_length=4)  # the fingerprint does not depend on settings
    texts.check_tokenizer(tokenizer)
    texts.check_tokenizer(bert_tokenizer())
    texts.check_tokenizer(texts)
    source().check_tokenizer(tokenizer)  # the tokenizer of these ids is unknown
    other = bert_tokenizer([*WORDS[:-2], WORDS[-1], WORDS[-2]])
    with pytest.raises(ValueError, match="tokenizer: the ids were made by another tokenizer"):
        texts.check_tokenizer(other)
    with pytest.raises(ValueError, match="made by another tokenizer"):
        texts.check_tokenizer(TokenSource.from_texts(SENTENCES, other))


def test_progress_is_shown_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    TokenSource.from_texts(SENTENCES, bert_tokenizer())
    assert capfd.readouterr().err == ""
    TokenSource.from_texts(SENTENCES, bert_tokenizer(), progress=True)


def test_a_text_without_tokens_names_its_row() -> None:
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match=r"texts\[1\] has no tokens"):
        TokenSource.from_texts(SENTENCES, tokenizer)


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_in_texts_are_split_if_the_tokenizer_says_so(split: bool) -> None:
    tokenizer = bert_tokenizer(split_special_tokens=split)
    text = "the [SEP] movie [PAD]"
    expected = tokenizer(text)["input_ids"]
    for before in (False, True):
        tokenizer.backend_tokenizer.encode_special_tokens = before  # calls of the tokenizer change it
        assert TokenSource.from_texts([text], tokenizer).ids.tolist() == expected
        assert tokenizer.backend_tokenizer.encode_special_tokens == before


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: TokenSource.from_texts(["a"], bert_tokenizer(), max_length=1), ValueError, "max_length must be 2 or more, because the tokenizer adds 2 special tokens"),
        (lambda: TokenSource.from_texts([], bert_tokenizer()), ValueError, "texts must contain at least one text"),
        (lambda: TokenSource.from_texts("text", bert_tokenizer()), TypeError, "texts must be a sequence of strings"),
        (lambda: TokenSource.from_texts(["a", None], bert_tokenizer()), TypeError, "texts[1] must be a string, got NoneType"),
        (lambda: TokenSource.from_texts(["a"], lambda texts: texts), TypeError, "tokenizer must be a tokenizer of transformers"),
    ],
)  # fmt: skip
def test_invalid_texts(call: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
