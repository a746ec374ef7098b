"""CUDA kernels against the reference: an emulation of CUDA threads runs them on the host, and nvcc, if it is installed, compiles
them for three GPU generations."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import emulated
import numpy as np
import pytest
import torch
from comparison import (
    FLOATS,
    TOLERANCE,
    altered_tables,
    check_altered_draw,
    close,
    compare_group_counts,
    pairs,
    random_draws,
    random_tables,
    summed_tables,
    with_and_without_members,
)  # fmt: skip
from hypothesis import settings
from samples import NAMES, SAMPLES, call_with_wrong_tensors

from spurmix import Beta, GroupIndex, MixPolicy, policies
from spurmix.ops import device_errors, library
from spurmix.ops import functional as F
from spurmix.ops.reference import draw as reference_draw
from spurmix.ops.reference.cross_entropy import MEAN, mixed_cross_entropy_with_grad
from spurmix.ops.tables import draw_tables

WIDE = [*FLOATS, torch.float64]


def test_every_op_has_a_cuda_kernel(built: Any) -> None:
    assert set(built[1]) == set(library.OPERATORS)


@settings(max_examples=15)
@random_draws
def test_draws_are_equal_bit_for_bit(
    n: int, labels: int, seed: int, start: int, count: int, replacement: bool, partners: bool, strata: Any
) -> None:
    draw = emulated.load()[1]["draw"]
    tables = random_tables(n, labels, replacement, partners, strata)
    for packed, members in with_and_without_members(tables):
        arguments = (packed, members, seed, start, count, torch.tensor([3]))
        for a, b in zip(draw(*arguments), reference_draw.draw(*arguments), strict=True):
            assert torch.equal(a, b)


def test_tables_beyond_shared_memory(rng: np.random.Generator) -> None:
    """With thousands of slots and hundreds of groups, most sections are in global memory only."""
    index = GroupIndex(rng.integers(0, 40, 4000), rng.integers(0, 20, 4000))
    policy = MixPolicy(
        weights=rng.random(index.num_groups) + 0.01, partner=rng.random((index.num_groups,) * 2), lam=Beta(1.0)
    )
    tables = draw_tables(index, policy)
    assert tables.packed.numel() > 100_000
    arguments = (tables.packed, tables.members, 7, 2**50, 500)
    actual = emulated.load()[1]["draw"](*arguments)
    assert all(torch.equal(a, b) for a, b in zip(actual, reference_draw.draw(*arguments), strict=True))


# (height, width) whose images consist of whole 16-byte vectors; planes do too; rows consist of whole words; none of these.
SIZES = [(16, 8), (8, 32), (6, 6), (7, 13)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_mix_images(cuda: Any, dtype: torch.dtype, last: bool, channels: int, rng: np.random.Generator) -> None:
    mean, std = torch.rand(channels), torch.rand(channels) + 0.5
    for (height, width), (crop, flip) in itertools.product(SIZES, itertools.product((False, True), repeat=2)):
        whole = torch.from_numpy(rng.integers(0, 256, (14, height, width, channels), dtype=np.uint8))
        sizes = [(5, 12), (33, 7), (1, 1)] if crop else [(height, width)]
        for store, size, batch in itertools.product((whole, whole[1::2]), sizes, (7, 1) if not crop else (3,)):
            index, partner, lam = pairs(rng, len(store), batch)
            boxes = torch.from_numpy(rng.uniform(-3, 20, (batch, 2, 4)).astype(np.float32)) if crop else None
            flips = torch.from_numpy(rng.integers(0, 2, (batch, 2))).bool() if flip else None
            options: Any = dict(
                mean=mean, std=std, boxes=boxes, flips=flips, size=size, dtype=dtype, channels_last=last
            )
            expected = F.mix_images(store, index, partner, lam, **options, backend="reference")
            actual = F.mix_images(store, index, partner, lam, **options, backend="cuda")
            close(actual, expected)
            assert actual.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_outputs_and_images_that_are_not_aligned(cuda: Any, rng: np.random.Generator) -> None:
    flat = torch.from_numpy(rng.integers(0, 256, 5 * 16 * 16 * 3 + 1, dtype=np.uint8))
    index, partner, lam = pairs(rng, 5, 3)
    for shift in (0, 1):
        store = flat[shift : shift + 5 * 16 * 16 * 3].view(5, 16, 16, 3)
        out = torch.zeros(3 * 3 * 16 * 16 + 1)[shift : shift + 3 * 3 * 16 * 16].view(3, 3, 16, 16)
        F.mix_images(store, index, partner, lam, out=out, backend="cuda")
        close(out, F.mix_images(store, index, partner, lam, backend="reference"))
    assert F.mix_images(store, index[:0], index[:0], lam[:0], backend="cuda").shape == (0, 3, 16, 16)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [(16, 8), (9, 11)])
@pytest.mark.parametrize("augmented", [False, True])
def test_mix_image_batch(
    cuda: Any, dtype: torch.dtype, size: tuple[int, int], augmented: bool, rng: np.random.Generator
) -> None:
    store = torch.from_numpy(rng.integers(0, 256, (60, *size, 3), dtype=np.uint8))
    kinds = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    for keep, kind, last in zip((False, True, False, True, False), kinds, (0, 1, 1, 0, 1), strict=True):
        labels = torch.from_numpy(rng.integers(0, 3, 60)).to(kind)
        groups = GroupIndex(labels.numpy().astype(np.int64), rng.integers(0, 2, 60))
        weights = (
            np.ones((groups.num_groups,) * 2) * (np.arange(groups.num_groups) != 1)[:, None]
        )  # one group has no partners
        tables = draw_tables(groups, MixPolicy(partner=weights, lam=Beta(0.5), labels="keep" if keep else "mix"))
        augment = F.Augment(crop=True, flip=True, size=(6, 5)) if augmented else None
        for start, count in ((2**41, 9), (0, 1), (7, 0)):
            arguments: Any = dict(
                seed=5,
                start=start,
                count=count,
                mean=0.4,
                std=0.3,
                augment=augment,
                dtype=dtype,
                channels_last=bool(last),
            )
            expected = F.mix_image_batch(store, labels, tables, **arguments, backend="reference")
            actual = F.mix_image_batch(store, labels, tables, **arguments, backend="cuda")
            for name, a, b in zip(expected._fields, actual, expected, strict=True):
                if name == "input":
                    # Crop boxes agree within 1e-3 pixel.
                    torch.testing.assert_close(a, b, atol=2e-2 if augmented else TOLERANCE[dtype]["atol"], rtol=1e-2)
                else:
                    assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [(9, 72), (131, 8), (5, 70), (3, 129), (1, 1032), (1, 2056)])
def test_crops_of_several_strips(
    cuda: Any, dtype: torch.dtype, size: tuple[int, int], rng: np.random.Generator
) -> None:
    """Enlarging and shrinking crops, also beyond the edges of the image. One of the three samples has no partner."""
    lam = torch.tensor([1.0, 0.3, 0.0])
    for height, width in ((12, 8), (40, 96), (1, 4), (7, 9)):  # with and without rows of whole words
        store = torch.from_numpy(rng.integers(0, 256, (4, height, width, 3), dtype=np.uint8))
        corner = rng.uniform(-2, 5, (3, 2, 2))
        for scale in (0.4, 1.0, 1.7):
            extent = np.broadcast_to(np.array([height, width]) * scale, (3, 2, 2))
            boxes = torch.from_numpy(np.concatenate([corner, extent], 2).astype(np.float32))
            flips = torch.tensor([[0, 1], [1, 0], [1, 1]], dtype=torch.uint8)
            index, partner, _ = pairs(rng, 4, 3)
            for last in (True, False):
                options: Any = dict(
                    boxes=boxes, flips=flips, size=size, dtype=dtype, channels_last=last, mean=0.4, std=0.3
                )
                expected = F.mix_images(store, index, partner, lam, **options, backend="reference")
                close(F.mix_images(store, index, partner, lam, **options, backend="cuda"), expected)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("size", [(16, 3), (4, 4), (4, 3), (3, 3)])
def test_more_samples_than_a_block_draws_at_once(
    cuda: Any, size: tuple[int, int], crop: bool, rng: np.random.Generator
) -> None:
    """Three blocks share 130 samples: each has more than 32, and parts of some samples."""
    store = torch.from_numpy(rng.integers(0, 256, (60, *size, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 3, 60))
    groups = GroupIndex(labels.numpy(), rng.integers(0, 2, 60))
    tables = draw_tables(groups, MixPolicy(partner=np.ones((groups.num_groups,) * 2), lam=Beta(0.5)))
    augment = F.Augment(flip=True, size=(4, 6)) if crop else None
    for last in (False, True):
        options: Any = dict(augment=augment, channels_last=last)
        options |= dict(seed=3, start=11, count=130, mean=0.4, std=0.3)
        found = [F.mix_image_batch(store, labels, tables, **options, backend=b) for b in ("reference", "cuda")]
        torch.testing.assert_close(found[1].input, found[0].input, atol=2e-2 if crop else 5e-6, rtol=5e-6)
        assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))
        if not crop:
            chosen = found[0].index, found[0].partner, found[0].lam
            given = [
                F.mix_images(store, *chosen, mean=0.4, std=0.3, channels_last=last, backend=b)
                for b in ("reference", "cuda")
            ]
            close(given[1], given[0])


@pytest.mark.parametrize("kind", WIDE, ids=str)
@pytest.mark.parametrize("out", WIDE, ids=str)
def test_rows_and_labels(cuda: Any, kind: torch.dtype, out: torch.dtype, rng: np.random.Generator) -> None:
    table = torch.from_numpy(rng.standard_normal((10, 512))).to(kind)
    for rows, width, batch in ((table[::2], 512, 3), (table, 333, 4), (table, 1, 1), (table, 17, 0)):
        index, partner, lam = pairs(rng, len(rows), batch)
        expected = F.mix_rows(rows[:, :width], index, partner, lam, dtype=out, backend="reference")
        actual = F.mix_rows(rows[:, :width], index, partner, lam, dtype=out, backend="cuda")
        torch.testing.assert_close(actual, expected, **TOLERANCE[max(kind, out, key=lambda d: TOLERANCE[d]["rtol"])])
        expected = F.mix_labels(index, partner, lam, 10, dtype=out, backend="reference")
        close(F.mix_labels(index, partner, lam, 10, dtype=out, backend="cuda"), expected)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient(
    cuda: Any, dtype: torch.dtype, reduction: str, smoothing: float, rng: np.random.Generator
) -> None:
    for batch, classes, odd in ((1, 1, False), (11, 2, False), (9, 1000, False), (3, 5000, True), (10, 37, True)):
        logits = torch.from_numpy(rng.standard_normal((batch, classes + odd)) * 5).to(dtype)[:, :classes]
        label, partner, lam = pairs(rng, classes, batch)
        found = []
        for backend in ("reference", "cuda"):
            x = logits.detach().clone() if not odd else logits.detach()
            x = x.requires_grad_()
            loss = F.mixed_cross_entropy(
                x, label, partner, lam, reduction=reduction, label_smoothing=smoothing, backend=backend
            )
            found.append((loss.detach(), *torch.autograd.grad(loss, x, torch.full_like(loss, 0.7))))
        close(found[1][0], found[0][0])
        close(found[1][1], found[0][1])


@pytest.mark.parametrize("classes", [6, 5000])
def test_loss_of_infinite_and_missing_logits(cuda: Any, classes: int, rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.standard_normal((7, classes)).astype(np.float32))
    logits[0, 1] = -torch.inf
    logits[1, 2] = torch.inf
    logits[2, 3] = torch.nan
    logits[3] = -torch.inf
    logits[4, classes - 1] = torch.inf
    logits[5] += 3000  # must not lose precision
    label = torch.tensor([1, 2, 0, 0, 0, 1, 1])
    partner, lam = torch.tensor([0, 2, 0, 1, classes - 1, 2, 1]), torch.tensor([0.0, 0.5, 1, 1, 1, 0, 0.3])
    for smoothing in (0.0, 0.1):
        options: Any = dict(reduction="none", label_smoothing=smoothing)
        expected = F.mixed_cross_entropy(logits, label, partner, lam, **options, backend="reference")
        close(F.mixed_cross_entropy(logits, label, partner, lam, **options, backend="cuda"), expected)
    empty = torch.zeros(0, classes)
    none = torch.zeros(0, dtype=torch.int64)
    assert F.mixed_cross_entropy(empty, none, none, torch.zeros(0), backend="cuda").isnan()
    assert F.mixed_cross_entropy(empty, none, none, torch.zeros(0), reduction="sum", backend="cuda") == 0


def test_gradcheck(cuda: Any, rng: np.random.Generator) -> None:
    rows = torch.from_numpy(rng.standard_normal((5, 3))).requires_grad_()
    index, partner, lam = pairs(rng, 5, 4)
    assert torch.autograd.gradcheck(lambda r: F.mix_rows(r, index, partner, lam, backend="cuda"), (rows,))
    label, other, weight = pairs(rng, 3, 5)
    assert torch.autograd.gradcheck(
        lambda x: F.mixed_cross_entropy(x, label, other, weight, label_smoothing=0.1, backend="cuda"), (rows,)
    )


def test_loss_with_its_gradient(cuda: Any, built: Any, rng: np.random.Generator) -> None:
    for dtype in (torch.float32, torch.float64):
        logits = torch.from_numpy(rng.standard_normal((5, 40))).to(dtype)
        arguments = (logits, *pairs(rng, 40, 5), MEAN, 0.1)
        actual, expected = (k(*arguments) for k in (built[1]["mixed_cross_entropy_with_grad"], mixed_cross_entropy_with_grad))  # fmt: skip
        for a, b in zip(actual, expected, strict=True):
            close(a, b)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_group_counts(cuda: Any, dtype: torch.dtype, rng: np.random.Generator) -> None:
    compare_group_counts("cuda", ((1, 1, 1), (9, 5, 3), (4, 4800, 40), (20, 64, 70), (0, 3, 2)), dtype, rng)


def test_indices_out_of_range_are_reported_and_not_followed(cuda: ModuleType) -> None:
    lam = torch.ones(2)
    for bad, side in itertools.product((4, -1, 2**62), (8, 7)):
        store = torch.zeros(4, side, side, 3, dtype=torch.uint8)
        index = torch.tensor([0, bad])
        for boxes in (None, torch.full((2, 2, 4), 3.0)):
            out = torch.zeros(2, 3, side, side)
            F.mix_images(store, index, index, lam, boxes=boxes, out=out, backend="cuda")
            assert out[0].isfinite().all() and out[1].isnan().all()
            assert cuda.take_flag(0) == device_errors.BAD_INDEX
        calls: list[Callable[[torch.Tensor], torch.Tensor]] = [
            lambda i: F.mix_rows(torch.zeros(4, 3), i, i, lam, backend="cuda"),
            lambda i: F.mix_labels(i, i, lam, 4, backend="cuda"),
            lambda i: F.mixed_cross_entropy(torch.zeros(2, 4), i, i, lam, reduction="none", backend="cuda"),
        ]
        for call in calls:
            assert [bool(row.isnan().all()) for row in call(index)] == [False, True]
            assert cuda.take_flag(0) == device_errors.BAD_INDEX
        counts = F.group_counts(torch.zeros(2, 4), index * 0, index - (index < 0).long(), 4, backend="cuda")
        assert counts.sum() == 2 and cuda.take_flag(0) == device_errors.BAD_INDEX
    with pytest.raises(IndexError, match="out of range"):
        device_errors.raise_errors(device_errors.BAD_INDEX)


def test_damaged_tables_are_reported_and_not_followed(cuda: ModuleType, built: Any) -> None:
    kernels = built[1]
    tables = draw_tables(GroupIndex([0, 1, 1]), MixPolicy())
    store, labels = torch.zeros(3, 4, 4, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    counter = torch.tensor([-1])
    for damage in (
        lambda t: t[:-1],
        lambda t: torch.cat([t, t[:1]]),
        lambda t: t + 1,
        lambda t: t[:5],
        lambda t: t[:0],
    ):
        packed = damage(tables.packed.clone()).contiguous()
        assert kernels["draw"](packed, tables.members, 0, 0, 4)[2].isnan().all()
        assert cuda.take_flag(0) == device_errors.BAD_TABLES
        batch = kernels["mix_image_batch"](
            store, labels, packed, tables.members, torch.zeros(3), torch.ones(3), True, 0.1, 1.0, 0.7, 1.3, True, 0, 0, 4,
            4, 4, torch.float32, False,
        )  # fmt: skip
        assert batch[0].isnan().all() and batch[3].isnan().all() and (batch[4] == 0).all()
        assert cuda.take_flag(0) == device_errors.BAD_TABLES
    assert kernels["draw"](tables.packed, tables.members, 0, 0, 4, counter)[2].isnan().all()
    with pytest.raises(IndexError, match="draw tables of an earlier call are damaged"):
        device_errors.raise_errors(cuda.take_flag(0))


@pytest.mark.parametrize("shape", [(2, 2), (40, 3), (3, 40), (130, 2)])
def test_draws_of_running_sums(built: Any, shape: tuple[int, int], rng: np.random.Generator) -> None:
    number = rng.permutation(np.repeat(np.arange(shape[0] * shape[1]), 2))
    tables = summed_tables(GroupIndex(number // shape[1], number % shape[1]), policies.lisa())
    arguments = (tables.packed, tables.members, 3, 2**40, 500)
    for a, b in zip(built[1]["draw"](*arguments), reference_draw.draw(*arguments), strict=True):
        assert torch.equal(a, b)


def test_altered_tables_are_reported_and_not_followed(cuda: ModuleType, built: Any) -> None:
    """Any word of a section may have any value: a sample is valid, or NaN and reported."""
    store, labels = torch.zeros(10, 4, 4, 3, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
    reported = 0
    for packed, members in altered_tables(25):
        drawn = built[1]["draw"](packed, members, 1, 5, 40)
        flag = cuda.take_flag(0)
        assert flag in (0, device_errors.BAD_TABLES)
        check_altered_draw(drawn, bool(flag))
        reported += bool(flag)
        batch = built[1]["mix_image_batch"](
            store, labels, packed, members, torch.zeros(3), torch.ones(3), False, 0.1, 1.0, 0.7, 1.3, False, 1, 5, 40,
            4, 4, torch.float32, False,
        )  # fmt: skip
        assert cuda.take_flag(0) == flag
        assert torch.equal(batch[0].isnan().flatten(1).all(dim=1), drawn[3] < 0)
    assert reported > 20


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("draw", lambda t: (t.packed.int(), t.members, 0, 0, 4), "tables has the wrong dtype"),
        ("draw", lambda t: (t.packed, t.members.float(), 0, 0, 4), "members must be int32 or int64"),
        ("draw", lambda t: (t.packed, t.members, -1, 0, 4), "seed must be in"),
        ("draw", lambda t: (t.packed, t.members, 0, 2**63 - 2, 4), "start and count"),
        ("mix_rows", lambda t: (torch.zeros(2, 3).T, *pairs(np.random.default_rng(0), 2, 2), torch.float32), "contiguous"),
        ("mix_rows", lambda t: (torch.zeros(2, 3), *pairs(np.random.default_rng(0), 2, 2)[:2], torch.ones(3), torch.float32), "lam has size 3"),
        ("mix_rows", lambda t: (torch.zeros(2, 3), *pairs(np.random.default_rng(0), 2, 2), torch.int32), "must be float32"),
        ("group_counts", lambda t: (torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2).long(), torch.zeros(3)), "rank 1|must be"),
    ],
)  # fmt: skip
def test_arguments_are_checked_on_the_host(
    built: Any, name: str, arguments: Callable[..., tuple[Any, ...]], message: str
) -> None:
    tables = draw_tables(GroupIndex([0, 1, 0]), MixPolicy())
    with pytest.raises(RuntimeError, match=message):
        built[1][name](*arguments(tables))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("EMULATED_OLD", 'compute capability 7.0, but the CUDA kernels need 8.0 or higher; use backend="triton"'),
        ("EMULATED_CAPTURE", "a CUDA graph cannot capture; call an operator once before the capture"),
    ],
)
def test_first_call_on_an_unsupported_device_or_in_a_capture(built: Any, state: str, message: str) -> None:
    script = """
import torch, emulated
module, kernels = emulated.load()
try:
    kernels["mix_labels"](torch.zeros(2).long(), torch.zeros(2).long(), torch.ones(2), 3, torch.float32)
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, state: "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and message in done.stdout, done


@pytest.mark.parametrize(("name", "arguments"), SAMPLES, ids=NAMES)
def test_wrong_tensors_are_rejected_or_harmless(name: str, arguments: tuple[Any, ...], built: Any) -> None:
    """Without the checks of the public functions. Under `make sanitize`, an access beyond a tensor fails this test."""
    call_with_wrong_tensors(built[1][name], arguments)
    built[0].take_flag(0)


def test_cuda_backend_needs_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "COMPILED_CUDA", "missing")
    rows, index, lam = torch.zeros(2, 3), torch.tensor([0]), torch.ones(1)
    with pytest.raises(RuntimeError, match="backend='cuda': the compiled kernels are not available"):
        F.mix_rows(rows, index, index, lam, backend="cuda")
    F.check("cpu")
