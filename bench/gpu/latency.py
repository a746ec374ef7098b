"""Step `latency`: consecutive batches of 32 from the loader, from the operator and from a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.gpu import data
from bench.gpu.record import device, dry, emit, gpu_backends, survived, wait
from bench.row import Row
from spurmix import ImageSource, MixLoader
from spurmix.ops import functional as F
from spurmix.ops.backends import implementation

STEP, CASE = "latency", "images_32_bf16_last"
ROUND_S = 0.15
"""Approximate duration of a round of calls in seconds."""


def per_call(name: str, kind: str, call: Callable[[], Any], note: str = "") -> None:
    """Emit the mean time of consecutive calls, including the work of the device."""

    def seconds(calls: int) -> float:
        """Mean seconds of a call in a round of `calls`."""
        wait()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - began) / calls

    warmup = 1 if dry() else 20
    seconds(warmup)
    calls = 2 if dry() else int(min(1000, max(20, ROUND_S / seconds(warmup))))
    times = [seconds(calls) * 1e3 for _ in range(2 if dry() else 9)]
    low, middle, high = (float(q) for q in np.quantile(times, [0.25, 0.5, 0.75]))
    emit(Row(CASE, name, kind, middle, low, high, step=STEP, note=note))


def graph_of(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """Run a call once, then capture it in a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def main() -> None:
    """Run the step."""
    torch.manual_seed(0)
    batch = 4 if dry() else 32
    pictures = data.Pictures(40 if dry() else 4096, 12 if dry() else 224, batch)
    side = pictures.side
    options: dict[str, Any] = dict(steps=10**9, dtype=torch.bfloat16, channels_last=True, device=device())
    for backend in gpu_backends():
        with survived(STEP, CASE, f"op {backend}"):
            mix, fixed = implementation("mix_image_batch_out", backend, device()), pictures.fixed(None)
            out = pictures.out(side, torch.bfloat16, True)
            counter = torch.zeros(1, dtype=torch.int64, device=device())

            def op(mix: Any = mix, fixed: Any = fixed, out: Any = out, counter: Any = counter) -> None:
                mix(*fixed, 0, counter, *out)
                counter.add_(batch)

            per_call(f"op {backend}, counter", "ours", op)
            if not dry():
                per_call(f"graph {backend}, counter", "ours", graph_of(op).replay)
    with survived(STEP, CASE, "loader"):
        batches = iter(MixLoader(ImageSource(pictures.images), pictures.groups, pictures.policy, batch, **options))
        per_call("loader, resident", "ours", lambda: next(batches))
    for name, dtype in (("from the host", torch.bfloat16), ("gathered, float32", torch.float32)):
        with survived(STEP, CASE, f"loader, {name}"):
            source = ImageSource(pictures.cpu)
            host = iter(MixLoader(source, pictures.groups, pictures.policy, batch, **options | {"dtype": dtype}))
            per_call(f"loader, {name}", "ours", lambda host=host: next(host))  # type: ignore[misc]
    with survived(STEP, CASE, "loader, static batch"):
        loader = MixLoader(ImageSource(pictures.images), pictures.groups, pictures.policy, batch, **options)
        static = loader.static_batch()
        per_call("loader, static batch", "ours", static)
        if not dry():
            per_call("loader, static batch in a graph", "ours", graph_of(static).replay)
    with survived(STEP, CASE, "eager"):
        drawn = pictures.drawn
        per_call("eager", "peer", lambda: data.eager(pictures.images, *drawn, torch.bfloat16, True), "mixing only")
    F.check(device())


if __name__ == "__main__":
    main()
