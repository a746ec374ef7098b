"""Times of calls on a GPU: CUDA events with a cold L2 cache, contenders in turns; launches by the profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bench.gpu.record import Row, device, dry, emit, short
from bench.measure import gate
from bench.registry import Contender

FLUSH_BYTES = 256 << 20  # several times any L2


class Clock:
    """Measures calls on the run's device."""

    def __init__(self) -> None:
        self._flush = torch.empty(1 if dry() else FLUSH_BYTES, dtype=torch.int8, device=device())

    def once(self, call: Callable[[], Any]) -> float:
        """Microseconds of one call that finds a cold cache; the flush also keeps the GPU busy while it is queued."""
        if dry():
            began = time.perf_counter()
            call()
            return (time.perf_counter() - began) * 1e6
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3

    def in_turns(
        self, calls: dict[str, Callable[[], Any]], turns: int, budget_s: float = 4.0
    ) -> dict[str, tuple[float, float, float]]:
        """First quartile, median and third of each call's microseconds; `turns` of each, fewer within the budget."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            for _ in range(1 if dry() else 3):
                call()
        for _ in range(1 if dry() else turns):
            for name, call in calls.items():
                if len(times[name]) < 3 or sum(times[name]) < budget_s * 1e6:
                    times[name].append(self.once(call))
        return {name: tuple(np.quantile(t, [0.25, 0.5, 0.75]).tolist()) for name, t in times.items()}  # type: ignore[misc]


def launches(call: Callable[[], Any]) -> int | None:
    """Kernels a call launches; None in a rehearsal."""
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
    """Most MiB allocated during a call beyond what was before; None in a rehearsal."""
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
    """Gate the contenders by the first peer's result, measure them in turns, and emit a row of each.

    `moved`: bytes the work must move; `bandwidth`: bytes per second of a copy.
    """
    truth = next(c for c in contenders if c.kind == "peer")
    value = truth.run()
    expected = value.clone() if isinstance(value, torch.Tensor) else value
    able = []
    for contender in contenders:
        failure = "" if contender is truth else gate(contender, expected, tolerance).replace("ours", truth.name)
        if failure:
            emit(Row(step, case, contender.name, contender.kind, note=contender.note, error=failure))
        else:
            able.append(contender)
    found = Clock().in_turns({c.name: c.run for c in able}, turns)
    base = found[able[0].name][1]
    for contender in able:
        low, middle, high = found[contender.name]
        row = Row(step, case, contender.name, contender.kind, middle, low, high, moved, note=contender.note)
        row.share = moved / (middle * 1e-6) / bandwidth if bandwidth else None
        row.ratio = middle / base
        try:
            row.launches, row.peak = launches(contender.run), peak(contender.run) if memory else None
        except Exception as error:
            row.note = f"{row.note} not counted: {short(error)}".strip()
        emit(row)
