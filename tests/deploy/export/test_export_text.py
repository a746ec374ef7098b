"""Export of text models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from export_samples import CELLS, TEXT_GROUPS, TEXTS, WORDS, text_model, tokenizer

from spurmix import MixedInputs, Predictor, TokenSource, evaluate, export_onnx
from spurmix.train.evaluate import predict
from spurmix.train.models import TextClassifier


@pytest.mark.parametrize("kind", ["roberta", "mean", pytest.param("bert", marks=pytest.mark.slow)])
def test_predictions_from_strings_equal_those_of_the_model(kind: str, tmp_path: Path) -> None:
    words = tokenizer(pad_first=kind != "roberta")
    source = TokenSource.from_texts(TEXTS, words)
    model = MixedInputs(text_model(kind).train())
    report = export_onnx(
        model, tmp_path / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=words, membership=CELLS, batch_size=16
    )
    assert model.training
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert report.max_abs_logit_diff < 1e-4
    assert report.argmax_flips == 0
    expected = evaluate(model, source, TEXT_GROUPS, membership=CELLS)
    assert [(g.name, g.correct) for g in report.evaluation.groups] == [(g.name, g.correct) for g in expected.groups]
    assert [(c.name, c.correct) for c in report.evaluation.cells] == [(c.name, c.correct) for c in expected.cells]

    predictor = Predictor(tmp_path / "m.onnx")
    assert predictor.classes == ["kind", "rude"]
    assert len(predictor.report["cells"]) == 3
    logits = predict(model, source).numpy()
    np.testing.assert_allclose(
        predictor.predict(TEXTS), logits, atol=1e-4
    )  # longer texts are truncated, as in training
    np.testing.assert_allclose(predictor.predict(np.array(TEXTS, dtype=object)[:3]), logits[:3], atol=1e-4)
    np.testing.assert_allclose(predictor.predict_proba(TEXTS).sum(axis=1), 1, rtol=1e-6)
    assert predictor.predict([]).shape == (0, 2)
    tokens = source.gather(torch.arange(5))
    arrays = {"input_ids": tokens.ids.numpy(), "attention_mask": tokens.mask.numpy()}
    np.testing.assert_allclose(predictor.predict(arrays), logits[:5], atol=1e-4)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS[5])["input_ids"] == words(TEXTS[5])["input_ids"]


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
def test_texts_are_truncated_on_the_tokenizers_side(side: str, tmp_path: Path) -> None:
    words = tokenizer()
    words.truncation_side = side
    long = [" ".join(WORDS[k : k + 20]) for k in range(4)]
    source = TokenSource.from_texts([*long, *TEXTS[4:]], words)
    model = MixedInputs(text_model())
    export_onnx(model, tmp_path / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=words)
    expected = predict(model, source).numpy()[:4]
    np.testing.assert_allclose(Predictor(tmp_path / "m.onnx").predict(long), expected, atol=1e-4)


def test_texts_are_padded_on_the_tokenizers_side(tmp_path: Path) -> None:
    words = tokenizer(pad_first=False)
    words.padding_side = "left"
    source = TokenSource.from_texts(TEXTS, words)
    # RoBERTa counts positions from the first token, so that the mean of its outputs accepts both sides.
    model = TextClassifier(text_model("roberta").roberta, 2).eval()
    export_onnx(model, tmp_path / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=words)
    with torch.no_grad():
        alone = [model(torch.tensor([words(text, truncation=True)["input_ids"]])) for text in TEXTS]
    np.testing.assert_allclose(Predictor(tmp_path / "m.onnx").predict(TEXTS), torch.cat(alone).numpy(), atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"


@pytest.mark.slow
def test_xlnet_is_exported(tmp_path: Path) -> None:
    words = tokenizer(pad_first=False)
    words.padding_side = "left"
    source = TokenSource.from_texts(TEXTS, words)
    small = dict(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=16, pad_token_id=1)
    model = transformers.XLNetForSequenceClassification(transformers.XLNetConfig(**small))
    export_onnx(model, tmp_path / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=words)
    logits = predict(model, source).numpy()
    np.testing.assert_allclose(Predictor(tmp_path / "m.onnx").predict(TEXTS), logits, atol=1e-4)
