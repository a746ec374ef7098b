"""Interleaved measurement behind a correctness gate: no figure of a contender that computes something else."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bench.registry import Case, Contender


@dataclass
class Row:
    """One contender's result. `ratio`: its median time over ours, above 1 where ours is faster."""

    case: str
    contender: str
    kind: str
    median_ms: float | None
    q1_ms: float | None
    q3_ms: float | None
    per_second: float | None
    ratio: float | None
    note: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def difference(value: Any, expected: Any) -> str | None:
    """Why `value` is not what ours gave, or None. Works on tensors and arrays, of any layout."""
    a = torch.as_tensor(value).detach().to(torch.float64)
    b = torch.as_tensor(expected).detach().to(torch.float64)
    if a.shape != b.shape:
        return f"shape {list(a.shape)}, expected {list(b.shape)}"
    if not bool(torch.isfinite(a).all()):
        return "values that are not finite"
    return f"{float((a - b).abs().max()):.2g}" if a.numel() else None


def gate(contender: Contender, expected: Any, tolerance: float) -> str:
    """Run once and compare; "" when it may be measured, else why not."""
    try:
        value = contender.run()
        if value is None or expected is None:
            return ""
        found = difference(value, expected)
        if found is None or (found[0].isdigit() and float(found) <= tolerance):
            return ""
        return f"gate: differs from ours by {found}"
    except Exception as error:
        return (
            f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"
        )


# A turn of a short contender repeats it for about this long, so that its caches and the clock are its own.
TURN_S = 2e-3


def _turn(contender: Contender, calls: int) -> float:
    """Seconds of one call, as the mean of `calls`."""
    if contender.seconds is not None:
        return contender.seconds()
    began = time.perf_counter()
    for _ in range(calls):
        contender.run()
    return (time.perf_counter() - began) / calls


def _calls(contender: Contender) -> int:
    """How many calls make a turn; also warms the contender up."""
    if contender.seconds is not None:
        return 1
    quickest = min(_turn(contender, 1) for _ in range(2))
    return max(1, min(1000, round(TURN_S / quickest))) if quickest < TURN_S else 1


def measure(name: str, case: Case, budget_s: float) -> list[Row]:
    """Rows of a case. Repetitions of all contenders take turns; slow ones get fewer within `budget_s` seconds each."""
    ours = next(c for c in case.contenders if c.kind == "ours")
    value = ours.run()
    expected = value.clone() if isinstance(value, torch.Tensor) else value
    failures = {c.name: "" if c is ours else gate(c, expected, case.tolerance) for c in case.contenders}
    able = [c for c in case.contenders if not failures[c.name]]
    times: dict[str, list[float]] = {c.name: [] for c in able}
    calls = {c.name: _calls(c) for c in able}
    for _ in range(case.repeats):
        for contender in able:
            taken = times[contender.name]
            if len(taken) < case.least or sum(taken) * calls[contender.name] < budget_s:
                taken.append(_turn(contender, calls[contender.name]))
    base = float(np.median(times[ours.name]))
    rows = []
    for contender in case.contenders:
        if failures[contender.name]:
            rows.append(_empty(name, contender, failures[contender.name]))
            continue
        low, middle, high = (float(q) for q in np.quantile(times[contender.name], [0.25, 0.5, 0.75]))
        rate = case.items / middle
        note = contender.note
        rows.append(
            Row(name, contender.name, contender.kind, middle * 1e3, low * 1e3, high * 1e3, rate, middle / base, note)
        )
    rows += [Row(name, absent, "peer", None, None, None, None, None, "absent") for absent in case.absent]
    return rows


def _empty(name: str, contender: Contender, note: str) -> Row:
    return Row(name, contender.name, contender.kind, None, None, None, None, None, note)
