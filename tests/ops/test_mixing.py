"""Mixing operators: every backend is compared with an independent float64 model. Odd shapes, views, dtypes and layouts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spurmix import GroupIndex, ImageSource, policies
from spurmix.ops import functional as F
from spurmix.ops.reference import draw as reference_draw

HALF_TOLERANCE = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
MEAN, STD = (0.485, 0.456, 0.406, 0.5, 0.1), (0.229, 0.224, 0.225, 0.25, 0.3)


def pair(rng: np.random.Generator, n: int, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    index, partner = (torch.from_numpy(rng.integers(0, n, batch)) for _ in range(2))
    lam = torch.from_numpy(rng.random(batch).astype(np.float32))
    lam[::3] = 1.0
    lam[1::5] = 0.0
    return index, partner, lam


def model(images: np.ndarray, index: Any, partner: Any, lam: Any, boxes: Any, flips: Any, size: Any) -> np.ndarray:
    """The mix in float64, by the formulas of the documentation: `[B, C, h, w]`."""
    n, height, width, channels = images.shape
    out = np.zeros((len(index), channels, *size))
    for b in range(len(index)):
        sides = []
        for k, row in enumerate((index[b], partner[b])):
            box = boxes[b, k] if boxes is not None else np.array([0, 0, height, width])
            q = [int(np.rint(np.float64(v) * 65536)) for v in box]
            taps = []
            for start, extent, length, count in ((q[0], q[2], height, size[0]), (q[1], q[3], width, size[1])):
                p = [
                    min(max(start + (2 * j + 1) * extent // (2 * count) - 32768, 0), (length - 1) << 16)
                    for j in range(count)
                ]
                i0 = np.array([v >> 16 for v in p])
                taps.append((i0, np.minimum(i0 + 1, length - 1), np.array([v & 65535 for v in p]) / 65536))
            (y0, y1, fy), (x0, x1, fx) = taps
            if flips is not None and flips[b, k]:
                x0, x1, fx = x0[::-1], x1[::-1], fx[::-1]
            image = images[row].astype(np.float64)
            lines = image[:, x0] + fx[None, :, None] * (image[:, x1] - image[:, x0])
            sides.append(lines[y0] + fy[:, None, None] * (lines[y1] - lines[y0]))
        value = lam[b] * sides[0] + (1 - lam[b]) * sides[1]
        value = (value / 255 - np.array(MEAN[:channels])) / np.array(STD[:channels])
        out[b] = value.transpose(2, 0, 1)
    return out


def close(actual: torch.Tensor, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    if actual.dtype == torch.float32:
        np.testing.assert_allclose(actual.double().numpy(), expected, rtol=2e-6, atol=4e-6)
    else:
        rounded = torch.from_numpy(expected).to(torch.float32).to(actual.dtype)
        ulp = HALF_TOLERANCE[actual.dtype]
        np.testing.assert_allclose(actual.double().numpy(), rounded.double().numpy(), rtol=ulp, atol=1e-5)


SHAPES = [(1, 1, 1, 1), (3, 1, 17, 3), (4, 17, 1, 3), (5, 7, 9, 1), (3, 16, 16, 3), (2, 33, 67, 3), (4, 8, 31, 4),
          (3, 5, 6, 2), (3, 9, 5, 5), (2, 65, 64, 3)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_mix_images(
    backend: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    augment: str,
    rng: np.random.Generator,
) -> None:
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    batch = 7
    index, partner, lam = pair(rng, shape[0], batch)
    boxes = flips = None
    size = shape[1:3]
    if augment != "none":
        flips = torch.from_numpy(rng.integers(0, 2, (batch, 2)).astype(np.uint8))
    if augment == "crop":
        extent = np.array([*size, *size], dtype=np.float32)
        boxes = torch.from_numpy((rng.random((batch, 2, 4)) * extent).astype(np.float32))
        size = (max(1, size[0] - 2), size[1] + 5)
    out = F.mix_images(
        torch.from_numpy(images), index, partner, lam, mean=MEAN[: shape[3]], std=STD[: shape[3]], boxes=boxes,
        flips=flips, size=size, dtype=dtype, channels_last=channels_last, backend=backend,
    )  # fmt: skip
    assert out.dtype == dtype
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=layout)
    close(out, model(images, index.numpy(), partner.numpy(), lam.double().numpy(),
                     boxes.numpy() if boxes is not None else None,
                     flips.numpy() if flips is not None else None, size))  # fmt: skip


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(1, 30), st.integers(1, 70), st.randoms())
def test_compiled_equals_reference_on_any_box(h: int, w: int, c: int, oh: int, ow: int, random: Any) -> None:
    rng = np.random.default_rng(random.randint(0, 2**32))
    images = torch.from_numpy(rng.integers(0, 256, (3, h, w, c), dtype=np.uint8))
    index, partner, lam = pair(rng, 3, 4)
    wild = (rng.standard_normal((4, 2, 4)) * 60).astype(np.float32)
    wild[0, 0, 0], wild[1, 1, 2], wild[2, 0, 3] = -np.inf, np.inf, -1e30
    boxes = torch.from_numpy(wild)
    expected, actual = (
        F.mix_images(images, index, partner, lam, boxes=boxes, size=(oh, ow), backend=b) for b in ("reference", "auto")
    )
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)


SCALED = r"because pixels are scaled to \[0, 1\]; divide values for pixels from 0 to 255 by 255"


@pytest.mark.parametrize(("name", "value", "message"), [
    ("lam", torch.tensor([0.5, 1.5]), r"lam\[1\] = 1.5 must be in \[0, 1\]"),
    ("lam", torch.tensor([-0.1, 0.5]), r"lam\[0\] = -0.1 must be in \[0, 1\]"),
    ("lam", torch.tensor([0.5, torch.nan]), r"lam\[1\] = nan must be in \[0, 1\]"),
    ("boxes", torch.full((2, 2, 4), torch.nan), r"boxes\[0, 0\] must not be NaN"),
    ("mean", torch.tensor([0.5, 123.7, 0.5]), rf"mean\[1\] = 123\.7 must be in \[0, 1\], {SCALED}"),
    ("mean", torch.tensor([0.5, torch.nan, 0.5]), rf"mean\[1\] = nan must be in \[0, 1\], {SCALED}"),
    ("mean", [0.5, 123.7, 0.5], rf"mean = \[0\.5, 123\.7, 0\.5\] must be in \[0, 1\], {SCALED}"),
    ("mean", -1.0, rf"mean = -1\.0 must be in \[0, 1\], {SCALED}"),
    ("std", torch.tensor([0.5, 0.0, 0.5]), rf"std\[1\] = 0 must be in \[0\.001, 2\], {SCALED}"),
    ("std", torch.tensor([0.5, 1e-30, 0.5]), r"std\[1\] = 1e-30 must be in \[0\.001, 2\]"),
    ("std", torch.tensor([0.5, 0.5, torch.nan]), r"std\[2\] = nan must be in \[0\.001, 2\]"),
    ("std", torch.tensor([0.5, 0.5, torch.inf]), r"std\[2\] = inf must be in \[0\.001, 2\]"),
    ("std", torch.tensor([58.4, 57.1, 57.4]), rf"std\[0\] = 58\.4 must be in \[0\.001, 2\], {SCALED}"),
    ("std", (58.4, 57.1, 57.4), rf"std = \(58\.4, 57\.1, 57\.4\) must be in \[0\.001, 2\], {SCALED}"),
    ("std", 1e-30, r"std = 1e-30 must be in \[0\.001, 2\]"),
    ("std", 0, r"std = 0 must be in \[0\.001, 2\]"),
])  # fmt: skip
def test_values_that_are_not_possible(name: str, value: Any, message: str, backend: str) -> None:
    index, options = torch.tensor([0, 1]), dict(lam=torch.ones(2)) | {name: value}
    lam = options.pop("lam")
    with pytest.raises(ValueError, match=message):
        F.mix_images(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), index, index, lam, **options, backend=backend)


@pytest.mark.parametrize("kind", [torch.tensor, tuple])
def test_limits_of_the_normalization_are_accepted(kind: Any, backend: str) -> None:
    index = torch.tensor([0, 1])
    for mean, std in ((0.0, 0.001), (1.0, 2.0), (0.5, 1 / 255)):
        options: Any = dict(mean=kind([mean] * 3), std=kind([std] * 3), backend=backend)
        out = F.mix_images(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), index, index, torch.ones(2), **options)
        torch.testing.assert_close(out, torch.full_like(out, -mean / std))


@pytest.mark.parametrize("device_values", [True, False])
def test_image_sources_check_the_normalization(device_values: bool) -> None:
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    for mean, std, name in (
        ([123.7] * 3, [0.2] * 3, "mean"),
        ([0.5] * 3, [58.0] * 3, "std"),
        ([0.5] * 3, [1e-30] * 3, "std"),
    ):
        given: Any = [torch.tensor(v) if device_values else v for v in (mean, std)]
        with pytest.raises(ValueError, match=rf"{name}.* must be in .*divide values for pixels from 0 to 255 by 255"):
            ImageSource(images, mean=given[0], std=given[1])
        with pytest.raises(ValueError, match=rf"{name}.* must be in "):
            ImageSource(images).normalized(given[0], given[1])


def test_lam_outside_0_to_1_is_an_error_of_every_operator(backend: str) -> None:
    index, lam = torch.tensor([0, 1]), torch.tensor([0.5, 1.5])
    ids = torch.tensor([[0, 1], [1, 0]])
    for call in (
        lambda: F.mix_rows(torch.zeros(2, 3), index, index, lam, backend=backend),
        lambda: F.mix_labels(index, index, lam, 2, backend=backend),
        lambda: F.mixed_cross_entropy(torch.zeros(2, 3), index, index, lam, backend=backend),
        lambda: F.mixed_cross_entropy(torch.zeros(2, 3, requires_grad=True), index, index, lam, backend=backend),
        lambda: F.mix_embeddings(torch.zeros(2, 3), ids, ids, lam, backend=backend),
    ):
        with pytest.raises(ValueError, match=r"lam\[1\] = 1.5 must be in \[0, 1\]"):
            call()


def test_views_and_out(backend: str, rng: np.random.Generator) -> None:
    store = torch.from_numpy(rng.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8))
    index, partner, lam = pair(rng, 4, 5)
    expected = F.mix_images(store[::3].contiguous(), index, partner, lam, backend=backend)
    assert torch.equal(F.mix_images(store[::3], index, partner, lam, backend=backend), expected)
    for out in (torch.empty(5, 3, 6, 5), torch.empty(5, 3, 6, 5).to(memory_format=torch.channels_last)):
        before = out._version
        assert F.mix_images(store[::3], index, partner, lam, out=out, backend=backend) is out
        assert torch.equal(out, expected) and out._version > before
    spread = torch.stack([index, index], dim=1)[:, 0]
    assert not spread.is_contiguous()
    assert torch.equal(F.mix_images(store[::3], spread, partner, lam, backend=backend), expected)


def test_empty_batches(backend: str) -> None:
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    none, no_lam = torch.empty(0, dtype=torch.int64), torch.empty(0)
    assert F.mix_images(images, none, none, no_lam, backend=backend).shape == (0, 3, 4, 4)
    assert F.mix_rows(torch.zeros(2, 3), none, none, no_lam, backend=backend).shape == (0, 3)
    assert F.mix_labels(none, none, no_lam, 4, backend=backend).shape == (0, 4)
    tables = F.draw_tables(GroupIndex([0, 1]), policies.mixup())
    out = F.mix_image_batch(images, torch.tensor([0, 1]), tables, seed=0, start=0, count=0, backend=backend)
    assert out.input.shape == (0, 3, 4, 4) and out.label.shape == (0,)


@pytest.mark.parametrize("labels", ["mix", "keep"])
@pytest.mark.parametrize("augment", [None, F.Augment(size=(9, 11)), F.Augment(crop=False)])
def test_mix_image_batch_is_its_parts(backend: str, labels: Any, augment: Any, rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.integers(0, 256, (60, 12, 10, 3), dtype=np.uint8))
    y, a = rng.integers(0, 3, 60), rng.integers(0, 2, 60)
    groups = GroupIndex(y, a)
    tables = F.draw_tables(groups, policies.balance_attributes(labels=labels))
    arguments: Any = dict(seed=5, start=2**40, count=33)
    batch = F.mix_image_batch(
        images, torch.from_numpy(y.astype(np.uint8)), tables, mean=MEAN[:3], std=STD[:3], augment=augment,
        backend=backend, **arguments,
    )  # fmt: skip
    drawn = reference_draw.draw_samples(tables.packed, tables.members, **arguments)
    assert torch.equal(batch.index, drawn.index) and torch.equal(batch.partner, drawn.partner)
    assert torch.equal(batch.lam, drawn.lam)
    assert batch.group.tolist() == groups.group_ids()[batch.index.numpy()].tolist()
    assert batch.label.tolist() == y[batch.index.numpy()].tolist()
    assert batch.partner_label.tolist() == y[(batch.index if labels == "keep" else batch.partner).numpy()].tolist()
    boxes = flips = None
    if augment is not None:
        flips = reference_draw.flip_flags(drawn.flip_bits)
        if augment.crop:
            n = torch.arange(33) + 2**40
            boxes = reference_draw.crop_boxes(n, 5, 12, 10, augment.scale, augment.ratio)
    expected = F.mix_images(
        images, drawn.index, drawn.partner, drawn.lam, mean=MEAN[:3], std=STD[:3], boxes=boxes, flips=flips,
        size=(9, 11) if boxes is not None else None, backend="reference",
    )  # fmt: skip
    # Boxes may differ by 1e-3 pixel between backends, which changes a value by at most 1e-3 of the difference of two neighbors.
    torch.testing.assert_close(batch.input, expected, rtol=0, atol=1e-2 if boxes is not None else 4e-6)


def test_crop_boxes_of_the_shared_header_agree() -> None:
    from spurmix import _host

    for size in ((32, 48), (224, 200), (1, 1)):
        ours = _host.boxes(9, 2**33, 400, *size, 0.08, 1.0, 3 / 4, 4 / 3)
        boxes = reference_draw.crop_boxes(torch.arange(400) + 2**33, 9, *size, (0.08, 1.0), (3 / 4, 4 / 3))
        np.testing.assert_allclose(ours, boxes.numpy(), atol=1e-3)
        assert boxes.min() >= 0
        assert float((boxes[..., 0] + boxes[..., 2]).max()) <= size[0] + 1e-3
        assert float((boxes[..., 1] + boxes[..., 3]).max()) <= size[1] + 1e-3


def test_flips_are_fair_and_independent() -> None:
    tables = F.draw_tables(GroupIndex([0] * 50), policies.mixup())
    bits = reference_draw.draw_samples(tables.packed, tables.members, 3, 0, 20_000).flip_bits & 3
    assert np.bincount(bits.numpy(), minlength=4) == pytest.approx(np.full(4, 5000), abs=300)


def test_half_conversions_round_to_nearest_even() -> None:
    from spurmix import _host

    bits = np.concatenate([np.arange(0, 2**32, 65521, dtype=np.uint64), np.arange(0x33000000, 0x33900000, 1013),
                           np.arange(0x477F0000, 0x47800800, 7), np.arange(0x38700000, 0x38900000, 511)])  # fmt: skip
    values = bits.astype(np.uint32).view(np.float32)
    tensor = torch.from_numpy(values.copy())
    for bfloat16, kind in ((False, torch.float16), (True, torch.bfloat16)):
        ours = _host.round_trip(values, bfloat16)
        np.testing.assert_array_equal(ours, tensor.to(kind).float().numpy())


FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("target", FLOATS, ids=str)
def test_mix_rows(backend: str, source: torch.dtype, target: torch.dtype, rng: np.random.Generator) -> None:
    for n, d in ((1, 1), (5, 3), (9, 700)):
        rows = torch.from_numpy(rng.standard_normal((2 * n, d + 2))).to(source)[::2, :d]
        index, partner, lam = pair(rng, n, 6)
        out = F.mix_rows(rows, index, partner, lam, dtype=target, backend=backend)
        weight = lam.double()[:, None]
        expected = weight * rows.double()[index] + (1 - weight) * rows.double()[partner]
        both = torch.promote_types(torch.float32, source) if target in (torch.float32, torch.float64) else target
        torch.testing.assert_close(out, expected.to(both).to(target))
        buffer = torch.empty(6, d, dtype=target)
        assert torch.equal(F.mix_rows(rows, index, partner, lam, out=buffer, backend=backend), out)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mix_labels(backend: str, dtype: torch.dtype, rng: np.random.Generator) -> None:
    for classes in (1, 2, 1000):
        label, partner_label, lam = pair(rng, classes, 9)
        expected = np.zeros((9, classes))
        for b in range(9):
            expected[b, label[b]] += float(lam[b])
            expected[b, partner_label[b]] += 1 - float(lam[b])
        out = F.mix_labels(label, partner_label, lam, classes, dtype=dtype, backend=backend)
        assert out.dtype == dtype
        torch.testing.assert_close(out, torch.from_numpy(expected).to(dtype))
        buffer = torch.empty(9, classes, dtype=dtype)
        assert torch.equal(F.mix_labels(label, partner_label, lam, classes, out=buffer, backend=backend), out)


IMAGES = torch.zeros(4, 5, 6, 3, dtype=torch.uint8)
ROW = torch.zeros(2, dtype=torch.int64)
LAM = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda b: F.mix_images(IMAGES.float(), ROW, ROW, LAM, backend=b), TypeError, "images must have dtype uint8"),
        (lambda b: F.mix_images(IMAGES[0], ROW, ROW, LAM, backend=b), ValueError, "images must have shape"),
        (lambda b: F.mix_images(IMAGES.permute(0, 2, 1, 3), ROW, ROW, LAM, backend=b), ValueError, "contiguous"),
        (lambda b: F.mix_images(IMAGES[:, :0], ROW, ROW, LAM, backend=b), ValueError, "positive height, width"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, mean=(0.5, 0.5), backend=b), ValueError, "mean must have one value"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, std=(1, 0, 1), backend=b), ValueError, "std = (1, 0, 1) must be in [0.001, 2]"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW[:1], LAM, backend=b), ValueError, "partner must have shape [2]"),
        (lambda b: F.mix_images(IMAGES, ROW.int(), ROW, LAM, backend=b), TypeError, "index must have dtype int64"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM.double(), backend=b), TypeError, "lam must have dtype float32"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, size=(9, 9), backend=b), ValueError, "without boxes"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, dtype=torch.int8, backend=b), TypeError, "dtype must be"),
        (lambda b: F.mix_images(IMAGES, ROW + 4, ROW, LAM, backend=b), IndexError, "index[0] = 4 is out of range [0, 4)"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW - 1, LAM, backend=b), IndexError, "partner[0] = -1 is out of range"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, boxes=torch.zeros(2, 4), backend=b), ValueError, "boxes must have"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, flips=torch.zeros(2, 2), backend=b), TypeError, "flips must have"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, out=torch.empty(2, 3, 5, 7), backend=b), ValueError, "boxes"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, out=torch.empty(2, 3, 5, 6).double(), backend=b), TypeError, "out"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, out=torch.empty(3, 3, 5, 6), backend=b), ValueError, "out must have"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, out=torch.empty(2, 3, 6, 5).mT, backend=b), ValueError, "contiguous or"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, out=torch.empty(2, 3, 5, 6, device="meta"), backend=b), ValueError, "out must be on cpu"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM, out=torch.empty(2, 3, 5, 6, requires_grad=True), backend=b), ValueError, "require grad"),
        (lambda b: F.mix_images(IMAGES, ROW, ROW, LAM.clone().requires_grad_(), backend=b), ValueError, "lam must not require grad"),
        (lambda b: F.mix_rows(torch.zeros(3, 2), ROW + 3, ROW, LAM, backend=b), IndexError, "out of range [0, 3)"),
        (lambda b: F.mix_rows(torch.zeros(2, 3).T, ROW, ROW, LAM, backend=b), ValueError, "contiguous rows"),
        (lambda b: F.mix_rows(torch.zeros(3, 2).int(), ROW, ROW, LAM, backend=b), TypeError, "rows must have dtype"),
        (lambda b: F.mix_rows(torch.zeros(3, 2), ROW, ROW, LAM, out=torch.empty(2, 3), backend=b), ValueError, "out must have"),
        (lambda b: F.mix_labels(ROW, ROW + 2, LAM, 2, backend=b), IndexError, "partner_label[0] = 2"),
        (lambda b: F.mix_labels(ROW, ROW, LAM, 0, backend=b), ValueError, "num_classes"),
    ],
)  # fmt: skip
def test_bad_input(backend: str, call: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        call(backend)
    assert text in str(caught.value)


def test_bad_input_of_the_batch_op(backend: str) -> None:
    tables = F.draw_tables(GroupIndex([0, 1, 1, 0]), policies.erm())
    arguments: Any = dict(seed=0, start=0, count=2, backend=backend)
    with pytest.raises(ValueError, match="must have 4 examples"):
        F.mix_image_batch(IMAGES[:3], torch.zeros(3, dtype=torch.int64), tables, **arguments)
    with pytest.raises(TypeError, match="labels must have dtype"):
        F.mix_image_batch(IMAGES, torch.zeros(4), tables, **arguments)
    with pytest.raises(ValueError, match="with crop=False"):
        labels = torch.zeros(4, dtype=torch.int64)
        F.mix_image_batch(IMAGES, labels, tables, augment=F.Augment(size=9, crop=False), **arguments)
    for bad in (dict(size=0), dict(scale=(0.5, 0.2)), dict(scale=(0.0, 1.0)), dict(ratio=(-1.0, 2.0))):
        with pytest.raises(ValueError, match="augment"):
            F.Augment(**bad)  # type: ignore[arg-type]


def test_outputs_must_not_overlap_inputs(backend: str) -> None:
    """An output at any position in the memory of an input is an error."""
    pool = torch.zeros(4000)
    rows, lam, index = pool[:60].view(10, 6), pool[60:68], torch.arange(8)
    single, classes = pool[:10].double().view(10, 1), index % 3
    images, boxes = pool.view(torch.uint8)[400:1000].view(10, 4, 5, 3), pool[1000:1064].view(8, 2, 4)
    boxes[:] = torch.tensor([0.0, 0.0, 4.0, 5.0])
    wide = pool[:120].view(10, 12)[:, :6]
    tables = F.draw_tables(GroupIndex(torch.arange(10) % 2), policies.erm())
    integers, options = torch.zeros(40, dtype=torch.int64), {"backend": backend}
    drawn = [integers[k : k + 8] for k in (0, 8, 16, 24)]
    pixels = [pool[60:540].view(8, 3, 4, 5), *drawn[:2], lam.clone(), *drawn[2:], integers[32:]]

    def mixed(out: torch.Tensor, **more: Any) -> torch.Tensor:
        return F.mix_images(images, index, index, lam, out=out, **more, **options)

    cases: list[tuple[str, Any]] = [
        ("out shares memory with rows", lambda: F.mix_rows(rows, index, index, lam, out=pool[:48].view(8, 6), **options)),
        ("out shares memory with rows", lambda: F.mix_rows(rows, index, index, lam, out=pool[59:107].view(8, 6), **options)),
        ("out shares memory with rows", lambda: F.mix_rows(wide, index, index, lam, out=pool[110:158].view(8, 6), **options)),
        ("out shares memory with lam", lambda: F.mix_rows(rows, index, index, lam, out=pool[67:115].view(8, 6), **options)),
        ("out shares memory with index", lambda: F.mix_rows(single, index, index + 0, lam, out=index.view(torch.float64).view(8, 1), **options)),
        ("out shares memory with images", lambda: mixed(pool[249:729].view(8, 3, 4, 5))),
        ("out shares memory with images", lambda: mixed(pool[:480].view(8, 4, 5, 3).permute(0, 3, 1, 2))),
        ("out shares memory with boxes", lambda: mixed(pool[590:1070].view(8, 3, 4, 5), boxes=boxes)),
        ("out shares memory with lam", lambda: F.mix_labels(classes, classes, lam, 3, out=pool[50:74].view(8, 3), **options)),
        ("out shares memory with label", lambda: F.group_counts(rows[:8], classes, index, out=classes.view(4, 2), **options)),
        ("out[1] shares memory with tables", lambda: F.draw(tables, seed=0, start=0, count=8, out=[drawn[0], tables.packed[20:28], pool[:8]], **options)),
        ("out[0] shares memory with images", lambda: F.mix_image_batch(images, classes.new_zeros(10), tables, seed=0, start=0, count=8, out=pixels, **options)),
        ("out[5] shares memory with out[2]", lambda: F.mix_image_batch(images, classes.new_zeros(10), tables, seed=0, start=0, count=8, out=[pool[2000:2480].view(8, 3, 4, 5), *drawn[:2], lam.clone(), drawn[2], drawn[1], drawn[3]], **options)),
        ("out shares memory with weight", lambda: F.mix_embeddings(rows, index[None] % 8, index[None] % 8, lam[:1], out=pool[30:78].view(1, 8, 6), **options)),
    ]  # fmt: skip
    for said, call in cases:
        with pytest.raises(ValueError, match=re.escape(said)):
            call()
    assert not pool[:1000].any(), "something was written"
    F.mix_rows(rows, index, index, lam, out=pool[68:116].view(8, 6), **options)
    F.mix_rows(wide, index, index, lam, out=pool[120:168].view(8, 6), **options)
    mixed(pool[250:730].view(8, 3, 4, 5))
    F.mix_rows(rows, index[:0], index[:0], lam[:0], out=pool[:0].view(0, 6), **options)


def test_outputs_next_to_inputs_are_accepted(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(rng.standard_normal((4, 3)).astype(np.float32))
    index, lam = torch.tensor([1, 0]), torch.tensor([0.5, 0.25])
    with pytest.raises(ValueError, match="out must be contiguous, got strides"):
        F.mix_rows(rows, index, index, lam, out=torch.empty(1, 3).expand(2, 3))
    F.mix_rows(rows[:2], index, index, lam, out=rows[2:])
    assert torch.equal(rows[2:], rows[[1, 0]])
