"""Triton kernels against the reference: interpreted on the CPU, and compiled for three GPU generations without a GPU."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from comparison import (
    FLOATS,
    TOLERANCE,
    altered_tables,
    calls_with_weights,
    check_altered_draw,
    close,
    compare_group_counts,
    invalid_weights,
    pairs,
    random_draws,
    random_tables,
    summed_tables,
    with_and_without_members,
)  # fmt: skip
from hypothesis import settings

from spurmix import Beta, GroupIndex, MixPolicy, policies
from spurmix.core.running_sums import pack_sums
from spurmix.core.schedule import partner_thresholds
from spurmix.kernels.draw import _sums_at_most
from spurmix.ops import backends, library
from spurmix.ops import functional as F
from spurmix.ops.reference import draw as reference_draw
from spurmix.ops.tables import draw_tables

BOTH = ["reference", "triton"]


@settings(max_examples=6)
@random_draws
def test_draws_are_equal_bit_for_bit(
    n: int, labels: int, seed: int, start: int, count: int, replacement: bool, partners: bool, strata: Any
) -> None:
    tables = random_tables(n, labels, replacement, partners, strata)
    kernel = backends.implementation("draw", "triton", tables.packed.device)
    for packed, members in list(with_and_without_members(tables))[::2]:
        arguments = (packed, members, seed, start, count, torch.tensor([3]))
        for a, b in zip(kernel(*arguments), reference_draw.draw(*arguments), strict=True):
            assert torch.equal(a, b)


def some(*rows: Any) -> list[Any]:
    """All pairs. Those without the first value of either list are slow tests, because the interpreter is slow."""
    pairs = itertools.product(*rows)
    return [pytest.param(*p, marks=[] if p[0] is rows[0][0] or p[1] is rows[1][0] else pytest.mark.slow) for p in pairs]


@pytest.mark.parametrize(("dtype", "channels"), some(FLOATS, (3, 1, 2, 5)))
@pytest.mark.parametrize("last", [False, True])
def test_mix_images(dtype: torch.dtype, last: bool, channels: int, rng: np.random.Generator) -> None:
    store = torch.from_numpy(rng.integers(0, 256, (14, 7, 13, channels), dtype=np.uint8))[::2]  # a view
    mean, std = torch.rand(channels), torch.rand(channels) + 0.5
    for batch, size, crop, flip in ((4, (7, 13), False, False), (3, (7, 13), False, True), (3, (40, 33), True, True),
                                    (1, (1, 1), True, False), (0, (7, 13), False, False)):  # fmt: skip
        index, partner, lam = pairs(rng, 7, batch)
        boxes = torch.from_numpy(rng.uniform(-3, 9, (batch, 2, 4)).astype(np.float32)) if crop else None
        flips = torch.from_numpy(rng.integers(0, 2, (batch, 2))).bool() if flip else None
        arguments: Any = dict(mean=mean, std=std, boxes=boxes, flips=flips, size=size, dtype=dtype, channels_last=last)
        expected = F.mix_images(store, index, partner, lam, **arguments, backend="reference")
        actual = F.mix_images(store, index, partner, lam, **arguments, backend="triton")
        close(actual, expected)
        assert actual.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize(("dtype", "keep"), some(FLOATS, (False, True)))
@pytest.mark.parametrize("augmented", [False, True])
def test_mix_image_batch(dtype: torch.dtype, augmented: bool, keep: bool, rng: np.random.Generator) -> None:
    store = torch.from_numpy(rng.integers(0, 256, (60, 9, 11, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 3, 60).astype(np.uint8))
    groups = GroupIndex(labels.numpy().astype(np.int64), rng.integers(0, 2, 60))
    partner = np.ones((groups.num_groups,) * 2)
    tables = draw_tables(groups, MixPolicy(partner=partner, lam=Beta(0.5), labels="keep" if keep else "mix"))
    augment = F.Augment(crop=True, flip=True, size=(6, 5)) if augmented else None
    arguments: Any = dict(seed=5, start=2**41, count=5, mean=0.4, std=0.3, augment=augment, dtype=dtype)
    for last in (False, True):
        expected = F.mix_image_batch(store, labels, tables, **arguments, channels_last=last, backend="reference")
        actual = F.mix_image_batch(store, labels, tables, **arguments, channels_last=last, backend="triton")
        for name, a, b in zip(expected._fields, actual, expected, strict=True):
            if name == "input":
                # Crop boxes agree within 1e-3 pixel.
                torch.testing.assert_close(a, b, atol=2e-2 if augmented else TOLERANCE[dtype]["atol"], rtol=1e-2)
            else:
                assert torch.equal(a, b), name


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(64, 80), (61, 83), (1, 1)])
def test_flat_passes_of_several_blocks(shape: tuple[int, int], channels: int, rng: np.random.Generator) -> None:
    """Images that several programs share, with and without vectorized access."""
    store = torch.from_numpy(rng.integers(0, 256, (3, *shape, channels), dtype=np.uint8))
    index, partner, lam = pairs(rng, 3, 2)
    flips = torch.tensor([[True, False], [False, True]])
    for flip in (None, flips):
        mean, std = torch.rand(channels), torch.rand(channels) + 0.5
        arguments: Any = dict(mean=mean, std=std, flips=flip, dtype=torch.float32, channels_last=True)
        expected = F.mix_images(store, index, partner, lam, **arguments, backend="reference")
        close(F.mix_images(store, index, partner, lam, **arguments, backend="triton"), expected)


@pytest.mark.parametrize("groups", [1, 2, 127, 128, 129, 130, 1000])
def test_parallel_search_for_groups(groups: int, rng: np.random.Generator) -> None:
    """In the image kernels, all lanes of a program search for the group of one sample."""
    label = torch.from_numpy(rng.permutation(np.concatenate([np.arange(groups), rng.integers(0, groups, 500)])))
    index = GroupIndex(label.numpy())
    weights = rng.random((groups, groups)) * (rng.random((groups, 1)) < 0.8)
    tables = draw_tables(index, MixPolicy("all", partner=weights, lam=Beta(0.4)))
    store = torch.zeros(len(label), 1, 1, 1, dtype=torch.uint8)
    found = [F.mix_image_batch(store, label, tables, seed=1, start=7, count=12, backend=b)[1:] for b in BOTH]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shape", [(2, 2), (40, 3), (3, 40), (130, 2)])
def test_draws_of_running_sums(shape: tuple[int, int], rng: np.random.Generator) -> None:
    number = rng.permutation(np.repeat(np.arange(shape[0] * shape[1]), 2))
    groups = GroupIndex(number // shape[1], number % shape[1])
    tables = summed_tables(groups, policies.lisa())
    found = [F.draw(tables, seed=3, start=2**40, count=300, backend=b) for b in BOTH]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    store, label = torch.zeros(number.size, 1, 1, 1, dtype=torch.uint8), torch.from_numpy(number // shape[1])
    batches = [F.mix_image_batch(store, label, tables, seed=1, start=7, count=12, backend=b)[1:] for b in BOTH]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


@triton.jit
def search_kernel(list_ptr, length, count, words_ptr, out_ptr, n: tl.constexpr):
    """Search running sums for words."""
    i = tl.arange(0, n)
    word = tl.load(words_ptr + i)
    entry, valid = _sums_at_most(list_ptr, length, word * 0, word * 0 + count, word, i >= 0)
    tl.store(out_ptr + i, tl.where(valid, entry, -1))


def test_search_of_running_sums_at_every_threshold() -> None:
    """A threshold and the word before it select different entries."""
    weights, counts = np.array([[1 / 3, 0.5, 1 / 8, 1 / 1000]]), np.array([[100, 2, 60, 94]])
    thresholds = partner_thresholds(np.repeat(weights[0], counts[0]))
    words = np.clip(np.concatenate([thresholds - 1, thresholds]), 0, 2**32 - 1)
    sums, out = torch.from_numpy(pack_sums(weights, counts).words), torch.zeros(512, dtype=torch.int64)
    search_kernel[(1,)](sums, sums.numel(), thresholds.size, torch.from_numpy(words), out, 512)
    assert out.tolist() == np.searchsorted(thresholds, words, side="right").tolist()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_loss_with_gradient(dtype: torch.dtype, rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.standard_normal((3, 1300)) * 4).to(dtype)
    arguments = *pairs(rng, 1300, 3), 1, 0.1
    found = [
        backends.implementation("mixed_cross_entropy_with_grad", b, logits.device)(logits, *arguments) for b in BOTH
    ]
    for a, b in zip(*found, strict=True):
        close(b, a)


def test_loss_of_large_and_infinite_logits(rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.standard_normal((6, 1500)).astype(np.float32))
    logits[0] += 1e4
    logits[1, :1100] = -torch.inf
    logits[2] = -torch.inf
    logits[3, 7] = torch.inf
    logits[4, 1400] = torch.nan
    label, partner = torch.full((6,), 1200), torch.full((6,), 1300)
    for smoothing in (0.0, 0.2):
        options: Any = dict(reduction="none", label_smoothing=smoothing)
        found = [
            F.mixed_cross_entropy(logits, label, partner, torch.full((6,), 0.3), **options, backend=b) for b in BOTH
        ]
        close(found[1], found[0])


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_rows_and_labels(dtype: torch.dtype, rng: np.random.Generator) -> None:
    table = torch.from_numpy(rng.standard_normal((10, 2100))).to(dtype)
    for width, batch in ((2100, 3), (1, 1), (17, 0)):
        index, partner, lam = pairs(rng, 5, batch)
        close(
            F.mix_rows(table[::2, :width], index, partner, lam, backend="triton"),
            F.mix_rows(table[::2, :width], index, partner, lam, backend="reference"),
        )
        for out in (torch.float32, dtype):
            expected = F.mix_labels(index, partner, lam, 5, dtype=out, backend="reference")
            close(F.mix_labels(index, partner, lam, 5, dtype=out, backend="triton"), expected)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient(dtype: torch.dtype, reduction: str, smoothing: float, rng: np.random.Generator) -> None:
    for batch, classes in ((1, 1), (5, 2), (3, 5000)):
        logits = torch.from_numpy(rng.standard_normal((batch, classes)) * 5).to(dtype)
        if classes > 1:
            logits[0, 0] = -torch.inf
        label, partner, lam = pairs(rng, classes, batch)
        label[0], partner[0] = classes - 1, classes - 1
        found = []
        for backend in ("reference", "triton"):
            x = logits.clone().requires_grad_()
            options: Any = dict(reduction=reduction, label_smoothing=smoothing if classes > 5 else 0.0, backend=backend)
            loss = F.mixed_cross_entropy(x, label, partner, lam, **options)
            if not (classes > 5 and smoothing):
                loss.backward(torch.full_like(loss, 0.7))
            found.append((loss.detach(), x.grad))
        close(found[1][0], found[0][0])
        if found[0][1] is not None:
            close(found[1][1], found[0][1])


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_mixed_embeddings(dtype: torch.dtype, masked: bool, rng: np.random.Generator) -> None:
    for batch, length, rows, columns in ((3, 7, 11, 24), (2, 5, 40, 1030), (1, 1, 1, 1), (0, 3, 4, 5)):
        weight = torch.from_numpy(rng.standard_normal((2 * rows, columns))).to(dtype)[::2]
        ids, partner = (torch.from_numpy(rng.integers(0, rows, (batch, length))) for _ in range(2))
        lam = torch.from_numpy(rng.random(batch).astype(np.float32))
        lam[:1], lam[1:2] = 1, 0
        masks = [torch.from_numpy(rng.random((batch, length)) < 0.6) if masked else None for _ in range(2)]
        found = []
        for backend in BOTH:
            x = weight.clone().requires_grad_()
            mixed = F.mix_embeddings(x, ids, partner, lam, *masks, padding_idx=rows // 2, backend=backend)
            mixed.backward(torch.linspace(-1, 1, mixed.numel()).view_as(mixed).to(dtype))
            found.append((mixed.detach(), x.grad))
        close(found[1][0], found[0][0])
        close(found[1][1], found[0][1])


def test_gradcheck(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(rng.standard_normal((5, 3))).requires_grad_()
    index, partner, lam = pairs(rng, 5, 4)
    assert torch.autograd.gradcheck(lambda r: F.mix_rows(r, index, partner, lam, backend="triton"), (rows,))
    label, other, weight = pairs(rng, 3, 5)
    assert torch.autograd.gradcheck(
        lambda x: F.mixed_cross_entropy(x, label, other, weight, label_smoothing=0.1, backend="triton"), (rows,)
    )


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_group_counts(dtype: torch.dtype, rng: np.random.Generator) -> None:
    compare_group_counts("triton", ((1, 1, 1), (9, 5, 3), (4, 2500, 40)), dtype, rng)


def test_altered_tables_are_reported_and_not_followed() -> None:
    """Any word of a section may have any value: a sample is valid, or NaN and reported."""
    store, labels, norm = torch.zeros(10, 2, 2, 3, dtype=torch.uint8), torch.zeros(10).long(), torch.ones(3)
    kernels = {
        name: backends.implementation(name, "triton", torch.device("cpu")) for name in ("draw_out", "mix_image_batch")
    }
    reported = 0
    for packed, members in altered_tables(8):
        drawn = [torch.zeros(40, dtype=kind) for kind in (torch.int64, torch.int64, torch.float32, torch.int64)]
        damaged = False
        try:
            kernels["draw_out"](packed, members, 1, 5, None, *drawn)
        except IndexError as error:
            damaged = "tables are damaged" in str(error)
            assert damaged
        check_altered_draw(tuple(drawn), damaged)
        reported += damaged
        with pytest.raises(IndexError) if (drawn[3][:2] < 0).any() else contextlib.nullcontext():
            kernels["mix_image_batch"](
                store, labels, packed, members, norm, norm, False, 0.1, 1.0, 0.7, 1.3, False, 1, 5, 2, 2, 2,
                torch.float32, False,
            )  # fmt: skip
    assert reported > 6


def test_invalid_values_are_reported() -> None:
    for call, lam in itertools.product(calls_with_weights("triton"), list(invalid_weights())[:3]):
        with pytest.raises(ValueError, match=r"lam must be in \[0, 1\]"):
            call(lam)
    store, index, one = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 1]), torch.ones(2)
    out = torch.zeros(2, 3, 4, 4)
    boxes = torch.full((2, 2, 4), 3.0)
    boxes[1, 1, 3] = torch.nan
    for given in (dict(boxes=boxes), dict(lam=torch.tensor([0.5, torch.nan]))):
        with pytest.raises(ValueError, match="boxes must not be NaN"):
            F.mix_images(store, index, index, **{"lam": one, **given}, out=out, backend="triton")
        assert out[0].isfinite().all() and out[1].isnan().all()
    for name, value in itertools.product(("mean", "std"), (torch.nan, -0.1, 123.0)):
        norm = {"mean": torch.zeros(3), "std": torch.ones(3)}
        norm[name][-1] = value
        with pytest.raises(ValueError, match="std in"):
            F.mix_images(store, index, index, one, **norm, backend="triton")
    limits = {"mean": torch.tensor([0.0, 1.0, 0.5]), "std": torch.tensor([0.001, 2.0, 1.0])}
    F.mix_images(store, index, index, one, **limits, backend="triton")
    far = torch.full((2, 2, 4), torch.inf)
    assert F.mix_images(store, index, index, one, boxes=far, backend="triton").isfinite().all()


def test_indices_out_of_range_are_reported_and_not_followed() -> None:
    store, lam = torch.zeros(4, 2, 2, 3, dtype=torch.uint8), torch.ones(2)
    for bad in (4, -1, 2**62):
        index = torch.tensor([0, bad])
        out = torch.zeros(2, 3, 2, 2)
        with pytest.raises(IndexError, match="mix_images: an index or class id is out of range"):
            F.mix_images(store, index, index, lam, out=out, backend="triton")
        assert out[0].isfinite().all() and out[1].isnan().all()
        for call in (
            lambda i: F.mix_rows(torch.zeros(4, 3), i, i, lam, backend="triton"),
            lambda i: F.mix_labels(i, i, lam, 4, backend="triton"),
            lambda i: F.mix_embeddings(torch.zeros(4, 3), i[:, None], i[:, None], lam, backend="triton"),
            lambda i: F.mixed_cross_entropy(torch.zeros(2, 4), i, i, lam, backend="triton"),
            lambda i: F.group_counts(torch.zeros(2, 4), i * 0, i - (i < 0).long(), 4, backend="triton"),
        ):
            with pytest.raises(IndexError, match="out of range"):
                call(index)
    tables = draw_tables(GroupIndex([1, 0, 1]), MixPolicy())
    for damage in (lambda t: t[:-1], lambda t: torch.cat([t, t[:1]]), lambda t: t + 1):
        kernel = backends.implementation("draw", "triton", torch.device("cpu"))
        with pytest.raises(IndexError, match="tables are damaged"):
            kernel(damage(tables.packed.clone()), tables.members, 0, 0, 4)
    for length in (0, 1, 15):
        with pytest.raises(ValueError, match="tables must be packed draw tables"):
            kernel(tables.packed[:length].clone(), tables.members, 0, 0, 4)
    with pytest.raises(IndexError, match="out of range"):  # members of other examples
        kernel(tables.packed, tables.members[:-1], 0, 0, 4)
    few = torch.zeros(2, 2, 2, 3, dtype=torch.uint8), torch.zeros(2).long()
    with pytest.raises(IndexError, match="out of range"):
        backends.implementation("mix_image_batch", "triton", torch.device("cpu"))(
            *few, tables.packed, tables.members, torch.ones(3), torch.ones(3), False, 0.1, 1.0, 0.7, 1.3, False, 0, 0, 8, 2, 2,
            torch.float32, False,
        )  # fmt: skip
    images, labels, norm = torch.zeros(3, 2, 2, 3, dtype=torch.uint8), torch.zeros(3).long(), torch.ones(3)
    for start, counter in ((0, -1), (2**63 - 4, 5)):  # sample numbers out of range
        number = torch.tensor([counter])
        out = [torch.full((4,), 7), torch.full((4,), 7), torch.zeros(4), torch.full((4,), 7)]
        with pytest.raises(IndexError, match="out of range"):
            backends.implementation("draw_out", "triton", torch.device("cpu"))(
                tables.packed, tables.members, 0, start, number, *out
            )
        assert out[2].isnan().all() and not out[0].any() and not out[1].any() and (out[3] == -1).all()
        whole = [torch.zeros(4, dtype=torch.int64) for _ in range(5)]
        mixed = [torch.zeros(4, 3, 2, 2), *whole[:2], torch.zeros(4), *whole[2:]]
        with pytest.raises(IndexError, match="out of range"):
            backends.implementation("mix_image_batch_out", "triton", torch.device("cpu"))(
                images, labels, tables.packed, tables.members, norm, norm, False, 0.1, 1.0, 0.7, 1.3, False, 0, start, number,
                *mixed,
            )  # fmt: skip
        assert mixed[0].isnan().all() and mixed[3].isnan().all()


def test_triton_backend_needs_a_gpu_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, index, lam = torch.zeros(2, 3), torch.tensor([0]), torch.ones(1)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(library, "COMPILED_CUDA", "missing")
    with pytest.raises(ValueError, match="requires tensors on a GPU"):
        F.mix_rows(rows, index, index, lam, backend="triton")
    assert backends.serving("cuda") == "triton" and backends.serving("cpu") == "cpu"
    monkeypatch.setattr(library, "HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="requires the package triton"):
        F.mix_rows(rows, index, index, lam, backend="triton")
    assert backends.serving("cuda") == "reference"
    monkeypatch.setenv("SPURMIX_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="SPURMIX_BACKEND='triton'"):
        F.mix_rows(rows, index, index, lam)


def test_sizes_beyond_the_limits_are_rejected() -> None:
    store, lam = torch.zeros(1, 2, 2, 1, dtype=torch.uint8), torch.ones(1)
    zero, boxes = torch.tensor([0]), torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match="at most 32767"):
        F.mix_images(store, zero, zero, lam, boxes=boxes, size=(1, 32768), backend="triton")
    # An empty batch needs no memory. The limits are a grid axis of 65535 and 32-bit positions.
    launch = sys.modules["spurmix.kernels.launch"]
    for shape, size in (((20000, 10000, 3), (1, 1)), ((1, 1, 3), (20000, 10000))):
        with pytest.raises(ValueError, match="more than 536,862,720 values each"):
            launch._check_size(torch.empty(0, *shape, dtype=torch.uint8), *size)
    with pytest.raises(ValueError, match="33,553,921 classes are more than 33,553,920"):
        F.mix_labels(zero[:0], zero[:0], lam[:0], 33_553_921, backend="triton")


def compiled(*options: str) -> list[str]:
    """Output of compile_triton.py. It runs in another process, because this one interprets kernels."""
    script = Path(__file__).with_name("compile_triton.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, str(script), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split("\n")[:-1]


def check_compiled(lines: list[str]) -> None:
    kernels = "draw mix_images mix_image_batch mix_rows mix_labels cross_entropy cross_entropy_backward group_counts"
    kernels += " mix_embeddings sum_rows bert_embeddings bert_backward"
    for generation in (80, 90, 100):
        for kernel in kernels.split():
            assert any(line.startswith(f"{kernel}_kernel sm_{generation} ") for line in lines), (kernel, generation)
    assert all(line.endswith("stack=0") for line in lines), lines
    flat = [line for line in lines if re.search(r"size=224 .*VECTOR=(8|16)", line)]
    assert len(flat) >= 8 and not any("stores=0" in line for line in flat), flat
    assert not any("loads=0" in line for line in flat if "VECTOR=16" in line), flat  # 16-byte loads
    rows = [line for line in lines if line.startswith(("mix_rows", "cross_entropy")) and "ALIGN=1 " not in line]
    assert len(rows) > 8 and not any("loads=0" in line for line in rows if "num_warps=4" in line), rows


@pytest.mark.kernels
def test_compiles_for_gpus_without_spills() -> None:
    check_compiled(compiled())


@pytest.mark.slow
def test_all_configurations_compile_without_spills() -> None:
    check_compiled(compiled("--all"))
