"""Export of text models with their tokenizer, and the predictor on strings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from spurmix import GroupIndex, MixedInputs, Predictor, TokenSource, evaluate, export_onnx
from spurmix.deploy import export_text
from spurmix.deploy.export import ExportError
from spurmix.train.evaluate import predict
from spurmix.train.models import TextClassifier

WORDS = [f"w{k}" for k in range(30)]
LONGEST = 12
RNG = np.random.default_rng(6)
TEXTS = ["", *(" ".join(RNG.choice(WORDS, RNG.integers(1, 20))) for _ in range(39))]
LABELS = RNG.integers(0, 2, 40)
GROUPS = GroupIndex(LABELS, RNG.integers(0, 2, 40), class_names=["kind", "rude"])
CELLS = RNG.random((40, 3)) < 0.6


def tokenizer(pad_first: bool = True, words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"] if pad_first else ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    vocabulary = {word: k for k, word in enumerate([*special, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    inner.enable_padding(length=64)  # as some tokenizers arrive
    names: Any = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=LONGEST, **names)


def network(kind: str = "bert", vocabulary: int = 40) -> nn.Module:
    torch.manual_seed(2)
    small: Any = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                      vocab_size=vocabulary, max_position_embeddings=LONGEST, initializer_range=0.5)  # fmt: skip
    if kind == "roberta":
        small["max_position_embeddings"] = LONGEST + 2
        return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**small, pad_token_id=1))
    if kind == "mean":
        return TextClassifier(transformers.BertModel(transformers.BertConfig(**small)), 2)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**small))


@pytest.mark.parametrize("kind", ["bert", "roberta", "mean"])
def test_export_and_predict_from_strings(kind: str, tmp_path: Path) -> None:
    words = tokenizer(pad_first=kind != "roberta")
    source = TokenSource.from_texts(TEXTS, words)
    model = MixedInputs(network(kind).train())
    report = export_onnx(
        model, tmp_path / "m.onnx", source=source, groups=GROUPS, tokenizer=words, membership=CELLS, batch_size=16
    )
    assert model.training
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert report.max_abs_logit_diff < 1e-4
    assert report.argmax_flips == 0
    expected = evaluate(model, source, GROUPS, membership=CELLS)
    assert [(g.name, g.correct) for g in report.evaluation.groups] == [(g.name, g.correct) for g in expected.groups]
    assert [(c.name, c.correct) for c in report.evaluation.cells] == [(c.name, c.correct) for c in expected.cells]

    predictor = Predictor(tmp_path / "m.onnx")
    assert predictor.classes == ["kind", "rude"]
    assert len(predictor.report["cells"]) == 3
    logits = predict(model, source).numpy()
    np.testing.assert_allclose(predictor.predict(TEXTS), logits, atol=1e-4)  # longer texts are cut, as in training
    np.testing.assert_allclose(predictor.predict(np.array(TEXTS, dtype=object)[:3]), logits[:3], atol=1e-4)
    np.testing.assert_allclose(predictor.predict_proba(TEXTS).sum(axis=1), 1, rtol=1e-6)
    assert predictor.predict([]).shape == (0, 2)
    tokens = source.gather(torch.arange(5))
    arrays = {"input_ids": tokens.ids.numpy(), "attention_mask": tokens.mask.numpy()}
    np.testing.assert_allclose(predictor.predict(arrays), logits[:5], atol=1e-4)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS[5])["input_ids"] == words(TEXTS[5])["input_ids"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    source = TokenSource.from_texts(TEXTS, tokenizer())
    export_onnx(network(), folder / "m.onnx", source=source, groups=GROUPS, tokenizer=tokenizer())
    return folder / "m.onnx"


def test_the_predictor_needs_neither_torch_nor_transformers(exported: Path) -> None:
    script = (
        "import sys; from spurmix import Predictor; "
        f"print(Predictor({str(exported)!r}).predict(['w1 w2', 'W3']).shape); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 2)\n"


def test_bad_input_to_the_predictor(exported: Path) -> None:
    predictor = Predictor(exported)
    assert predictor.predict([""]).shape == (1, 2)
    np.testing.assert_array_equal(predictor.predict(["w1 " * 500]), predictor.predict(["w1 " * 10]))
    for bad, error, text in (
        ("w1", TypeError, "sequence of strings"),
        (["w1", 3], TypeError, r"texts\[1\] must be a string, got int"),
        (["w1", None], TypeError, r"texts\[1\] must be a string"),
        ({"input_ids": np.ones((1, 2))}, ValueError, "input_ids and attention_mask"),
        (
            dict(input_ids=np.ones((1, 2)), attention_mask=np.ones((1, 2), int)),
            TypeError,
            "input_ids must hold integers",
        ),
        (
            dict(input_ids=np.ones((1, 2), int), attention_mask=np.ones((1, 3), int)),
            ValueError,
            "attention_mask must have shape",
        ),
        (dict(input_ids=np.full((1, 2), 34), attention_mask=np.ones((1, 2), int)), IndexError, r"\[0, 34\)"),
        (dict(input_ids=np.ones((1, 13), int), attention_mask=np.ones((1, 13), int)), ValueError, "at most 12"),
    ):
        with pytest.raises(error, match=text):
            predictor.predict(bad)


def test_a_tokenizer_that_is_not_the_models_is_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(exported.read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer.json is missing"):
        Predictor(tmp_path / "m.onnx")
    file = tmp_path / "tokenizer.json"
    file.write_text(exported.with_name("tokenizer.json").read_text().replace("w7", "v7"))
    with pytest.raises(ValueError, match="tokenizer of another model"):
        Predictor(tmp_path / "m.onnx")
    file.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        Predictor(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("words", "vocabulary", "error", "text"),
    [
        (None, 40, ValueError, "travels with its tokenizer"),
        (tokenizer(words=WORDS[::-1]), 40, ValueError, "the ids were made by another one"),
        (tokenizer(), 20, ValueError, "the model's table has 20 rows"),
        (lambda texts: texts, 40, TypeError, "must be a fast tokenizer"),
    ],
)
def test_bad_tokenizers(words: Any, vocabulary: int, error: type[Exception], text: str, tmp_path: Path) -> None:
    source = TokenSource.from_texts(TEXTS, tokenizer())
    with pytest.raises(error, match=text):
        export_onnx(network(vocabulary=vocabulary), tmp_path / "m.onnx", source=source, groups=GROUPS, tokenizer=words)
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_and_vocabulary_of_ids_of_unknown_origin(tmp_path: Path) -> None:
    rows = [[1, 5, 2]] * 40
    for options, words, text in (
        (dict(pad_id=1), tokenizer(), "pads with 1, the model with 0"),
        (dict(sep_id=1), tokenizer(), "closing token is 2, that of the ids 1"),
        ({}, tokenizer(pad_first=False), "padding token is 1, that of the ids 0"),
        (dict(vocab_size=36), tokenizer(), "it has 34 tokens, the ids go up to 35"),
        ({}, tokenizer(words=[f"x{k}" for k in range(50)]), "it has 54 tokens"),
    ):
        source = TokenSource.from_lists(rows, **dict(vocab_size=30, sep_id=2) | options)
        with pytest.raises(ValueError, match=text):
            export_onnx(network(), tmp_path / "m.onnx", source=source, groups=GROUPS, tokenizer=words)
    with pytest.raises(ValueError, match="tokenizer is for texts"):
        export_onnx(
            nn.Linear(2, 2),
            tmp_path / "m.onnx",
            source=np.zeros((40, 2), np.float32),
            groups=GROUPS,
            tokenizer=tokenizer(),
        )
    assert list(tmp_path.iterdir()) == []


class Drifting(nn.Module):
    """A stand-in for an exporter that goes wrong: other logits in the exported graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None) -> Any:
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits + (0.5 if torch.compiler.is_exporting() else 0.0)


def test_a_file_that_disagrees_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TokenSource.from_texts(TEXTS, tokenizer())
    with pytest.raises(ExportError, match="logits differ by"):
        export_onnx(Drifting(), tmp_path / "m.onnx", source=source, groups=GROUPS, tokenizer=tokenizer())
    assert list(tmp_path.iterdir()) == []
    encode = export_text.tokenise.encode

    def other(*arguments: Any, **options: Any) -> Any:
        ids, offsets = encode(*arguments, **options)
        return ids + 1, offsets

    monkeypatch.setattr(export_text.tokenise, "encode", other)
    with pytest.raises(ExportError, match="the stored file reads"):
        export_onnx(network(), tmp_path / "m.onnx", source=source, groups=GROUPS, tokenizer=tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_another_models_tokenizer_is_not_overwritten(exported: Path, tmp_path: Path) -> None:
    for file in exported.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = (tmp_path / "tokenizer.json").read_text()
    words = tokenizer(words=WORDS[::-1])
    source = TokenSource.from_texts(TEXTS, words)
    with pytest.raises(ValueError, match=r"another tokenizer, which m.onnx may need"):
        export_onnx(network(), tmp_path / "n.onnx", source=source, groups=GROUPS, tokenizer=words)
    assert (tmp_path / "tokenizer.json").read_text() == before
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == LONGEST
    Predictor(tmp_path / "m.onnx")


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_cut_on_the_side_the_tokenizer_cuts(side: str, tmp_path: Path) -> None:
    words = tokenizer()
    words.truncation_side = side
    long = [" ".join(WORDS[k : k + 20]) for k in range(4)]
    source = TokenSource.from_texts([*long, *TEXTS[4:]], words)
    model = MixedInputs(network())
    export_onnx(model, tmp_path / "m.onnx", source=source, groups=GROUPS, tokenizer=words)
    expected = predict(model, source).numpy()[:4]
    np.testing.assert_allclose(Predictor(tmp_path / "m.onnx").predict(long), expected, atol=1e-4)


def test_tokenizers_that_lie_there_are_kept_or_refused(tmp_path: Path) -> None:
    words, other = tokenizer(), tokenizer(words=WORDS[::-1])
    words.save_pretrained(tmp_path / "same")
    other.save_pretrained(tmp_path / "other")
    before = {p.name: p.read_bytes() for p in (tmp_path / "same").iterdir()}
    options: Any = dict(source=TokenSource.from_texts(TEXTS, words), groups=GROUPS, tokenizer=words)
    export_onnx(MixedInputs(network()), tmp_path / "same" / "m.onnx", **options)
    assert {p.name: p.read_bytes() for p in (tmp_path / "same").iterdir() if p.name != "m.onnx"} == before
    assert Predictor(tmp_path / "same" / "m.onnx").predict(["w1 w2"]).shape == (1, 2)
    with pytest.raises(ValueError, match="is another tokenizer; take a folder of its own"):
        export_onnx(MixedInputs(network()), tmp_path / "other" / "m.onnx", **options)
    assert not (tmp_path / "other" / "m.onnx").exists()
