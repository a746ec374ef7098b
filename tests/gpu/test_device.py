"""Device errors, streams, CUDA graphs, long runs, and the strategies of the loader on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spurmix import FeatureSource, GroupIndex, ImageSource, MixLoader, MixPolicy, Uniform
from spurmix.ops import functional as F
from spurmix.ops.backends import implementation
from spurmix.ops.tables import draw_tables

N = 96
RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 3, N)
GROUPS = GroupIndex(LABELS, RNG.integers(0, 2, N))
POLICY = MixPolicy(partner=np.ones((GROUPS.num_groups,) * 2), lam=Uniform())


def images(side: int) -> Tensor:
    return torch.from_numpy(RNG.integers(0, 256, (N, side, side, 3), dtype=np.uint8))


def test_indices_out_of_range_are_reported_once(device: torch.device, backend: str) -> None:
    store, lam = torch.zeros(4, 2, 2, 3, dtype=torch.uint8, device=device), torch.ones(2, device=device)
    rows, logits = torch.zeros(4, 3, device=device), torch.zeros(2, 4, device=device)
    for bad in (4, -1, 2**62):
        index = torch.tensor([0, bad], device=device)
        for call in (
            lambda i: F.mix_images(store, i, i, lam, backend=backend),
            lambda i: F.mix_rows(rows, i, i, lam, backend=backend),
            lambda i: F.mix_labels(i, i, lam, 4, backend=backend),
            lambda i: F.mixed_cross_entropy(logits, i, i, lam, reduction="none", backend=backend),
        ):
            with pytest.raises(IndexError, match="out of range"):
                made = call(index)
                assert made[0].isfinite().all() and made[1].isnan().all()
                F.check(device)
            F.check(device)  # reported only once
            assert call(torch.zeros_like(index)).isfinite().all()


@pytest.mark.parametrize("value", [1.5, -0.25, float("nan")])
def test_weights_outside_0_and_1_are_reported_once(device: torch.device, backend: str, value: float) -> None:
    store, index = torch.zeros(4, 2, 2, 3, dtype=torch.uint8, device=device), torch.tensor([0, 1], device=device)
    lam = torch.tensor([0.5, value], device=device)
    for call in (
        lambda weight: F.mix_images(store, index, index, weight, backend=backend),
        lambda weight: F.mix_rows(torch.zeros(4, 3, device=device), index, index, weight, backend=backend),
        lambda weight: F.mix_labels(index, index, weight, 4, backend=backend),
    ):
        with pytest.raises(ValueError, match=r"lam .*\[0, 1\]"):
            made = call(lam)
            assert made[0].isfinite().all() and made[1].isnan().all()
            F.check(device)
        F.check(device)  # reported only once
        assert call(torch.ones_like(lam)).isfinite().all()


@pytest.mark.device_only
def test_device_errors_are_raised_at_once_in_debug_mode(
    device: torch.device, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPURMIX_DEBUG", "1")
    index = torch.tensor([7], device=device)
    with pytest.raises(IndexError, match="out of range"):
        F.mix_rows(torch.zeros(4, 3, device=device), index, index, torch.ones(1, device=device), backend=backend)


def buffers(count: int, side: int, device: torch.device) -> list[Tensor]:
    made = torch.full((count, 3, side, side), torch.nan, device=device, dtype=torch.bfloat16)
    out = [made.contiguous(memory_format=torch.channels_last)]
    for kind in (torch.int64, torch.int64, torch.float32, torch.int64, torch.int64, torch.int64):
        out.append(torch.zeros(count, dtype=kind, device=device))
    return out


def arguments(store: Tensor, device: torch.device, flip: bool = True) -> tuple[Any, ...]:
    tables = draw_tables(GROUPS, POLICY).to(device)
    mean, std = torch.full((3,), 0.4, device=device), torch.full((3,), 0.3, device=device)
    labels = torch.from_numpy(LABELS).to(device)
    return (store, labels, tables.packed, tables.members, mean, std, False, 0.08, 1.0, 0.75, 4 / 3, flip, 9)


def test_a_long_run_has_constant_memory_and_the_right_samples(
    device: torch.device, backend: str, scale: SimpleNamespace
) -> None:
    count, on_gpu = (32, True) if device.type == "cuda" else (3, False)
    fixed, out = arguments(images(16).to(device), device), buffers(count, 16, device)
    mix = implementation("mix_image_batch_out", backend, device)
    drawn = torch.zeros(N, dtype=torch.int64, device=device)
    once = torch.ones(count, dtype=torch.int64, device=device)
    held = 0
    for step in range(scale.soak):
        mix(*fixed, step * count, None, *out)
        drawn.index_add_(0, out[4], once)
        if step == 3 and on_gpu:
            held = torch.cuda.memory_allocated(device)
    F.check(device)
    if on_gpu:
        assert torch.cuda.memory_allocated(device) == held
    expected = F.draw(GROUPS, POLICY, seed=9, start=0, count=scale.soak * count).index
    assert torch.equal(drawn.cpu(), torch.bincount(expected, minlength=N))
    assert torch.equal(out[4].cpu(), expected[-count:])
    assert not out[0].isnan().any()


@pytest.mark.device_only
def test_two_concurrent_streams(device: torch.device, backend: str) -> None:
    store = images(64).to(device)
    fixed = arguments(store, device)
    mix = implementation("mix_image_batch_out", backend, device)
    expected = {n: buffers(64, 64, device) for n in range(4)}
    for n, out in expected.items():
        mix(*fixed, n * 64, None, *out)
    torch.cuda.synchronize(device)
    streams = [torch.cuda.Stream(device), torch.cuda.Stream(device)]
    for _ in range(50):
        made = [buffers(64, 64, device) for _ in range(4)]
        torch.cuda.synchronize(device)
        for n, out in enumerate(made):
            with torch.cuda.stream(streams[n % 2]):
                mix(*fixed, n * 64, None, *out)
        torch.cuda.synchronize(device)
        for n, out in enumerate(made):
            assert all(torch.equal(a, b) for a, b in zip(out, expected[n], strict=True))


@pytest.mark.device_only
def test_a_replayed_graph_advances_the_counter(device: torch.device, backend: str) -> None:
    store, count = images(32).to(device), 16
    fixed, out = arguments(store, device), buffers(16, 32, device)
    counter = torch.zeros(1, dtype=torch.int64, device=device)
    mix = implementation("mix_image_batch_out", backend, device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        mix(*fixed, 0, counter, *out)  # compiled before the capture
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mix(*fixed, 0, counter, *out)
        counter.add_(count)
    for n in range(5):
        graph.replay()
        single = buffers(count, 32, device)
        mix(*fixed, n * count, None, *single)
        assert all(torch.equal(a, b) for a, b in zip(out, single, strict=True))


def check_equal(loader: MixLoader, plain: MixLoader) -> None:
    """Check that both loaders deliver the same samples."""
    steps = 0
    for batch, expected in zip(loader, plain, strict=True):
        assert batch.input.device == loader.device
        torch.testing.assert_close(batch.input.cpu().float(), expected.input.float(), atol=2e-2, rtol=1e-2)
        for a, b in zip(batch.tensors()[1:], expected.tensors()[1:], strict=True):
            assert torch.equal(a.cpu(), b)
        steps += 1
    assert steps == len(plain)


@pytest.mark.parametrize(
    "mode", ["resident", pytest.param("pinned", marks=pytest.mark.device_only), "copied", "gathered"]
)
@pytest.mark.parametrize("crop", [False, True])
def test_loader_strategies(mode: str, crop: bool, device: torch.device) -> None:
    store = images(24)
    kind = torch.float32 if mode == "gathered" else torch.bfloat16  # half types with crops are gathered too
    options: Any = dict(steps=9, seed=4, dtype=kind, channels_last=True, augment=F.Augment(size=20) if crop else None)
    plain = MixLoader(ImageSource(store), GROUPS, POLICY, 32, **options)
    source = ImageSource(store.to(device) if mode == "resident" else store)
    source = source.pinned() if mode == "pinned" else source
    loader = MixLoader(source, GROUPS, POLICY, 32, device=device, **options)
    check_equal(loader, plain)
    check_equal(loader, plain)  # again, from the start
    features = torch.from_numpy(np.random.default_rng(1).standard_normal((N, 40)).astype(np.float32))
    if mode != "pinned":
        rows = FeatureSource(features.to(device) if mode == "resident" else features)
        check_equal(
            MixLoader(rows, GROUPS, POLICY, 32, device=device, steps=5),
            MixLoader(FeatureSource(features), GROUPS, POLICY, 32, steps=5),
        )


@pytest.mark.device_only
def test_a_static_batch_in_a_graph(device: torch.device) -> None:
    store = images(24)
    options: Any = dict(steps=6, seed=4, dtype=torch.bfloat16, channels_last=True)
    plain = MixLoader(ImageSource(store), GROUPS, POLICY, 32, **options)
    static = MixLoader(ImageSource(store.to(device)), GROUPS, POLICY, 32, **options).static_batch()
    static()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = static()
    static.set_step(0)
    for expected in plain:
        graph.replay()
        assert torch.equal(batch.index.cpu(), expected.index) and torch.equal(batch.lam.cpu(), expected.lam)
