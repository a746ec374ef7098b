"""The tokenizer of an exported text model: checks against ids and model, and files next to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_samples import MAX_LENGTH, TEXT_GROUPS, TEXTS, WORDS, text_model, tokenizer
from torch import nn

from spurmix import MixedInputs, Predictor, TokenSource, export_onnx
from spurmix.data.dataset.tokenizer_files import load_tokenizer
from spurmix.deploy.export import ExportError, text_tokenizer


@pytest.mark.parametrize(
    ("words", "vocabulary", "error", "text"),
    [
        (None, 40, ValueError, "tokenizer is required for texts"),
        (tokenizer(words=WORDS[::-1]), 40, ValueError, "tokenizer"),
        (tokenizer(), 20, ValueError, "20 rows"),
        (lambda texts: texts, 40, TypeError, "must be a fast tokenizer"),
    ],
)
def test_invalid_tokenizers(words: Any, vocabulary: int, error: type[Exception], text: str, tmp_path: Path) -> None:
    source = TokenSource.from_texts(TEXTS, tokenizer())
    model = text_model(vocabulary=vocabulary)
    with pytest.raises(error, match=text):
        export_onnx(model, tmp_path / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=words)
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_and_vocabulary_are_compared_with_the_ids(tmp_path: Path) -> None:
    rows = [[1, 5, 2]] * 40
    for options, words, text in (
        (dict(pad_id=1), tokenizer(), "pad_id"),
        (dict(sep_id=1), tokenizer(), "closing token is 2, that of the ids is 1"),
        ({}, tokenizer(pad_first=False), "padding token is 1, that of the ids is 0"),
        (dict(vocab_size=36), tokenizer(), "tokenizer has 34 tokens, the ids go up to 35"),
        ({}, tokenizer(words=[f"x{k}" for k in range(50)]), "tokenizer has 54 tokens"),
    ):
        source = TokenSource.from_lists(rows, **dict(vocab_size=30, sep_id=2) | options)
        with pytest.raises(ValueError, match=text):
            export_onnx(text_model(), tmp_path / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=words)
    features = np.zeros((40, 2), np.float32)
    with pytest.raises(ValueError, match="tokenizer is only for texts"):
        export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", source=features, groups=TEXT_GROUPS, tokenizer=tokenizer())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_the_model_does_not_replace_its_tokenizer(name: str, tmp_path: Path) -> None:
    source = TokenSource.from_texts(TEXTS, tokenizer())
    with pytest.raises(ValueError, match=f"path must not be {name}, which is the name of a file of the tokenizer"):
        export_onnx(text_model(), tmp_path / name, source=source, groups=TEXT_GROUPS, tokenizer=tokenizer())


def test_a_stored_tokenizer_that_gives_other_ids_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TokenSource.from_texts(TEXTS, tokenizer())
    encode = text_tokenizer.tokenize.encode

    def encode_differently(*arguments: Any, **options: Any) -> Any:
        ids, offsets = encode(*arguments, **options)
        return ids + 1, offsets

    monkeypatch.setattr(text_tokenizer.tokenize, "encode", encode_differently)
    with pytest.raises(ExportError, match="the stored tokenizer gives other ids"):
        export_onnx(text_model(), tmp_path / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_in_texts_are_split_as_in_training(tmp_path: Path) -> None:
    words = tokenizer()
    words.split_special_tokens = True
    source = TokenSource.from_texts(TEXTS, words)
    exported = text_tokenizer.ExportedTokenizer(words, source, text_model(), tmp_path / "m.onnx")
    assert exported.settings["split_special_tokens"]
    assert exported._open().encode(["[SEP] w1"]) == [words("[SEP] w1")["input_ids"]] == [[1, 3, 3, 3, 5, 2]]
    exported.write()
    for only in (False, True):
        again = load_tokenizer(tmp_path, tokenizers_only=only)
        assert TokenSource.from_texts(["[SEP] w1"], again, max_length=9).ids.tolist() == [1, 3, 3, 3, 5, 2]


def test_a_tokenizer_that_splits_special_tokens_only_in_the_original_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tokenizer()
    words.split_special_tokens = True
    source = TokenSource.from_texts(TEXTS, words)
    monkeypatch.setattr(text_tokenizer.tokenize, "splits_special_tokens", lambda tokenizer: tokenizer is words)
    exported = text_tokenizer.ExportedTokenizer(words, source, text_model(), tmp_path / "m.onnx")
    del exported.settings["split_special_tokens"]
    with pytest.raises(ExportError, match=r"gives other ids than the original for 'Hello \[PAD\]"):
        exported._check_stored_ids(words, MAX_LENGTH)


def test_the_tokenizer_of_another_model_is_not_overwritten(exported_text_model: Path, tmp_path: Path) -> None:
    for file in exported_text_model.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = (tmp_path / "tokenizer.json").read_text()
    words = tokenizer(words=WORDS[::-1])
    source = TokenSource.from_texts(TEXTS, words)
    with pytest.raises(ValueError, match=r"another tokenizer, which m.onnx may need"):
        export_onnx(text_model(), tmp_path / "n.onnx", source=source, groups=TEXT_GROUPS, tokenizer=words)
    assert (tmp_path / "tokenizer.json").read_text() == before
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == MAX_LENGTH
    Predictor(tmp_path / "m.onnx")


def test_an_existing_tokenizer_is_kept_if_it_is_the_same(tmp_path: Path) -> None:
    words, other = tokenizer(), tokenizer(words=WORDS[::-1])
    words.save_pretrained(tmp_path / "same")
    other.save_pretrained(tmp_path / "other")
    before = {p.name: p.read_bytes() for p in (tmp_path / "same").iterdir()}
    options: Any = dict(source=TokenSource.from_texts(TEXTS, words), groups=TEXT_GROUPS, tokenizer=words)
    export_onnx(MixedInputs(text_model()), tmp_path / "same" / "m.onnx", **options)
    assert {p.name: p.read_bytes() for p in (tmp_path / "same").iterdir() if p.name != "m.onnx"} == before
    assert Predictor(tmp_path / "same" / "m.onnx").predict(["w1 w2"]).shape == (1, 2)
    with pytest.raises(ValueError, match="is another tokenizer; export to another folder"):
        export_onnx(MixedInputs(text_model()), tmp_path / "other" / "m.onnx", **options)
    assert not (tmp_path / "other" / "m.onnx").exists()
