"""TokenSource: packing against plain Python, checks of ids, offsets, tokenizers and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from token_samples import SEP, TEXTS, VOCAB, N, check_rows, loader, source, truncated
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from spurmix import TokenSource
from spurmix.data.sources import tokens as tokens_module


@pytest.mark.parametrize("limit", [None, 1, 2, 7, 8, 31, 100])
@pytest.mark.parametrize("multiple", [1, 8])
def test_gather_pads_and_truncates(packer: str, limit: int | None, multiple: int) -> None:
    texts = source(max_length=limit, pad_multiple=multiple, pad_id=1)
    index = torch.tensor([5, 0, 89, 5, 17])
    tokens = texts.gather(index)
    rows = [truncated(TEXTS[i], limit) for i in index.tolist()]
    longest = max(map(len, rows))
    width = -(-longest // multiple) * multiple
    assert tokens.ids.shape == (5, width if limit is None else min(width, limit))
    check_rows(tokens.ids, tokens.mask, rows, pad=1)
    assert texts.lengths.tolist() == [len(truncated(t, limit)) for t in TEXTS]
    assert all(torch.equal(a, b) for a, b in zip(texts.raw(index).tensors(), tokens.tensors(), strict=True))
    assert texts.gather(index[:0]).ids.shape == (0, 0)


@given(st.data())
def test_compiled_and_numpy_packing_agree(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=6))
    limit = data.draw(st.one_of(st.none(), st.integers(1, 10)))
    sep = data.draw(st.one_of(st.none(), st.integers(0, 9)))
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5)))
    texts = TokenSource.from_lists(rows, max_length=limit, sep_id=sep, pad_multiple=3)
    compiled = [t.clone() for t in texts.gather(index).tensors()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "host_module", lambda: None)
        plain = texts.gather(index).tensors()
    assert all(torch.equal(a, b) for a, b in zip(compiled, plain, strict=True))


def test_arrays_and_memory_maps_are_not_copied(tmp_path: Path) -> None:
    flat = np.concatenate(TEXTS).astype(np.int32)
    offsets = np.cumsum([0, *map(len, TEXTS)])
    np.save(tmp_path / "tokens.npy", flat)
    np.save(tmp_path / "token_offsets.npy", offsets)
    ids, bounds = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("tokens", "token_offsets"))
    mapped = TokenSource(ids, bounds, vocab_size=VOCAB, sep_id=SEP)
    assert np.shares_memory(mapped.ids, ids)
    assert np.shares_memory(mapped.offsets, bounds)
    for a, b in zip(loader(mapped), loader(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
    other = TokenSource(torch.from_numpy(flat.astype(np.int64)), offsets.tolist(), vocab_size=VOCAB, sep_id=SEP)
    assert other.ids.dtype == np.int32
    assert other.fingerprint() == mapped.fingerprint() == source().fingerprint()
    # Texts need not fill the ids.
    middle = TokenSource(flat, offsets[3:6], vocab_size=VOCAB)
    check_rows(*middle.gather(torch.tensor([0, 1])).tensors(), TEXTS[3:5])


def test_a_model_that_does_not_fit_is_rejected() -> None:
    small = dict(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    texts = source(max_length=24)
    texts.check_model(BertModel(BertConfig(vocab_size=VOCAB, max_position_embeddings=24, **small)))
    with pytest.raises(ValueError, match="ids go up to 49, but the model's embedding table has 49 rows"):
        texts.check_model(BertModel(BertConfig(vocab_size=VOCAB - 1, **small)))
    with pytest.raises(
        ValueError, match="have up to 24 tokens with padding, the model has 23 positions; use max_length=23"
    ):
        texts.check_model(BertModel(BertConfig(vocab_size=VOCAB, max_position_embeddings=23, **small)))
    with pytest.raises(ValueError, match="pads with 0, the model with 1"):
        texts.check_model(RobertaModel(RobertaConfig(vocab_size=VOCAB, **small)))
    roberta = RobertaModel(RobertaConfig(vocab_size=VOCAB, max_position_embeddings=26, **small))
    source(max_length=24, pad_id=1).check_model(roberta)
    with pytest.raises(ValueError, match="the model has 24 positions; use max_length=24"):
        source(max_length=25, pad_id=1).check_model(roberta)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: TokenSource([], [0]), ValueError, "offsets must have N + 1 entries"),
        (lambda: TokenSource([1, 2], [0, 1, 1, 2]), ValueError, "offsets: text 1 has no tokens"),
        (lambda: TokenSource([1, 2, 3], [0, 2, 1, 3]), ValueError, "offsets must ascend, but descend at text 1, from 2 to 1"),
        (lambda: TokenSource([1, 2, 3], [-1, 2]), ValueError, "offsets must begin at 0"),
        (lambda: TokenSource([1, 2, 3], [0, 2, 4]), ValueError, "text 1 ends at 4, but there are 3 ids"),
        (lambda: TokenSource([1, 2, 3], [[0, 3]]), ValueError, "offsets must have shape [N]"),
        (lambda: TokenSource([1, 2, 3], [0, 1.5]), TypeError, "offsets must be integers"),
        (lambda: TokenSource([1.0, 2.0], [0, 2]), TypeError, "ids must be integers"),
        (lambda: TokenSource([1, 2, 9], [0, 1, 3], vocab_size=9), ValueError, "ids must be in the vocabulary, [0, 9), but text 1 has 9 at position 1"),
        (lambda: TokenSource([1, -2, 9], [0, 1, 3]), ValueError, "text 1 has -2 at position 0"),
        (lambda: TokenSource(np.array([1, 1 << 32]), [0, 2]), ValueError, "text 0 has 4294967296 at position 1"),
        (lambda: TokenSource([1], [0, 1], vocab_size=0), ValueError, "vocab_size must be 1"),
        (lambda: TokenSource([1], [0, 1], vocab_size=5, pad_id=5), ValueError, "must be in the vocabulary"),
        (lambda: TokenSource([1], [0, 1], pad_id=-1), ValueError, "pad_id must be 0"),
        (lambda: TokenSource([1], [0, 1], max_length=0), ValueError, "max_length must be 1"),
        (lambda: TokenSource([1], [0, 1], pad_multiple=8.0), TypeError, "pad_multiple must be an integer"),
        (lambda: TokenSource([1], [0, 1], tokenizer=3), TypeError, "tokenizer must be a tokenizer of transformers"),
        (lambda: TokenSource.from_lists([]), ValueError, "texts must contain at least one text"),
        (lambda: TokenSource.from_lists([[1], []]), ValueError, "offsets: text 1 has no tokens"),
        (lambda: TokenSource.from_lists([[1], [2.5]]), TypeError, "texts[1] must be integers"),
        (lambda: TokenSource.from_lists([[1], [[2]]]), ValueError, "texts[1] must have shape [N]"),
    ],
)  # fmt: skip
def test_invalid_arguments(call: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize("bad", [-1, N, 1 << 40, -(1 << 62)])
def test_numbers_out_of_range_are_rejected(packer: str, bad: int) -> None:
    texts = source()
    with pytest.raises(IndexError, match=f"index {bad} is out of range for 90 texts"):
        texts.gather(torch.tensor([3, bad]))
    with pytest.raises(IndexError, match="out of range"):
        texts.pair_lengths(torch.tensor([3, 3]), torch.tensor([bad, 3]))
    with pytest.raises(IndexError, match="more than the width"):
        texts.pack(torch.arange(N), torch.zeros(N, 2, dtype=torch.int64), torch.zeros(N, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match="index must have dtype int64"):
        texts.gather(torch.tensor([1.0]))


def test_offsets_that_were_changed_later_are_rejected() -> None:
    offsets = np.array([0, 2, 4])
    texts = TokenSource(np.array([1, 2, 3, 4], np.int32), offsets)
    for row, value in ((1, 1 << 40), (1, -3), (2, 5)):
        changed = offsets.copy()
        changed[row] = value
        texts.offsets = changed
        with pytest.raises(IndexError, match="are out of range or descend"):
            texts.gather(torch.tensor([0, 1]))


def test_compiled_helpers_check_their_arguments() -> None:
    host: Any = tokens_module.host_module()
    ids, offsets, rows = np.ones(3, np.int32), np.array([0, 3]), np.zeros(2, np.int64)
    out, mask = np.zeros((2, 4), np.int64), np.zeros((2, 4), bool)
    host.pack_texts(ids, offsets, rows, 4, -1, 0, out, mask)
    for call in (
        lambda: host.pack_texts(ids, offsets, rows, 4, -1, 0, out[:1], mask),
        lambda: host.pack_texts(ids, offsets, rows, 4, -1, 0, out, mask[:, :3].copy()),
        lambda: host.pack_texts(ids, offsets[:0], rows, 4, -1, 0, out, mask),
        lambda: host.pack_texts(ids, offsets, rows, 0, -1, 0, out, mask),
        lambda: host.pair_lengths(ids, offsets, rows, rows[:1], 4),
    ):
        with pytest.raises(ValueError):
            call()
    for call in (
        lambda: host.pack_texts(ids, offsets, rows, 4, -1, 0, out.astype(np.int32), mask),
        lambda: host.pack_texts(ids.astype(np.int64), offsets, rows, 4, -1, 0, out, mask),
        lambda: host.pack_texts(ids, offsets, rows, 4, -1, 0, out.T, mask.T),
    ):
        with pytest.raises(TypeError):
            call()
