"""TokenSource and the loader on texts: packing against NumPy and plain Python, buckets, tokenizers, bad input."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizerFast, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from spurmix import GroupIndex, MixLoader, TokenPairs, TokenSource, policies
from spurmix.data.dataset import tokenize
from spurmix.data.sources import tokens as text_module
from spurmix.ops import functional as F

RNG = np.random.default_rng(8)
CLS, SEP, PAD, VOCAB = 2, 3, 0, 50
N = 90
TEXTS = [[CLS, *RNG.integers(4, VOCAB, RNG.integers(0, 30)).tolist(), SEP] for _ in range(N)]
LABELS, ATTRIBUTES = RNG.integers(0, 3, N), RNG.integers(0, 2, N)
GROUPS = GroupIndex(LABELS, ATTRIBUTES)


def source(**options: Any) -> TokenSource:
    return TokenSource.from_lists(TEXTS, **dict(vocab_size=VOCAB, sep_id=SEP) | options)


def loader(texts: TokenSource | None = None, batch: int = 12, **options: Any) -> MixLoader:
    arguments: dict[str, Any] = dict(steps=10, seed=4)
    policy = options.pop("policy", policies.mixup())
    return MixLoader(texts if texts is not None else source(), GROUPS, policy, batch, **arguments | options)


def kept(row: list[int], limit: int | None) -> list[int]:
    """A row as the source keeps it, in plain Python."""
    if limit is None or len(row) <= limit:
        return row
    return [*row[: limit - 1], SEP] if row[-1] == SEP else row[:limit]


def check_rows(ids: torch.Tensor, mask: torch.Tensor, rows: list[list[int]], pad: int = PAD) -> None:
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    for got, marks, row in zip(ids.tolist(), mask.tolist(), rows, strict=True):
        assert got == row + [pad] * (len(got) - len(row))
        assert marks == [True] * len(row) + [False] * (len(got) - len(row))


@pytest.fixture(params=["compiled", "numpy"])
def packer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(text_module, "host_module", lambda: None)
    else:
        assert text_module.host_module() is not None, "the compiled helpers are missing"
    return request.param


@pytest.mark.parametrize("limit", [None, 1, 2, 7, 8, 31, 100])
@pytest.mark.parametrize("multiple", [1, 8])
def test_gather_pads_and_shortens(packer: str, limit: int | None, multiple: int) -> None:
    texts = source(max_length=limit, pad_multiple=multiple, pad_id=1)
    index = torch.tensor([5, 0, 89, 5, 17])
    tokens = texts.gather(index)
    rows = [kept(TEXTS[i], limit) for i in index.tolist()]
    longest = max(map(len, rows))
    width = -(-longest // multiple) * multiple
    assert tokens.ids.shape == (5, width if limit is None else min(width, limit))
    check_rows(tokens.ids, tokens.mask, rows, pad=1)
    assert texts.lengths.tolist() == [len(kept(t, limit)) for t in TEXTS]
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
        patch.setattr(text_module, "host_module", lambda: None)
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


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_are_what_draw_says(packer: str, copy: bool, prefetch: int) -> None:
    index, partner, lam = F.draw(GROUPS, policies.mixup(), seed=4, start=0, count=120)
    texts = source(max_length=30, pad_multiple=1)
    widths = []
    for k, batch in enumerate(loader(texts, prefetch=prefetch, copy=copy)):
        part = slice(12 * k, 12 * k + 12)
        pairs = batch.input
        assert isinstance(pairs, TokenPairs)
        assert torch.equal(batch.index, index[part])
        assert torch.equal(batch.partner, partner[part])
        assert torch.equal(pairs.lam, lam[part])
        assert pairs.lam.data_ptr() == batch.lam.data_ptr()
        rows, others = ([kept(TEXTS[i], 30) for i in t[part].tolist()] for t in (index, partner))
        check_rows(pairs.ids, pairs.mask, rows)
        check_rows(pairs.partner_ids, pairs.partner_mask, others)
        assert pairs.ids.is_contiguous()
        assert pairs.ids.shape == pairs.partner_ids.shape == (12, texts.width(max(map(len, rows + others))))
        assert torch.equal(pairs.union_mask, pairs.mask | pairs.partner_mask)
        assert batch.label.tolist() == LABELS[batch.index].tolist()
        assert batch.partner_label.tolist() == LABELS[batch.partner].tolist()
        assert batch.group.tolist() == GROUPS.group_ids()[batch.index].tolist()
        widths.append(pairs.ids.shape[1])
    assert len(set(widths)) > 1


@pytest.mark.parametrize("bucket", [1, 4])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_concatenate_to_one_sequence(bucket: int, world_size: int) -> None:
    texts = source(pad_multiple=64)  # one width for all
    whole = [b.clone() for b in loader(texts, bucket=bucket)]
    parts = [
        [b.clone() for b in loader(texts, bucket=bucket, rank=r, world_size=world_size)] for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        joined = [torch.cat(t) for t in zip(*(p[step].tensors() for p in parts), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(batch.tensors(), joined, strict=True))


@pytest.mark.parametrize("bucket", [2, 4, 16])
def test_buckets_change_neither_who_is_drawn_nor_balance(bucket: int) -> None:
    options = dict(policy=policies.group_balanced(), batch=GROUPS.num_groups * 3)
    plain = [b.clone() for b in loader(**options)]
    made = [b.clone() for b in loader(bucket=bucket, **options)]
    for start in range(0, 10, bucket):  # the last window may be shorter
        window, other = (
            sorted(
                row
                for b in batches[start : start + bucket]
                for row in zip(b.index.tolist(), b.partner.tolist(), b.lam.tolist(), strict=True)
            )
            for batches in (plain, made)
        )
        assert window == other
        groups = torch.cat([b.group for b in made[start : start + bucket]])
        assert len(set(torch.bincount(groups).tolist())) == 1
        # Batches hold disjoint ranges of length, and not in ascending order only.
        spans = [texts_lengths(b) for b in made[start : start + bucket]]
        ordered = sorted(spans, key=lambda s: (s.min(), s.max()))
        assert all(a.max() <= b.min() for a, b in pairwise(ordered))
    for b in made:  # labels and tokens belong to the samples
        check_rows(b.input.ids, b.input.mask, [TEXTS[i] for i in b.index.tolist()])
        assert b.label.tolist() == LABELS[b.index].tolist()


def test_bucketed_batches_keep_the_order_of_the_sequence() -> None:
    """Sorted by length, the last of several ranks would get all the long texts."""
    samples = list(zip(*(t.tolist() for t in F.draw(GROUPS, policies.mixup(), seed=4, start=0, count=48)), strict=True))
    assert len(set(samples)) == 48
    for batch, _ in zip(loader(bucket=4), range(4), strict=False):
        rows = zip(batch.index.tolist(), batch.partner.tolist(), batch.lam.tolist(), strict=True)
        places = [samples.index(row) for row in rows]
        assert places == sorted(places)


def texts_lengths(batch: Any) -> torch.Tensor:
    return torch.maximum(batch.input.mask.sum(1), batch.input.partner_mask.sum(1))


def test_buckets_shorten_batches_and_come_in_mixed_order() -> None:
    widths = {k: [b.input.ids.shape[1] for b in loader(source(pad_multiple=1), bucket=k)] for k in (1, 10)}
    assert sum(widths[10]) < 0.8 * sum(widths[1])
    assert widths[10] != sorted(widths[10])
    other = [b.input.ids.shape[1] for b in loader(source(pad_multiple=1), bucket=10, seed=5)]
    assert np.argsort(other).tolist() != np.argsort(widths[10]).tolist()


@pytest.mark.parametrize("bucket", [1, 4])
def test_any_batch_can_be_asked_for(bucket: int) -> None:
    batches = loader(bucket=bucket)
    whole = [b.clone() for b in loader(bucket=bucket)]
    for step in (9, 0, 5, 5, 4):
        made = batches.batch(step)
        assert all(torch.equal(a, b) for a, b in zip(made.tensors(), whole[step].tensors(), strict=True))


@pytest.mark.parametrize("at", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("bucket", [1, 4])
def test_resume_at_any_step(at: int, bucket: int) -> None:
    whole = [b.clone() for b in loader(bucket=bucket)]
    first = loader(bucket=bucket)
    batches = iter(first)
    for _ in range(at):
        next(batches)
    second = loader(bucket=bucket)
    second.load_state_dict(first.state_dict())
    rest = [b.clone() for b in second]
    assert len(rest) == 10 - at
    for a, b in zip(whole[at:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_a_state_of_another_sequence_says_what_differs() -> None:
    state = loader(bucket=4).state_dict()
    for other, word in (
        (loader(), "bucket"),
        (loader(bucket=4, steps=11), "bucket"),
        (loader(source(max_length=9), bucket=4), "tokens"),
        (loader(source(tokenizer="another"), bucket=4), "tokens"),
    ):
        with pytest.raises(ValueError, match=f"different: {word} "):
            other.load_state_dict(state)
    loader(bucket=5, steps=15).load_state_dict(loader(bucket=5).state_dict())  # whole windows go on


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_buffers_stay_valid_for_prefetch_further_batches_and_are_reused(prefetch: int) -> None:
    held: list[tuple[Any, Any]] = []
    pointers = set()
    for batch in loader(steps=40, prefetch=prefetch):
        held = [*held, (batch, batch.clone())][-max(1, prefetch) :]
        pointers.add(batch.input.ids.data_ptr())
        for one, copy in held:
            assert all(torch.equal(a, b) for a, b in zip(one.tensors(), copy.tensors(), strict=True))
    assert len(pointers) == 2 * prefetch + 1


def test_debug_ring_poisons_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPURMIX_DEBUG_RING", "1")
    batches = iter(loader(prefetch=1))
    first = next(batches)
    sound = first.clone()
    assert torch.equal(first.input.ids, sound.input.ids)
    next(batches)
    smallest = torch.iinfo(torch.int64).min
    assert (first.input.ids == smallest).all()
    assert (first.input.partner_ids == smallest).all()
    assert first.input.mask.all()
    assert first.input.lam.isnan().all()


def test_refilling_a_buffer_under_autograd_is_an_error() -> None:
    table = torch.ones(VOCAB, 2, requires_grad=True)
    batches = iter(loader(prefetch=0))
    loss = torch.nn.functional.embedding(next(batches).input.ids, table).pow(2).sum()
    next(batches)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_pairs_and_tokens_move_and_copy() -> None:
    batch = next(iter(loader(device="meta")))
    assert all(t.device.type == "meta" for t in batch.tensors())
    assert len(batch.input) == len(batch) == 12
    batch = next(iter(loader()))
    copy = batch.clone()
    assert copy.input.lam.data_ptr() == copy.lam.data_ptr() != batch.lam.data_ptr()
    assert len(batch.tensors()) == 10
    assert batch.input.to("meta").ids.device.type == "meta"
    assert torch.equal(batch.input.clone().mask, batch.input.mask)
    tokens = source().gather(torch.tensor([1]))
    assert len(tokens) == 1 and len(tokens.to("cpu").clone()) == 1


def test_threads_end() -> None:
    abandoned = iter(loader(steps=50))
    next(abandoned)
    del abandoned
    for thread in threading.enumerate():
        if thread.name == "spurmix-prefetch":
            thread.join(timeout=5)
            assert not thread.is_alive()


# Tokenizers

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
def test_texts_are_what_the_tokenizer_says(monkeypatch: pytest.MonkeyPatch, limit: int | None, chunk: int) -> None:
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


def test_the_tokenizers_own_limit_and_settings() -> None:
    tokenizer = bert_tokenizer(model_max_length=10)
    tokenizer.backend_tokenizer.enable_padding(pad_id=0, length=64)
    tokenizer.backend_tokenizer.enable_truncation(5, stride=1)
    before = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    texts = TokenSource.from_texts(SENTENCES, tokenizer)
    assert (texts.max_length, texts.longest) == (10, 10)
    assert texts.ids[texts.offsets[4] - 1] == 3
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == before


def test_a_tokenizer_of_python_works_too() -> None:
    fast = bert_tokenizer()

    class Plain:
        """Only what is asked of a tokenizer without a compiled backend."""

        pad_token_id, sep_token_id, eos_token_id, special_tokens_map = 0, 3, None, {}

        def get_vocab(self) -> dict[str, int]:
            return fast.get_vocab()

        def __call__(self, texts: list[str], **options: Any) -> Any:
            return fast(texts, **options)

    slow = TokenSource.from_texts(SENTENCES, Plain(), max_length=6)
    assert np.array_equal(slow.ids, TokenSource.from_texts(SENTENCES, fast, max_length=6).ids)
    assert slow.tokenizer_fingerprint != bert_tokenizer()


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = bert_tokenizer()
    texts = TokenSource.from_texts(SENTENCES, tokenizer)
    tokenizer(SENTENCES, truncation=True, padding=True, max_length=4)  # settings are not identity
    texts.check_tokenizer(tokenizer)
    texts.check_tokenizer(bert_tokenizer())
    texts.check_tokenizer(texts)
    source().check_tokenizer(tokenizer)  # nobody knows who made these ids
    other = bert_tokenizer([*WORDS[:-2], WORDS[-1], WORDS[-2]])
    with pytest.raises(ValueError, match="tokenizer: the ids were made by another one"):
        texts.check_tokenizer(other)
    with pytest.raises(ValueError, match="made by another one"):
        texts.check_tokenizer(TokenSource.from_texts(SENTENCES, other))


def test_a_model_that_does_not_fit_is_refused() -> None:
    small = dict(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    texts = source(max_length=24)
    texts.check_model(BertModel(BertConfig(vocab_size=VOCAB, max_position_embeddings=24, **small)))
    with pytest.raises(ValueError, match="ids go up to 49, but the model's table has 49 rows"):
        texts.check_model(BertModel(BertConfig(vocab_size=VOCAB - 1, **small)))
    with pytest.raises(ValueError, match="take up to 24 positions with padding, the model has 23; give max_length=23"):
        texts.check_model(BertModel(BertConfig(vocab_size=VOCAB, max_position_embeddings=23, **small)))
    with pytest.raises(ValueError, match="pads with 0, the model with 1"):
        texts.check_model(RobertaModel(RobertaConfig(vocab_size=VOCAB, **small)))
    roberta = RobertaModel(RobertaConfig(vocab_size=VOCAB, max_position_embeddings=26, **small))
    source(max_length=24, pad_id=1).check_model(roberta)
    with pytest.raises(ValueError, match="the model has 24; give max_length=24"):
        source(max_length=25, pad_id=1).check_model(roberta)


def test_progress_is_shown_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    TokenSource.from_texts(SENTENCES, bert_tokenizer())
    assert capfd.readouterr().err == ""
    TokenSource.from_texts(SENTENCES, bert_tokenizer(), progress=True)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: TokenSource([], [0]), ValueError, "offsets: need N + 1 entries"),
        (lambda: TokenSource([1, 2], [0, 1, 1, 2]), ValueError, "offsets: text 1 has no tokens"),
        (lambda: TokenSource([1, 2, 3], [0, 2, 1, 3]), ValueError, "offsets: descend at text 1, from 2 to 1"),
        (lambda: TokenSource([1, 2, 3], [-1, 2]), ValueError, "offsets must begin at 0"),
        (lambda: TokenSource([1, 2, 3], [0, 2, 4]), ValueError, "text 1 ends at 4, but there are 3 ids"),
        (lambda: TokenSource([1, 2, 3], [[0, 3]]), ValueError, "offsets must have shape [N]"),
        (lambda: TokenSource([1, 2, 3], [0, 1.5]), TypeError, "offsets must be integers"),
        (lambda: TokenSource([1.0, 2.0], [0, 2]), TypeError, "ids must be integers"),
        (lambda: TokenSource([1, 2, 9], [0, 1, 3], vocab_size=9), ValueError, "text 1 has 9 at position 1, outside the vocabulary, [0, 9)"),
        (lambda: TokenSource([1, -2, 9], [0, 1, 3]), ValueError, "text 1 has -2 at position 0"),
        (lambda: TokenSource(np.array([1, 1 << 32]), [0, 2]), ValueError, "text 0 has 4294967296 at position 1"),
        (lambda: TokenSource([1], [0, 1], vocab_size=0), ValueError, "vocab_size must be 1"),
        (lambda: TokenSource([1], [0, 1], vocab_size=5, pad_id=5), ValueError, "must lie in the vocabulary"),
        (lambda: TokenSource([1], [0, 1], pad_id=-1), ValueError, "pad_id must be 0"),
        (lambda: TokenSource([1], [0, 1], max_length=0), ValueError, "max_length must be 1"),
        (lambda: TokenSource([1], [0, 1], pad_multiple=8.0), TypeError, "pad_multiple must be an integer"),
        (lambda: TokenSource([1], [0, 1], tokenizer=3), TypeError, "tokenizer must be a tokenizer of transformers"),
        (lambda: TokenSource.from_lists([]), ValueError, "texts: the dataset is empty"),
        (lambda: TokenSource.from_lists([[1], []]), ValueError, "offsets: text 1 has no tokens"),
        (lambda: TokenSource.from_lists([[1], [2.5]]), TypeError, "texts[1] must be integers"),
        (lambda: TokenSource.from_lists([[1], [[2]]]), ValueError, "texts[1] must have shape [N]"),
        (lambda: TokenSource.from_texts([], bert_tokenizer()), ValueError, "texts must not be empty"),
        (lambda: TokenSource.from_texts("text", bert_tokenizer()), TypeError, "texts must be a sequence of strings"),
        (lambda: TokenSource.from_texts(["a", None], bert_tokenizer()), TypeError, "texts[1] must be a string, got NoneType"),
        (lambda: TokenSource.from_texts(["a"], lambda texts: texts), TypeError, "tokenizer must be a tokenizer of transformers"),
        (lambda: loader(dtype=torch.bfloat16), ValueError, "dtype is for images and features"),
        (lambda: loader(augment=F.Augment()), ValueError, "augment is for images, but this source holds texts"),
        (lambda: loader(bucket=0), ValueError, "bucket must be 1"),
        (lambda: MixLoader(np.zeros((90, 2), np.float32), GROUPS, policies.erm(), 9, bucket=2), ValueError, "bucket must be 1 for images and features, got 2"),
        (lambda: MixLoader(source(), GroupIndex(LABELS[:80]), policies.erm(), 9), ValueError, "source has 90 examples"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def test_a_text_without_tokens_names_its_row() -> None:
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match=r"texts\[1\] has no tokens"):
        TokenSource.from_texts(SENTENCES, tokenizer)


@pytest.mark.parametrize("bad", [-1, N, 1 << 40, -(1 << 62)])
def test_rows_out_of_range_are_not_read(packer: str, bad: int) -> None:
    texts = source()
    with pytest.raises(IndexError, match=f"index {bad} is out of range for 90 texts"):
        texts.gather(torch.tensor([3, bad]))
    with pytest.raises(IndexError, match="out of range"):
        texts.pair_lengths(torch.tensor([3, 3]), torch.tensor([bad, 3]))
    with pytest.raises(IndexError, match="more than the width"):
        texts.pack(torch.arange(N), torch.zeros(N, 2, dtype=torch.int64), torch.zeros(N, 2, dtype=torch.bool))
    with pytest.raises(TypeError, match="index must have dtype int64"):
        texts.gather(torch.tensor([1.0]))


def test_offsets_that_change_afterwards_are_not_followed() -> None:
    offsets = np.array([0, 2, 4])
    texts = TokenSource(np.array([1, 2, 3, 4], np.int32), offsets)
    for row, value in ((1, 1 << 40), (1, -3), (2, 5)):
        changed = offsets.copy()
        changed[row] = value
        texts.offsets = changed
        with pytest.raises(IndexError, match="leave the ids or descend"):
            texts.gather(torch.tensor([0, 1]))


def test_host_calls_check_their_arguments() -> None:
    host: Any = text_module.host_module()
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
