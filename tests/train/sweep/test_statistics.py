"""Tables of a comparison of methods."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from spurmix.train.sweep.statistics import COLUMNS, SweepRow, summarize_methods


def rows(method: str, worst: list[float], setting: str = "data", counts: bool = True) -> list[SweepRow]:
    found = []
    for seed, value in enumerate(worst):
        row = SweepRow(setting=setting, method=method, seed=seed, known=8, worst=value, average=value + 0.1)
        if counts:
            row["groups"] = [[round(100 * value), 100], [95, 100]]
        found.append(row)
    return found


def test_means_deviations_and_paired_differences() -> None:
    first, second = [0.5, 0.6, 0.4, 0.5, 0.55], [0.7, 0.81, 0.6, 0.7, 0.74]
    summaries = summarize_methods(rows("erm", first) + rows("dfr", second))
    assert [s.method for s in summaries] == ["dfr", "erm"]
    dfr, erm = summaries
    assert (dfr.worst, dfr.deviation) == (pytest.approx(np.mean(second)), pytest.approx(np.std(second, ddof=1)))
    assert dfr.difference == pytest.approx(np.mean(second) - np.mean(first)) and erm.difference is erm.interval is None
    assert dfr.interval is not None and dfr.minimum is not None
    assert 0.19 <= dfr.interval[0] <= dfr.difference <= dfr.interval[1] <= 0.21  # pairs differ by 0.19 to 0.21
    assert dfr.minimum[0] < dfr.worst < dfr.minimum[1] and dfr.minimum[1] - dfr.minimum[0] < 0.1
    assert all(len(s.cells()) == len(COLUMNS) for s in summaries)
    json.dumps([s.to_dict() for s in summaries], allow_nan=False)


def test_settings_are_paired_separately() -> None:
    easy, hard = rows("erm", [0.8, 0.8], "easy"), rows("erm", [0.2, 0.2], "hard")
    other = rows("dfr", [0.9, 0.9], "easy") + rows("dfr", [0.4, 0.4], "hard")
    dfr = summarize_methods(easy + hard + other)[0]
    assert dfr.interval == pytest.approx((0.15, 0.15)) and dfr.deviation == 0


def test_single_seed_and_rows_without_counts() -> None:
    (only,) = summarize_methods(rows("dfr", [0.7], counts=False))
    assert math.isnan(only.deviation) and only.minimum is None and only.difference is None
    assert only.to_dict()["deviation"] is None and only.cells() == ["dfr", "70.0", "", "", "", "80.0"]
