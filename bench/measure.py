"""Interleaved timing of contenders. A contender is timed only if its result agrees with that of spurmix."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import ArrayLike

from bench.registry import Case, Contender
from bench.row import Row

TURN_S = 2e-3
"""Approximate duration of a turn. Short contenders repeat their call, so that caches and clock rate settle."""

LIMIT_NOISE = 0.03
"""A row that is faster than the limit by more than this share, and by more than the quartiles, is an error."""


def difference(value: ArrayLike, expected: ArrayLike) -> str | None:
    """Compare two results of any layout.

    Args:
        value: Result of a contender.
        expected: Result of spurmix.

    Returns:
        The largest absolute difference as a number, a text for results that cannot be compared, or None for empty ones.
    """
    a = torch.as_tensor(value).detach().to(torch.float64)
    b = torch.as_tensor(expected).detach().to(torch.float64)
    if a.shape != b.shape:
        return f"shape {list(a.shape)}, expected {list(b.shape)}"
    if not bool(torch.isfinite(a).all()):
        return "values that are not finite"
    return f"{float((a - b).abs().max()):.2g}" if a.numel() else None


def gate(contender: Contender, expected: ArrayLike | None, tolerance: float) -> str:
    """Run a contender once and compare its result.

    Args:
        contender: Contender.
        expected: Result of spurmix. None: results are not compared.
        tolerance: Largest accepted absolute difference.

    Returns:
        "" if the contender may be timed, otherwise the error.
    """
    try:
        value = contender.run()
        if value is None or expected is None:
            return ""
        found = difference(value, expected)
        if found is None or (found[0].isdigit() and float(found) <= tolerance):
            return ""
        return f"gate: differs from ours by {found}"
    except Exception as error:  # other libraries raise errors of any type
        first_line = (str(error).strip().splitlines() or [""])[0]
        return f"failed: {type(error).__name__}: {first_line[:120]}"


def _turn(contender: Contender, calls: int) -> float:
    """Return the mean seconds of one call."""
    if contender.seconds is not None:
        return contender.seconds()
    began = time.perf_counter()
    for _ in range(calls):
        contender.run()
    return (time.perf_counter() - began) / calls


def _calls(contender: Contender) -> int:
    """Warm up and return the number of calls per turn."""
    if contender.seconds is not None:
        return 1
    fastest = min(_turn(contender, 1) for _ in range(2))
    return max(1, min(1000, round(TURN_S / fastest))) if fastest < TURN_S else 1


def _times(contenders: list[Contender], case: Case, budget_s: float) -> dict[str, list[float]]:
    """Return the seconds of each turn. Contenders take turns, so that slow phases of the machine affect all of them."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    calls = {contender.name: _calls(contender) for contender in contenders}
    for _ in range(case.repeats):
        for contender in contenders:
            taken = times[contender.name]
            if len(taken) < case.least or sum(taken) * calls[contender.name] < budget_s:
                taken.append(_turn(contender, calls[contender.name]))
    return times


def measure(name: str, case: Case, budget_s: float) -> list[Row]:
    """Measure a case.

    Args:
        name: Name of the case.
        case: Contenders. The first one of kind "ours" is the reference for results and ratios.
        budget_s: Seconds per contender. Slow contenders make fewer turns, but at least `case.least`.

    Returns:
        One row per contender, in order, then one per absent contender.
    """
    ours = next(c for c in case.contenders if c.kind == "ours")
    value = ours.run()
    expected = value.clone() if isinstance(value, torch.Tensor) else value
    errors = {c.name: "" if c is ours else gate(c, expected, case.tolerance) for c in case.contenders}
    times = _times([c for c in case.contenders if not errors[c.name]], case, budget_s)
    base = float(np.median(times[ours.name]))
    rows = []
    for contender in case.contenders:
        row = Row(name, contender.name, contender.kind, note=contender.note, error=errors[contender.name])
        if not row.error:
            low, middle, high = (float(q) for q in np.quantile(times[contender.name], [0.25, 0.5, 0.75]))
            row.median_ms, row.q1_ms, row.q3_ms = middle * 1e3, low * 1e3, high * 1e3
            row.per_second, row.ratio = case.items / middle, middle / base
        rows.append(row)
    add_shares(rows)
    return rows + [Row(name, absent, "peer", error="absent") for absent in case.absent]


def add_shares(rows: list[Row]) -> None:
    """Set `share` of the rows of a case that has a limit, and `error` of rows that are faster than the limit.

    A row is faster only if its third quartile is below the limit's first quartile and its share is above
    1 + `LIMIT_NOISE`. Such a limit is no limit: add a faster variant to it.
    """
    limit = next((row for row in rows if row.kind == "limit" and row.median_ms is not None), None)
    if limit is None or limit.median_ms is None or limit.q1_ms is None:
        return
    for row in rows:
        if row.median_ms is None or row.q3_ms is None:
            continue
        row.share = limit.median_ms / row.median_ms
        if row.share > 1 + LIMIT_NOISE and row.q3_ms < limit.q1_ms:
            row.error = (
                f"faster than the {limit.contender} by a factor of {row.share:.2f}; the limit needs a faster variant"
            )
