"""MixedInputs: text models on mixed pairs of texts."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from small_text_models import KINDS, LONGEST, VOCABULARY, build, pairs, plain
from torch import Tensor, nn

from spurmix import MixedInputs, TokenPairs, Tokens, models
from spurmix.train.models import head_layer, head_of, logits_of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix_at", ["embeddings", "features"])
def test_lam_of_one_and_zero_give_the_unmixed_logits(kind: str, mix_at: Any) -> None:
    model = build(kind).eval()
    mixed = MixedInputs(model, mix_at)
    for lam, own in ((1.0, True), (0.0, False)):
        batch = pairs(kind, lam)
        ids, mask = (batch.ids, batch.mask) if own else (batch.partner_ids, batch.partner_mask)
        expected = plain(model, ids, mask)
        # With one sample of another weight, the batch is mixed.
        batch.lam[4] = 0.5
        actual = logits_of(mixed(batch))
        assert (actual[:4] - expected[:4]).abs().max() <= 1e-6
        assert (actual[4] - expected[4]).abs().max() > 1e-6
        whole = pairs(kind, lam)
        assert (logits_of(mixed(whole)) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_embeddings_against_one_pair_by_hand(kind: str) -> None:
    model = build(kind).eval()
    batch = pairs(kind)
    actual = logits_of(MixedInputs(model)(batch))
    table = model.get_input_embeddings().weight
    for n in range(len(batch)):
        size = int(batch.union_mask[n].sum())
        own, other = (
            F.embedding(ids[n, :size], table) * mask[n, :size, None]
            for ids, mask in ((batch.ids, batch.mask), (batch.partner_ids, batch.partner_mask))
        )
        embeds = batch.lam[n] * own + (1 - batch.lam[n]) * other
        expected = logits_of(model(inputs_embeds=embeds[None], attention_mask=torch.ones(1, size, dtype=torch.int64)))
        torch.testing.assert_close(actual[n : n + 1], expected, atol=1e-6, rtol=0)


def test_mixed_features_are_the_mixture_of_logits_where_the_head_is_linear() -> None:
    model = build("bert").eval()
    batch = pairs("bert")
    own, other = plain(model, batch.ids, batch.mask), plain(model, batch.partner_ids, batch.partner_mask)
    lam = batch.lam[:, None]
    torch.testing.assert_close(
        logits_of(MixedInputs(model, "features")(batch)), lam * own + (1 - lam) * other, atol=1e-6, rtol=0
    )
    assert not head_layer(model)._forward_pre_hooks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix_at", ["embeddings", "features"])
def test_gradients_of_the_table(kind: str, mix_at: Any) -> None:
    """Compare with a table whose rows are looked up by plain PyTorch."""
    model = build(kind).eval()
    batch = pairs(kind)
    logits_of(MixedInputs(model, mix_at)(batch)).square().sum().backward()
    actual = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    reference = copy.deepcopy(model)
    if mix_at == "features":
        ids, mask = torch.cat([batch.ids, batch.partner_ids]), torch.cat([batch.mask, batch.partner_mask])
        layer = head_layer(reference)
        taken: list[Tensor] = []
        layer.register_forward_pre_hook(lambda _, x: taken.append(x[0]))
        reference(input_ids=ids, attention_mask=mask.long())
        lam = batch.lam[:, None]
        F.linear(lam * taken[0][:5] + (1 - lam) * taken[0][5:], layer.weight, layer.bias).square().sum().backward()
    else:
        table, lam = reference.get_input_embeddings(), batch.lam[:, None, None]
        embeds = (
            lam * table(batch.ids) * batch.mask[:, :, None]
            + (1 - lam) * table(batch.partner_ids) * batch.partner_mask[:, :, None]
        )
        logits_of(reference(inputs_embeds=embeds, attention_mask=batch.union_mask.long())).square().sum().backward()
    torch.testing.assert_close(actual, reference.get_input_embeddings().weight.grad, atol=1e-6, rtol=1e-4)


def test_other_inputs_than_pairs_are_passed_unchanged() -> None:
    model = build("bert").eval()
    mixed = MixedInputs(model)
    batch = pairs("bert")
    expected = logits_of(model(input_ids=batch.ids, attention_mask=batch.mask.long()))
    tokens = Tokens(batch.ids, batch.mask)
    arguments = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
    for actual in (mixed(tokens), mixed(arguments), mixed(**arguments), mixed(batch.ids, batch.mask.long())):
        assert torch.equal(logits_of(actual), expected)
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert mixed(tokens, labels=labels).loss.isfinite()


def test_parameters_and_attributes_are_those_of_the_inner_model(tmp_path: Path) -> None:
    model = build("bert")
    mixed = MixedInputs(model)
    assert list(mixed.state_dict()) == list(model.state_dict())
    assert [n for n, _ in mixed.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert mixed.config is model.config
    assert head_of(mixed) is model.classifier
    other = MixedInputs(build("bert"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    inside = nn.ModuleDict({"text": mixed})
    assert list(inside.state_dict()) == [f"text.{n}" for n in model.state_dict()]
    inside.load_state_dict(inside.state_dict())
    mixed.save_pretrained(tmp_path)
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    twin = copy.deepcopy(mixed)
    assert twin.model is not model
    assert list(twin.state_dict()) == list(model.state_dict())


class Scaled(nn.Embedding):
    embed_scale = 3.0

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


def test_scaled_embeddings_are_scaled() -> None:
    model = build("bert").eval()
    table = Scaled(VOCABULARY, 16, padding_idx=0)
    table.weight = model.get_input_embeddings().weight
    model.set_input_embeddings(table)
    batch = pairs("bert", 1.0)
    expected = plain(model, batch.ids, batch.mask)
    batch.lam[4] = 0.5
    torch.testing.assert_close(logits_of(MixedInputs(model)(batch))[:4], expected[:4], atol=1e-6, rtol=0)


def test_models_that_cannot_be_mixed_are_rejected() -> None:
    class Odd(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + 1

    model = build("bert")
    model.set_input_embeddings(Odd(VOCABULARY, 16))
    with pytest.raises(TypeError, match="Odd is not a plain lookup"):
        MixedInputs(model)
    model.set_input_embeddings(nn.Embedding(VOCABULARY, 16, max_norm=1.0))
    with pytest.raises(TypeError, match="max_norm"):
        MixedInputs(model)
    with pytest.raises(TypeError, match="must be a Hugging Face text model, got Linear"):
        MixedInputs(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="mix_at must be"):
        MixedInputs(build("bert"), "hidden")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="already"):
        MixedInputs(MixedInputs(build("bert")))
    with pytest.raises(ValueError, match="BertModel has none"):
        MixedInputs(build("mean").encoder, "features")
    decoder = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=LONGEST, bos_token_id=1, eos_token_id=1
    )
    with pytest.raises(TypeError, match="GPT2ForSequenceClassification finds the last token by ids"):
        MixedInputs(transformers.GPT2ForSequenceClassification(decoder))
    ctrl = transformers.CTRLConfig(vocab_size=90, n_positions=20, n_embd=8, dff=16, n_layer=1, n_head=2)
    with pytest.raises(TypeError, match="CTRLForSequenceClassification finds the last token by ids"):
        MixedInputs(transformers.CTRLForSequenceClassification(ctrl))


def test_compiled_model_is_compiled_once() -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph

    model = build("bert").eval()
    expected = [logits_of(MixedInputs(model)(pairs("bert", seed=k))) for k in range(3)]
    mixed = MixedInputs(torch.compile(model, backend=backend))  # type: ignore[arg-type]
    counts = []
    for k in range(3):
        torch.testing.assert_close(logits_of(mixed(pairs("bert", seed=k))), expected[k], atol=1e-6, rtol=0)
        counts.append(len(graphs))
    assert 0 < counts[0] == counts[2]


def test_encoder_without_a_head() -> None:
    encoder = build("mean").encoder.eval()
    assert MixedInputs(encoder)(pairs("bert"))[0].shape == (5, 9, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_tokens(kind: str) -> None:
    mixed = MixedInputs(build(kind))
    ids = torch.full((1, LONGEST + 1), 5)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"accepts at most {LONGEST} tokens, got .*; truncate"):
        mixed(Tokens(ids, mask))
    with pytest.raises(ValueError, match=f"accepts at most {LONGEST} tokens, got .*; truncate"):
        mixed(TokenPairs(ids, ids, mask, mask, torch.tensor([0.5])))
    mixed(Tokens(ids[:, :LONGEST], mask[:, :LONGEST]))
    batch = pairs(kind)
    for bad in (VOCABULARY, -1):
        batch.ids[1, 1] = bad
        with pytest.raises(IndexError, match="vocabulary"):
            mixed(Tokens(batch.ids, batch.mask))
        with pytest.raises(IndexError, match="ids"):
            mixed(batch)


def test_text_classifier_from_a_folder(tmp_path: Path) -> None:
    encoder = build("mean").encoder
    encoder.save_pretrained(tmp_path / "encoder")
    model = models.text_classifier(4, pretrained=tmp_path / "encoder").eval()
    batch = pairs("bert")
    assert model(batch.ids, batch.mask.long()).shape == (5, 4)
    hidden = encoder.eval()(input_ids=batch.ids[:1], attention_mask=batch.mask[:1].long())[0]
    expected = model.classifier(hidden[0][batch.mask[0]].mean(0))
    torch.testing.assert_close(model(batch.ids[:1], batch.mask[:1].long())[0], expected)
    with pytest.raises(ValueError, match="local folder"):
        models.text_classifier(2, pretrained=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="local folder"):
        models.bert(2, pretrained=tmp_path)


@pytest.mark.parametrize("mix_at", ["embeddings", "features"])
@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("partner_ids", lambda t: t[:-1], "partner_ids must have shape"),
        ("mask", lambda t: t[:, :-1], "mask must have shape"),
        ("partner_mask", lambda t: t[:1], "partner_mask must have shape"),
        ("mask", lambda t: t.long(), "mask must have dtype bool"),
        ("lam", lambda t: t[:1], "lam must have shape"),
        ("lam", lambda t: t * 0 + 3, r"lam must be in \[0, 1\]"),
        ("lam", lambda t: t.double(), "lam must have dtype float32"),
    ],
)
def test_tensors_of_a_pair_must_fit_together(mix_at: Any, name: str, bad: Any, message: str) -> None:
    model = MixedInputs(build("bert"), mix_at=mix_at)
    for lam in (None, 1.0):
        whole = pairs("bert", lam)
        with pytest.raises((TypeError, ValueError), match=message):
            model(dataclasses.replace(whole, **{name: bad(getattr(whole, name))}))


def test_deprecated_name_of_mix_at() -> None:
    with pytest.warns(DeprecationWarning, match="MixedInputs: where is deprecated, use mix_at"):
        mixed = MixedInputs(build("bert"), where="features")  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="MixedInputs: where is deprecated, use mix_at"):
        assert mixed.where == mixed.mix_at == "features"


def test_embedding_block_is_replaced_only_during_the_forward_pass() -> None:
    model = build("bert")
    modules, calls = list(model.named_modules()), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.bert.embeddings.LayerNorm.register_forward_hook(count)
    mixed = MixedInputs(model)
    mixed(pairs("bert"))
    assert calls == 0  # computed by mix_bert_embeddings
    assert list(model.named_modules()) == modules

    def fail(*_: object) -> None:
        raise RuntimeError

    hook = model.classifier.register_forward_hook(fail)
    with pytest.raises(RuntimeError):
        mixed(pairs("bert"))
    hook.remove()
    assert list(model.named_modules()) == modules
    mixed(pairs("bert", 1.0))
    assert calls == 1
