"""MixLoader on texts: batches, buckets, ranks, resuming and recycled buffers."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from token_samples import GROUPS, LABELS, TEXTS, VOCAB, check_rows, loader, source, truncated

from spurmix import GroupIndex, MixLoader, TokenPairs, policies
from spurmix.ops import functional as F


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_contain_the_drawn_samples(packer: str, copy: bool, prefetch: int) -> None:
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
        rows, others = ([truncated(TEXTS[i], 30) for i in t[part].tolist()] for t in (index, partner))
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
    texts = source(pad_multiple=64)  # the same width for all batches
    whole = [b.clone() for b in loader(texts, bucket=bucket)]
    parts = [
        [b.clone() for b in loader(texts, bucket=bucket, rank=r, world_size=world_size)] for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        joined = [torch.cat(t) for t in zip(*(p[step].tensors() for p in parts), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(batch.tensors(), joined, strict=True))


@pytest.mark.parametrize("bucket", [2, 4, 16])
def test_buckets_keep_samples_and_balance_of_a_window(bucket: int) -> None:
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
        # The batches of a window have disjoint ranges of length.
        spans = [pair_lengths(b) for b in made[start : start + bucket]]
        ordered = sorted(spans, key=lambda s: (s.min(), s.max()))
        assert all(a.max() <= b.min() for a, b in pairwise(ordered))
    for b in made:  # labels and tokens match the samples
        check_rows(b.input.ids, b.input.mask, [TEXTS[i] for i in b.index.tolist()])
        assert b.label.tolist() == LABELS[b.index].tolist()


def test_bucketed_batches_keep_the_order_of_the_sequence() -> None:
    """Otherwise the last rank would get all long texts."""
    samples = list(zip(*(t.tolist() for t in F.draw(GROUPS, policies.mixup(), seed=4, start=0, count=48)), strict=True))
    assert len(set(samples)) == 48
    for batch, _ in zip(loader(bucket=4), range(4), strict=False):
        rows = zip(batch.index.tolist(), batch.partner.tolist(), batch.lam.tolist(), strict=True)
        places = [samples.index(row) for row in rows]
        assert places == sorted(places)


def pair_lengths(batch: Any) -> torch.Tensor:
    return torch.maximum(batch.input.mask.sum(1), batch.input.partner_mask.sum(1))


def test_buckets_shorten_batches_and_are_shuffled() -> None:
    widths = {k: [b.input.ids.shape[1] for b in loader(source(pad_multiple=1), bucket=k)] for k in (1, 10)}
    assert sum(widths[10]) < 0.8 * sum(widths[1])
    assert widths[10] != sorted(widths[10])
    other = [b.input.ids.shape[1] for b in loader(source(pad_multiple=1), bucket=10, seed=5)]
    assert np.argsort(other).tolist() != np.argsort(widths[10]).tolist()


@pytest.mark.parametrize("bucket", [1, 4])
def test_any_batch_can_be_requested(bucket: int) -> None:
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


def test_a_state_of_another_sequence_is_rejected() -> None:
    state = loader(bucket=4).state_dict()
    for other, word in (
        (loader(), "bucket"),
        (loader(bucket=4, steps=11), "bucket"),
        (loader(source(max_length=9), bucket=4), "tokens"),
        (loader(source(tokenizer="another"), bucket=4), "tokens"),
    ):
        with pytest.raises(ValueError, match=f"different: {word} "):
            other.load_state_dict(state)
    loader(bucket=5, steps=15).load_state_dict(
        loader(bucket=5).state_dict()
    )  # whole windows do not depend on the number of batches


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


def test_debug_ring_overwrites_expired_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPURMIX_DEBUG_RING", "1")
    batches = iter(loader(prefetch=1))
    first = next(batches)
    assert torch.equal(first.input.ids, first.clone().input.ids)
    next(batches)
    smallest = torch.iinfo(torch.int64).min
    assert (first.input.ids == smallest).all()
    assert (first.input.partner_ids == smallest).all()
    assert first.input.mask.all()
    assert first.input.lam.isnan().all()


def test_autograd_detects_a_recycled_buffer() -> None:
    table = torch.ones(VOCAB, 2, requires_grad=True)
    batches = iter(loader(prefetch=0))
    loss = torch.nn.functional.embedding(next(batches).input.ids, table).pow(2).sum()
    next(batches)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_pairs_and_tokens_are_moved_and_copied() -> None:
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


def test_the_thread_of_an_abandoned_iterator_ends() -> None:
    abandoned = iter(loader(steps=50))
    next(abandoned)
    del abandoned
    for thread in threading.enumerate():
        if thread.name == "spurmix-prefetch":
            thread.join(timeout=5)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: loader(dtype=torch.bfloat16), ValueError, "dtype must be float32 for texts"),
        (lambda: loader(augment=F.Augment()), ValueError, "augment is only for images, but this source contains texts"),
        (lambda: loader(bucket=0), ValueError, "bucket must be 1"),
        (lambda: MixLoader(np.zeros((90, 2), np.float32), GROUPS, policies.erm(), 9, bucket=2), ValueError, "bucket must be 1 for images and features, got 2"),
        (lambda: MixLoader(source(), GroupIndex(LABELS[:80]), policies.erm(), 9), ValueError, "source has 90 examples"),
    ],
)  # fmt: skip
def test_invalid_options_for_texts(call: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
