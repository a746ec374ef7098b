"""Padding on both sides, and trials of models on padded texts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from token_samples import PAD, TEXTS, check_rows, loader, source, truncated
from torch import Tensor, nn

from spurmix import MixedInputs, TokenPairs, TokenSource, evaluate
from spurmix.data.batch import Tokens
from spurmix.data.dataset import tokenize
from spurmix.data.sources import padding
from spurmix.data.sources import tokens as tokens_module
from spurmix.train.evaluate import predict
from spurmix.train.models import logits_of

SMALL: dict[str, Any] = dict(vocab_size=50, num_labels=3, initializer_range=0.5)
BERT: dict[str, Any] = dict(
    **SMALL,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=40,
)


def xlnet() -> nn.Module:
    torch.manual_seed(1)
    config = transformers.XLNetConfig(**SMALL, d_model=16, n_layer=1, n_head=2, d_inner=16, pad_token_id=PAD)
    return transformers.XLNetForSequenceClassification(config).eval()


def bert() -> nn.Module:
    torch.manual_seed(1)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)).eval()


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**BERT, num_key_value_heads=2, pad_token_id=PAD)
    return transformers.LlamaForSequenceClassification(config).eval()


def alone(model: nn.Module, texts: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([logits_of(model(input_ids=torch.tensor([text]))) for text in texts])


@pytest.mark.parametrize("limit", [None, 7])
def test_gather_pads_on_the_left(packer: str, limit: int | None) -> None:
    texts = source(max_length=limit, padding_side="left")
    tokens = texts.gather(torch.tensor([5, 0, 89]))
    assert tokens.padding_side == "left"
    rows = [truncated(TEXTS[i], limit)[::-1] for i in (5, 0, 89)]
    check_rows(tokens.ids.flip(1), tokens.mask.flip(1), rows)
    assert texts.gather(torch.tensor([], dtype=torch.int64)).ids.shape == (0, 0)


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"copy": True}, {"bucket": 5}])
def test_batches_of_the_loader_are_padded_on_the_left(options: dict[str, Any]) -> None:
    for left, right in zip(loader(source(padding_side="left"), **options), loader(source(), **options), strict=True):
        pairs, other = left.input, right.input
        assert isinstance(pairs, TokenPairs)
        assert isinstance(other, TokenPairs)
        assert (pairs.padding_side, other.padding_side) == ("left", "right")
        assert left.to("cpu").clone().input.padding_side == "left"  # type: ignore[union-attr]
        for ids, mask, ids_right, mask_right in (
            (pairs.ids, pairs.mask, other.ids, other.mask),
            (pairs.partner_ids, pairs.partner_mask, other.partner_ids, other.partner_mask),
        ):
            assert mask[:, -1].all()
            assert torch.equal(ids[mask], ids_right[mask_right])


def test_side_is_that_of_the_tokenizer() -> None:
    class Words:
        padding_side = "left"
        get_vocab = __call__ = staticmethod(lambda: {"a": 0})

    words: Any = Words()
    assert tokenize.padding_side(words) == "left"
    assert TokenSource.from_lists([[1, 2]], tokenizer="0123456789abcdef").padding_side == "right"
    with pytest.raises(ValueError, match="padding_side must be one of right, left, got 'both'"):
        source(padding_side="both")


def test_side_changes_the_fingerprint_only_on_the_left() -> None:
    assert (
        source().fingerprint()
        == source(padding_side="right").fingerprint()
        != source(padding_side="left").fingerprint()
    )


def test_xlnet_is_padded_on_the_left_or_refused() -> None:
    model = xlnet()
    texts = [[4, 15, 6, 3], [4, 17, 9, 22, 35, 8, 41, 11, 3]]
    expected = alone(model, texts)
    left = TokenSource.from_lists(texts, vocab_size=50, padding_side="left")
    assert (predict(model, left) - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"padded on the right other outputs than the texts alone .*padding_side"):
        predict(model, TokenSource.from_lists(texts, vocab_size=50))


def test_mixed_inputs_accept_the_side_of_the_model() -> None:
    for model, good, bad in ((xlnet(), "left", "right"), (bert(), "right", "left")):
        mixed = MixedInputs(model)
        pairs = next(iter(loader(source(padding_side=good), copy=True))).input
        assert isinstance(pairs, TokenPairs)
        weights = torch.ones(len(pairs))
        weights[0] = 0.5  # otherwise the model gets the unmixed texts
        logits = logits_of(mixed(dataclasses.replace(pairs, lam=weights)))
        texts = [ids[mask].tolist() for ids, mask in zip(pairs.ids, pairs.mask, strict=True)]
        assert (logits[1:] - alone(model, texts[1:])).abs().max() < 1e-5
        wrong = next(iter(loader(source(padding_side=bad), copy=True))).input
        with pytest.raises(ValueError, match=f"padded on the {bad}"):
            mixed(wrong)
        assert isinstance(wrong, TokenPairs)
        with pytest.raises(ValueError, match=f"padded on the {bad}"):
            mixed(Tokens(wrong.ids, wrong.mask, bad))


def test_models_that_find_the_last_token_by_ids_are_refused_for_mixing_only() -> None:
    with pytest.raises(TypeError, match="LlamaForSequenceClassification finds the last token by ids"):
        MixedInputs(llama())
    assert padding.padding_problem(llama(), "right", PAD) is None


def test_models_that_read_padding_are_refused_on_both_sides() -> None:
    model = transformers.FNetForSequenceClassification(
        transformers.FNetConfig(**{**BERT, "pad_token_id": PAD}, type_vocab_size=2)
    )
    with pytest.raises(TypeError, match=r"FNetForSequenceClassification .*depends on padding"):
        MixedInputs(model)


def test_trial_changes_nothing_and_runs_once() -> None:
    model = bert().train()
    model.bert.eval()
    calls: list[object] = []
    model.register_forward_hook(lambda *_: calls.append(0))
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert padding.padding_problem(model, "right", PAD) is None
    MixedInputs(model)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not calls
    assert all(parameter.grad is None for parameter in model.parameters())
    model.forward = None  # type: ignore[assignment]  # a second trial would fail
    assert padding.padding_problem(model, "right", PAD) is None


def test_models_that_cannot_run_on_ids_are_not_tried() -> None:
    assert padding.padding_problem(nn.Linear(2, 2), "right", 0) is None
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig(**BERT))
    assert padding.padding_problem(model, "right", 0) is None


def test_evaluation_checks_the_side() -> None:
    from token_samples import GROUPS

    with pytest.raises(ValueError, match="padding_side: BertForSequenceClassification"):
        evaluate(bert(), source(padding_side="left"), GROUPS)
    assert tokens_module.padding is padding


SIZES: dict[str, Any] = BERT | dict(
    num_layers=1, num_key_value_heads=2, d_model=16, n_embd=16, n_layer=1, n_head=2, dim=16, n_layers=1, n_heads=2,
    hidden_dim=16, d_inner=16, emb_dim=16, dff=16, d_ff=16, d_kv=8, head_dim=8, num_heads=2, encoder_layers=1,
    decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    embedding_size=16, n_positions=40, word_embed_proj_dim=16, ffn_dim=16,
)  # fmt: skip
HEADS = transformers.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
LONG = [[7, 8, 9, 10], [21, 22, 23, 24, 25, 26, 27, 28, 29], [31, 33, 35, 37, 39, 41]]
"""Other texts than those of the trial."""


def tiny(kind: str) -> nn.Module | None:
    """A tiny model of a sequence-classification head, or None if these sizes do not fit its configuration."""
    try:
        config_type = type(transformers.AutoConfig.for_model(kind))
        known = set(getattr(config_type, "__dataclass_fields__", ())) | set(config_type.__init__.__code__.co_varnames)
        config = config_type(**{name: value for name, value in SIZES.items() if name in known})
        config.pad_token_id = 0
        for name in ("eos_token_id", "bos_token_id"):
            if isinstance(getattr(config, name, None), int) and getattr(config, name) >= 50:
                setattr(config, name, 2)
        head = getattr(transformers, HEADS[kind])
        with torch.device("meta"):
            if sum(p.numel() for p in head(config).parameters()) > 1e6:
                return None
        torch.manual_seed(0)
        return head(config).eval()
    except Exception:  # configurations differ in the sizes that they accept
        return None


@pytest.mark.slow
def test_all_sequence_classification_heads_of_transformers() -> None:
    """If a model passes the trial, it gives other padded texts the same logits as the texts alone."""
    checked = accepted = 0
    for kind in sorted(HEADS):
        model = tiny(kind)
        if model is None or padding._trial_texts(model, 0) is None:
            continue
        end = getattr(model.config, "eos_token_id", None)
        rows = [[*row, *([end] if isinstance(end, int) else [])] for row in LONG]
        try:
            expected = alone(model, rows)
        except Exception:  # heads that need further inputs, or other sizes
            continue
        checked += 1
        scale = expected.abs().max()
        for side in padding.SIDES:
            texts = TokenSource.from_lists(rows, vocab_size=50, padding_side=side)
            if padding.padding_problem(model, side, 0) is not None:
                continue
            actual = predict(model, texts)
            assert (actual - expected).abs().max() <= 5e-3 * scale, (kind, side)
            accepted += 1
            try:
                mixed = MixedInputs(model)
                tokens = texts.gather(torch.arange(3))
                mixed._check(tokens)
            except (TypeError, ValueError):
                continue
            lam = torch.ones(3)
            pairs = TokenPairs(tokens.ids, tokens.ids.roll(1, 0), tokens.mask, tokens.mask.roll(1, 0), lam, side)
            with torch.no_grad():
                logits = logits_of(mixed._embeddings(pairs, {}))
            assert (logits - expected).abs().max() <= 5e-3 * scale, (kind, side)
    assert checked >= 70
    assert accepted >= 70
