"""Statistics of a demo's methods over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from spurmix.cli.report.methods import MethodSummary, columns


def test_mean_deviation_and_interval() -> None:
    values = (0.9, 0.92, 0.88, 0.956)
    summary = MethodSummary("erm", values, values, values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert summary.interval() == pytest.approx((low, high))
    assert summary.deviation == pytest.approx(np.std(values, ddof=1))
    assert summary.to_dict()["mean"] == pytest.approx(0.914)
    assert summary.cells() == [
        "erm",
        "90.0, 92.0, 88.0, 95.6",
        "91.4%",
        "3.2",
        f"{100 * low:.1f} to {100 * high:.1f}",
        "91.4%",
    ]
    assert len(columns(4)) == len(summary.cells())


def test_a_single_seed_has_no_interval() -> None:
    summary = MethodSummary("erm", (0.5,), (0.7,), (0.6,))
    assert summary.interval() is None and summary.deviation is None
    assert summary.cells() == ["erm", "50.0%", "70.0%"] and len(columns(1)) == 3


def test_the_interval_stays_within_0_and_1() -> None:
    assert MethodSummary("erm", (0.0, 1.0), (0.5, 0.5), (0.5, 0.5)).interval() == (0.0, 1.0)
