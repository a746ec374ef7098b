"""Text models on mixed batches: MixedInputs, fine-tuning, frozen features, recipes."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from spurmix import (
    GroupIndex,
    MixedInputs,
    MixLoader,
    TokenPairs,
    Tokens,
    TokenSource,
    evaluate,
    extract_features,
    finetune,
    models,
    policies,
    retrain_head,
)
from spurmix.train.evaluate import predict
from spurmix.train.models import TextClassifier, head_layer, head_of, logits_of, parameter_groups

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
    """Logits of each text by itself, without any padding."""
    return torch.cat(
        [
            logits_of(model(input_ids=row[m][None], attention_mask=m[m][None].long()))
            for row, m in zip(ids, mask, strict=True)
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix_at", ["embeddings", "features"])
def test_lam_of_one_and_zero_give_the_unmixed_logits(kind: str, mix_at: Any) -> None:
    model = build(kind).eval()
    mixed = MixedInputs(model, mix_at)
    for lam, own in ((1.0, True), (0.0, False)):
        batch = pairs(kind, lam)
        ids, mask = (batch.ids, batch.mask) if own else (batch.partner_ids, batch.partner_mask)
        expected = plain(model, ids, mask)
        # One sample of another weight keeps the whole batch on the mixing path.
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
    """Against a table of which every row is looked up by plain PyTorch."""
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


def test_whatever_is_no_pair_goes_to_the_model_as_it_came() -> None:
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


def test_it_is_the_inner_model_to_whoever_looks(tmp_path: Path) -> None:
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


def test_models_that_cannot_be_mixed_are_refused() -> None:
    class Odd(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + 1

    model = build("bert")
    model.set_input_embeddings(Odd(VOCABULARY, 16))
    with pytest.raises(TypeError, match="Odd computes more than a lookup"):
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
    with pytest.raises(ValueError, match="BertModel has no head"):
        MixedInputs(build("mean").encoder, "features")
    decoder = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=LONGEST, bos_token_id=1, eos_token_id=1
    )
    with pytest.raises(TypeError, match="GPT2ForSequenceClassification classifies by the last token"):
        MixedInputs(transformers.GPT2ForSequenceClassification(decoder))
    ctrl = transformers.CTRLConfig(vocab_size=90, n_positions=20, n_embd=8, dff=16, n_layer=1, n_head=2)
    with pytest.raises(TypeError, match="CTRLForSequenceClassification classifies by the last token"):
        MixedInputs(transformers.CTRLForSequenceClassification(ctrl))


def test_a_compiled_model_is_compiled_once() -> None:
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


def test_an_encoder_without_a_head_takes_pairs() -> None:
    encoder = build("mean").encoder.eval()
    assert MixedInputs(encoder)(pairs("bert"))[0].shape == (5, 9, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_tokens(kind: str) -> None:
    mixed = MixedInputs(build(kind))
    ids = torch.full((1, LONGEST + 1), 5)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"takes at most {LONGEST}; truncate"):
        mixed(Tokens(ids, mask))
    with pytest.raises(ValueError, match=f"takes at most {LONGEST}; truncate"):
        mixed(TokenPairs(ids, ids, mask, mask, torch.tensor([0.5])))
    mixed(Tokens(ids[:, :LONGEST], mask[:, :LONGEST]))
    batch = pairs(kind)
    for bad in (VOCABULARY, -1):
        batch.ids[1, 1] = bad
        with pytest.raises(IndexError, match="vocabulary"):
            mixed(Tokens(batch.ids, batch.mask))
        with pytest.raises(IndexError, match="ids"):
            mixed(batch)


# Class: the text holds one of the low tokens; attribute: it begins with token 59. Tokens 0 to 2 are special.
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


def test_fine_tuning_learns_and_evaluates() -> None:
    model = MixedInputs(two_classes())
    result = finetune(model, text_loader(steps=120), learning_rate=5e-3, schedule="linear", warmup=0.1, clip=1.0)
    assert result.losses[-1] < 0.9 * result.losses[0]
    evaluation = evaluate(model, source(), GROUPS)
    assert evaluation.average > 0.9
    assert sum(g.count for g in evaluation.groups) == 160
    inner = evaluate(model.model, source(), GROUPS, batch_size=7)
    assert inner.to_dict() == evaluation.to_dict()
    alone = plain(model.model.eval(), *vars_of(source().gather(torch.arange(160))))
    torch.testing.assert_close(predict(model, source(), batch_size=9), alone, atol=1e-5, rtol=0)


def vars_of(tokens: Tokens) -> tuple[Tensor, Tensor]:
    return tokens.ids, tokens.mask


def test_a_model_that_is_not_wrapped_says_what_to_do() -> None:
    with pytest.raises(
        TypeError, match=r"BertForSequenceClassification does not take mixed texts; wrap it: MixedInputs"
    ):
        finetune(two_classes(), text_loader())


def test_unmixed_training_is_plain_training() -> None:
    """Of a policy without partners, the wrapper's steps are those of the model on ids."""
    wrapped, bare = MixedInputs(two_classes().eval()), two_classes().eval()
    erm = MixLoader(source(), GROUPS, policies.erm(), 16, steps=3, copy=True)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    for batch in erm:
        logits = bare(input_ids=batch.input.ids, attention_mask=batch.input.mask.long()).logits
        optimizer.zero_grad()
        F.cross_entropy(logits, batch.label).backward()
        optimizer.step()
    options: Any = dict(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.1, schedule="constant")
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    finetune(wrapped, MixLoader(source(), GROUPS, policies.erm(), 16, steps=3), **options)
    for (name, a), b in zip(wrapped.named_parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_norms_and_biases_do_not_decay() -> None:
    model = MixedInputs(two_classes())
    decaying, free = parameter_groups(model, 0.01)
    names = {id(p): n for n, p in model.named_parameters()}
    assert free["weight_decay"] == 0.0
    assert all(names[id(p)].endswith(".bias") or "LayerNorm" in names[id(p)] for p in free["params"])
    assert not any(names[id(p)].endswith(".bias") or "LayerNorm" in names[id(p)] for p in decaying["params"])
    assert len(decaying["params"]) + len(free["params"]) == len(names)


@pytest.mark.parametrize("kind", ["bert", "mean"])
def test_frozen_backbone_trains_the_head_only(kind: str) -> None:
    model = MixedInputs(two_classes(kind))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    finetune(model, text_loader(), freeze="backbone")
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    options: Any = dict(save_every=3, max_checkpoints=9, clip=1.0)
    whole = MixedInputs(two_classes())
    torch.manual_seed(11)
    finetune(whole, text_loader(), output=tmp_path, **options)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    saved = json.loads((newest / "state.json").read_text())
    assert "bert.embeddings.word_embeddings.weight" in json.dumps(saved)  # the inner model's names
    shutil.rmtree(newest)
    resumed = MixedInputs(two_classes())
    torch.manual_seed(99)
    finetune(resumed, text_loader(), output=tmp_path, resume=True, **options)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_bf16_trains_and_leaves_a_float32_model() -> None:
    model = MixedInputs(two_classes())
    seen: list[torch.dtype] = []
    hook = model.classifier.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    assert np.isfinite(finetune(model, text_loader(steps=2), mixed_precision="bf16").loss)
    assert set(seen) == {torch.bfloat16}
    hook.remove()
    twin = two_classes()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(predict(model, source()), predict(twin, source()))
    assert model.model.get_input_embeddings().weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_the_last_layer_takes(kind: str) -> None:
    model = build(kind)
    texts = source(pad_id=PADDING.get(kind, 0))
    features = extract_features(model, texts, batch_size=33)
    assert model.training
    assert features.shape == (160, 16)
    assert not head_layer(model)._forward_pre_hooks
    layer = head_layer(model)
    torch.testing.assert_close(F.linear(features, layer.weight, layer.bias), predict(model, texts), atol=1e-5, rtol=0)


def test_features_of_images() -> None:
    images = RNG.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    model = models.small_resnet(2, width=4)
    assert extract_features(model, images).shape == (10, 16)


def test_the_head_is_retrained_on_mixed_features() -> None:
    model = two_classes("mean")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    features = extract_features(model, source())
    options: Any = dict(epochs=40, learning_rate=3e-2, batch_size=32)
    result = retrain_head(model, source(), GROUPS, policies.balance_attributes(), features=features, **options)
    assert np.mean(result.losses[-40:]) < np.mean(result.losses[:40])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"classifier.weight", "classifier.bias"}
    twin = two_classes("mean")
    retrain_head(MixedInputs(twin), source(), GROUPS, policies.balance_attributes(), **options)
    assert torch.equal(twin.classifier.weight, model.classifier.weight)
    with pytest.raises(ValueError, match=r"features must have shape \[N, 16\]"):
        retrain_head(model, source(), GROUPS, policies.erm(), features=features[:, :3])


def test_a_head_without_one_feature_an_example_is_refused() -> None:
    with pytest.raises(ValueError, match="no head"):
        extract_features(nn.Identity(), np.zeros((4, 2), dtype=np.float32))

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(x[:, None].expand(-1, 3, -1))[:, 0]

    with pytest.raises(ValueError, match=r"one feature an example, it took \[4, 3, 2\]"):
        extract_features(Tagger(), np.zeros((4, 2), dtype=np.float32))


def test_a_text_classifier_from_a_folder(tmp_path: Path) -> None:
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
        ("lam", lambda t: t * 0 + 3, r"lam must lie in \[0, 1\]"),
        ("lam", lambda t: t.double(), "lam must have dtype float32"),
    ],
)
def test_pairs_that_do_not_belong_together(mix_at: Any, name: str, bad: Any, message: str) -> None:
    model = MixedInputs(build("bert"), mix_at=mix_at)
    for lam in (None, 1.0):
        whole = pairs("bert", lam)
        with pytest.raises((TypeError, ValueError), match=message):
            model(dataclasses.replace(whole, **{name: bad(getattr(whole, name))}))
