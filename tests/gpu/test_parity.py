"""Compares each op on the GPU with the reference on the CPU, for all dtypes, layouts and backends, with random inputs."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spurmix import GroupIndex, MixPolicy, Uniform
from spurmix.ops import functional as F
from spurmix.ops.backends import implementation
from spurmix.ops.tables import draw_tables

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
WIDE = [*FLOATS, torch.float64]
TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    torch.float64: dict(rtol=1e-11, atol=1e-11),
    torch.float32: dict(rtol=5e-6, atol=5e-6),
    torch.float16: dict(rtol=2.0**-9, atol=2.0**-9),
    torch.bfloat16: dict(rtol=2.0**-7, atol=2.0**-7),
}


def close(actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual.cpu(), expected, equal_nan=True, **{**TOLERANCE[expected.dtype], **tolerance})


def pairs(rng: np.random.Generator, n: int, batch: int) -> list[Tensor]:
    lam = torch.from_numpy(rng.random(batch).astype(np.float32))
    lam[::3] = 1.0
    return [*(torch.from_numpy(rng.integers(0, n, batch)) for _ in range(2)), lam]


def both(call: Any, device: torch.device, backend: str, tensors: list[Tensor]) -> tuple[Any, Any]:
    """Return `call(backend, *tensors)` of `backend` on the device, and of the reference on the CPU."""
    return call(backend, *(t.to(device) for t in tensors)), call("reference", *tensors)


@pytest.mark.parametrize("members", [1, 17, 300, 70000])
def test_draws_equal_those_of_the_cpu(
    members: int, device: torch.device, backend: str, scale: SimpleNamespace, rng: np.random.Generator
) -> None:
    labels, attributes = rng.integers(0, 5, members), rng.integers(-1, 3, members)
    groups = GroupIndex(labels, attributes)
    weights = rng.random((groups.num_groups,) * 2) * (rng.random((groups.num_groups, 1)) < 0.8)
    for replacement, strata in ((False, "groups"), (True, "classes"), (False, "all")):
        tables = draw_tables(groups, MixPolicy(strata, partner=weights, lam=Uniform(), replacement=replacement))
        there = tables.to(device)
        for start in (0, 2**31 - 7, 2**40 + int(rng.integers(0, 2**40)), 2**62):
            count = scale.draws // 12
            seed = int(rng.integers(0, 2**63))
            cpu = F.draw(tables, seed=seed, start=start, count=count)
            for a, b in zip(F.draw(there, seed=seed, start=start, count=count, backend=backend), cpu, strict=True):
                assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_mix_images(
    dtype: torch.dtype, last: bool, channels: int, device: torch.device, backend: str, scale: SimpleNamespace,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    for shape, size, batch in (((scale.side,) * 2, (scale.side,) * 2, scale.batch), ((31, 17), (31, 17), 2), ((19, 45), (33, 8), 2),
                               ((7, 9), (7, 9), 0), ((1, 1), (1, 1), 1)):  # fmt: skip
        store = torch.from_numpy(rng.integers(0, 256, (9, *shape, channels), dtype=np.uint8))
        mean = torch.from_numpy(rng.random(channels).astype(np.float32))
        std = torch.from_numpy(rng.uniform(0.2, 1.5, channels).astype(np.float32))
        flips = torch.from_numpy(rng.integers(0, 2, (batch, 2)).astype(np.uint8))
        boxes = torch.from_numpy(rng.uniform(-3, max(shape), (batch, 2, 4)).astype(np.float32))
        for crop, flip in itertools.product((False, True), repeat=2):
            if size != shape and not crop:
                continue

            def call(
                chosen: str, images: Tensor, *rest: Tensor, crop: bool = crop, flip: bool = flip, size: Any = size
            ) -> Any:
                index, partner, lam, mean, std, boxes, flips = rest
                options: Any = dict(boxes=boxes if crop else None, flips=flips if flip else None, size=size)
                return F.mix_images(
                    images,
                    index,
                    partner,
                    lam,
                    mean=mean,
                    std=std,
                    dtype=dtype,
                    channels_last=last,
                    backend=chosen,
                    **options,
                )

            actual, expected = both(call, device, backend, [store, *pairs(rng, 9, batch), mean, std, boxes, flips])
            close(actual, expected)
            assert actual.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_mix_image_batch(
    dtype: torch.dtype, last: bool, keep: bool, device: torch.device, backend: str, scale: SimpleNamespace,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    store = torch.from_numpy(rng.integers(0, 256, (80, scale.side, scale.side + 1, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 3, 80))
    groups = GroupIndex(labels.numpy(), rng.integers(0, 2, 80))
    policy = MixPolicy(partner=np.ones((groups.num_groups,) * 2), lam=Uniform(), labels="keep" if keep else "mix")
    tables = draw_tables(groups, policy)
    for augment in (None, F.Augment(crop=False, flip=True), F.Augment(size=(scale.side - 3, 20))):

        def call(chosen: str, images: Tensor, labels: Tensor, augment: Any = augment) -> Any:
            return F.mix_image_batch(
                images, labels, tables.to(images.device), seed=5, start=2**41, count=scale.batch, mean=0.4, std=0.3, augment=augment,
                dtype=dtype, channels_last=last, backend=chosen,
            )  # fmt: skip

        actual, expected = both(call, device, backend, [store, labels])
        for name, a, b in zip(expected._fields, actual, expected, strict=True):
            if name == "input" and augment is not None and augment.crop:
                # Boxes agree to 1e-3 pixel only, and neighboring random bytes differ by up to 255.
                close(a, b, atol=2e-2)
            elif name == "input":
                close(a, b)
            else:
                assert torch.equal(a.cpu(), b), name


def test_many_small_samples(
    device: torch.device, backend: str, scale: SimpleNamespace, rng: np.random.Generator
) -> None:
    """More samples than a block draws at once. Blocks start and end inside samples."""
    count = 7 if scale.batch < 8 else 30011
    labels = rng.integers(0, 3, 80)
    groups = GroupIndex(labels, rng.integers(0, 2, 80))
    tables = draw_tables(groups, MixPolicy(partner=np.ones((groups.num_groups,) * 2), lam=Uniform()))
    for side in (4, 3):
        store = torch.from_numpy(rng.integers(0, 256, (80, side, side, 3), dtype=np.uint8))
        for augment, last in itertools.product((None, F.Augment(size=5)), (True, False)):
            actual, expected = (
                F.mix_image_batch(
                    store.to(place), torch.from_numpy(labels).to(place), tables.to(place), seed=5, start=7, count=count,
                    augment=augment, channels_last=last, backend=chosen,
                )
                for chosen, place in ((backend, device), ("auto", torch.device("cpu")))
            )  # fmt: skip
            close(actual[0], expected[0], atol=2e-2 if augment else 5e-6)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(actual[1:], expected[1:], strict=True))


@pytest.mark.device_only
def test_beyond_32_bits(device: torch.device, backend: str) -> None:
    """Images of more than 2^32 bytes, outputs and tables of more than 2^31 elements."""
    one = torch.ones(3, device=device) * torch.tensor([1.0, 0.5, 0.25], device=device)
    store = torch.randint(0, 256, (22000, 256, 256, 3), dtype=torch.uint8, device=device)
    index = torch.tensor([21999, 21850, 3], device=device)
    partner = torch.tensor([21900, 0, 21998], device=device)
    boxes = torch.tensor([3.0, 5.0, 100.0, 200.0], device=device).expand(3, 2, 4).contiguous()
    for crop in (None, boxes):
        options: Any = dict(boxes=crop, size=(256, 256), channels_last=True)
        few = torch.cat([store[index], store[partner]]).cpu()
        expected = F.mix_images(few, torch.arange(3), torch.arange(3, 6), one.cpu(), **options, backend="reference")
        close(F.mix_images(store, index, partner, one, **options, backend=backend), expected)
    del store
    small = torch.randint(0, 256, (64, 128, 128, 3), dtype=torch.uint8, device=device)
    many = torch.randint(0, 64, (2, 43700), device=device)
    lam = torch.rand(43700, device=device)
    options = dict(dtype=torch.bfloat16, channels_last=True)
    mixed = F.mix_images(small, *many, lam, **options, backend=backend)
    assert mixed.numel() > 2**31
    tail = F.mix_images(small.cpu(), *many[:, -3:].cpu(), lam[-3:].cpu(), **options, backend="reference")
    close(mixed[-3:], tail)
    del mixed
    rows = torch.zeros(2**20 + 8, 2056, device=device, dtype=torch.bfloat16)
    rows[-2:] = torch.randn(2, 2056, device=device)
    chosen = torch.tensor([2**20 + 7, 0, 2**20 + 6], device=device)
    expected = F.mix_rows(rows[chosen].cpu(), torch.arange(3), torch.arange(3).flip(0), one.cpu(), backend="reference")
    close(F.mix_rows(rows, chosen, chosen.flip(0), one, backend=backend), expected)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_rows_and_labels(
    dtype: torch.dtype, device: torch.device, backend: str, scale: SimpleNamespace, rng: np.random.Generator
) -> None:
    for columns, batch in ((2048, 7), (1001, 5), (1, 3), (17, 0)):
        rows = torch.from_numpy(rng.standard_normal((scale.rows, columns))).to(dtype)
        chosen = pairs(rng, scale.rows, batch)
        close(*both(lambda b, r, *p: F.mix_rows(r, *p, backend=b), device, backend, [rows, *chosen]))
        for out in (torch.float32, dtype):
            close(*both(lambda b, *p, d=out: F.mix_labels(*p, scale.rows, dtype=d, backend=b), device, backend, chosen))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_mixed_embeddings(
    dtype: torch.dtype,
    masked: bool,
    device: torch.device,
    backend: str,
    scale: SimpleNamespace,
    rng: np.random.Generator,
) -> None:
    for batch, length, rows, columns in (
        (scale.batch, 64, scale.rows, 768),
        (3, 5, 40, 1030),
        (1, 1, 1, 1),
        (0, 3, 4, 5),
    ):
        weight = torch.from_numpy(rng.standard_normal((rows, columns))).to(dtype)
        ids, partner = (torch.from_numpy(rng.integers(0, rows, (batch, length))) for _ in range(2))
        lam = torch.from_numpy(rng.random(batch).astype(np.float32))
        masks = [torch.from_numpy(rng.random((batch, length)) < 0.7) for _ in range(2 if masked else 0)]
        upstream = torch.from_numpy(rng.standard_normal((batch, length, columns))).to(dtype)

        def call(chosen: str, x: Tensor, upstream: Tensor, *rest: Tensor, padding: int = rows // 2) -> Any:
            x = x.detach().requires_grad_()
            mixed = F.mix_embeddings(x, *rest, padding_idx=padding, backend=chosen)
            mixed.backward(upstream)
            assert x.grad is not None
            return mixed.detach(), x.grad

        for a, b in zip(*both(call, device, backend, [weight, upstream, ids, partner, lam, *masks]), strict=True):
            close(a, b, atol=max(1e-4 if dtype == torch.float32 else 0.0, TOLERANCE[dtype]["atol"] * 4))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_bert_embeddings(
    dtype: torch.dtype,
    masked: bool,
    device: torch.device,
    backend: str,
    scale: SimpleNamespace,
    rng: np.random.Generator,
) -> None:
    for batch, length, rows, columns in (
        (scale.batch, 64, scale.rows, 768),
        (3, 5, 40, 1031),
        (2, 3, 9, 1),
        (0, 3, 4, 5),
    ):
        shapes = ((rows, columns), (length + 2, columns), (2, columns), (columns,), (columns,))
        tables = [torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in shapes]
        ids, partner, types = (torch.from_numpy(rng.integers(0, n, (batch, length))) for n in (rows, rows, 2))
        lam = torch.from_numpy(rng.random(batch).astype(np.float32))
        masks = [torch.from_numpy(rng.random((batch, length)) < 0.7) for _ in range(2 if masked else 0)]
        upstream = torch.from_numpy(rng.standard_normal((batch, length, columns))).to(dtype)

        def call(chosen: str, upstream: Tensor, types: Tensor, *rest: Tensor) -> Any:
            found = [t.detach().requires_grad_() for t in rest[:5]]
            out = F.mix_bert_embeddings(
                *found, *rest[5:], token_type_ids=types, eps=1e-3, padding_idx=0, backend=chosen
            )
            out.backward(upstream)
            return out.detach(), *(t.grad for t in found)

        for a, b in zip(
            *both(call, device, backend, [upstream, types, *tables, ids, partner, lam, *masks]), strict=True
        ):
            close(a, b, atol=1e-9 if dtype == torch.float64 else max(2e-3, TOLERANCE[dtype]["atol"] * 4))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient(
    dtype: torch.dtype, reduction: str, smoothing: float, device: torch.device, backend: str, scale: SimpleNamespace,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    for batch, classes in ((scale.batch, 1000), (3, scale.classes), (5, 2), (9, 1001), (1, 1)):
        logits = torch.from_numpy(rng.standard_normal((batch, classes)) * 5).to(dtype)

        def call(chosen: str, x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            x = x.detach().requires_grad_()
            loss = F.mixed_cross_entropy(x, *rest, reduction=reduction, label_smoothing=smoothing, backend=chosen)
            loss.backward(torch.full_like(loss, 0.7))
            assert x.grad is not None
            return loss.detach(), x.grad

        for a, b in zip(*both(call, device, backend, [logits, *pairs(rng, classes, batch)]), strict=True):
            close(a, b)
        fused = [
            implementation("mixed_cross_entropy_with_grad", chosen, place)(
                logits.to(place), *(t.to(place) for t in pairs(np.random.default_rng(1), classes, batch)), 1, smoothing
            )
            for chosen, place in ((backend, device), ("reference", torch.device("cpu")))
        ]
        for a, b in zip(*fused, strict=True):
            close(a, b)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_group_counts(
    dtype: torch.dtype, device: torch.device, backend: str, scale: SimpleNamespace, rng: np.random.Generator
) -> None:
    for batch, classes, groups in ((1, 1, 1), (5 * scale.batch, 7, 5), (4, 2500, 40)):
        logits = torch.from_numpy(rng.integers(-2, 3, (batch, classes))).to(dtype)  # with ties
        logits[0, classes // 2] = torch.nan
        label = torch.from_numpy(rng.integers(0, min(classes, 3), batch))
        for group in (
            torch.from_numpy(rng.integers(-1, groups, batch)),
            torch.from_numpy(rng.random((batch, groups)) < 0.4),
        ):
            actual, expected = both(
                lambda b, *t, g=groups: F.group_counts(*t, g, backend=b), device, backend, [logits, label, group]
            )
            assert torch.equal(actual.cpu(), expected)
