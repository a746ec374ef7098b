"""Timing of calls on a GPU by CUDA events with a cold L2 cache, and kernel counts by the profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bench.gpu.record import device, dry, emit, short
from bench.measure import gate
from bench.registry import Contender
from bench.row import Row

FLUSH_BYTES = 256 << 20
"""Size of the buffer that evicts the L2 cache: several times the size of any L2 cache."""


class Clock:
    """Clock of the device under test."""

    def __init__(self) -> None:
        self._flush = torch.empty(1 if dry() else FLUSH_BYTES, dtype=torch.int8, device=device())

    def once(self, call: Callable[[], Any]) -> float:
        """Return the milliseconds of one call with a cold cache.

        The flush of the cache also keeps the GPU busy while the call is queued.
        """
        if dry():
            began = time.perf_counter()
            call()
            return (time.perf_counter() - began) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def in_turns(
        self, calls: dict[str, Callable[[], Any]], turns: int, budget_s: float = 4.0
    ) -> dict[str, tuple[float, float, float]]:
        """Measure calls in turns.

        Args:
            calls: Calls by name.
            turns: Number of turns of each call.
            budget_s: Seconds per call. Slow calls make fewer turns, but at least three.

        Returns:
            First quartile, median and third quartile of each call in milliseconds.
        """
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            for _ in range(1 if dry() else 3):
                call()
        for _ in range(1 if dry() else turns):
            for name, call in calls.items():
                if len(times[name]) < 3 or sum(times[name]) < budget_s * 1e3:
                    times[name].append(self.once(call))
        return {name: tuple(np.quantile(t, [0.25, 0.5, 0.75]).tolist()) for name, t in times.items()}


def launches(call: Callable[[], Any]) -> int | None:
    """Return the number of kernels that a call launches, or None in a dry run."""
    if dry():
        return None
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    kernels = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return len([e for e in kernels if not e.name.startswith(("Memcpy", "Memset"))])


def peak(call: Callable[[], Any]) -> float | None:
    """Return the MiB that a call allocates at its peak, or None in a dry run."""
    if dry():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compare(
    step: str, case: str, contenders: Sequence[Contender], *, moved: int, bandwidth: float | None, tolerance: float,
    turns: int = 41, memory: bool = False,
) -> None:  # fmt: skip
    """Compare the contenders' results with that of the first peer, measure them in turns, and emit a row for each.

    Args:
        step: Step of the benchmark.
        case: Name of the case.
        contenders: Contenders, at least one of kind "peer".
        moved: Number of bytes that the work must read and write.
        bandwidth: Bytes per second of a copy on the device. None: rows have no share.
        tolerance: Largest accepted absolute difference of the results.
        turns: Number of turns of each contender.
        memory: Whether to measure the peak memory of a call.
    """
    truth = next(c for c in contenders if c.kind == "peer")
    value = truth.run()
    expected = value.clone() if isinstance(value, torch.Tensor) else value
    able = []
    for contender in contenders:
        failure = "" if contender is truth else gate(contender, expected, tolerance).replace("ours", truth.name)
        if failure:
            emit(Row(case, contender.name, contender.kind, step=step, note=contender.note, error=failure))
        else:
            able.append(contender)
    found = Clock().in_turns({c.name: c.run for c in able}, turns)
    base = found[able[0].name][1]
    for contender in able:
        low, middle, high = found[contender.name]
        row = Row(case, contender.name, contender.kind, middle, low, high, step=step, note=contender.note)
        row.moved_bytes = moved
        row.share = moved / (middle * 1e-3) / bandwidth if bandwidth else None
        row.ratio = middle / base
        try:
            row.launches, row.peak_mib = launches(contender.run), peak(contender.run) if memory else None
        except Exception as error:  # the profiler must not discard the timing
            row.note = f"{row.note} launches not counted: {short(error)}".strip()
        emit(row)
