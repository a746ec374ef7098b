"""Comparison of methods that train a head."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.debias import heads
from bench.debias.features import SETTINGS, make_features
from bench.debias.heads import METHODS, HeadRow, compare_heads, group_accuracies, markdown, standardized

SETTING = SETTINGS["gaussian-2x2-99"]


def test_rows_are_reproducible_and_inferred_attributes_help() -> None:
    methods = ("erm", "dfr", "inferred")
    rows = list(compare_heads([7], settings=[SETTING], methods=methods, known=16))
    again = list(compare_heads([7], settings=[SETTING], methods=methods, known=16))
    assert [(r.method, r.worst, r.average) for r in rows] == [(r.method, r.worst, r.average) for r in again]
    worst = {row.method: row.worst for row in rows}
    assert worst["erm"] < worst["dfr"] < worst["inferred"] and all(row.worst <= row.average for row in rows)


def test_methods_by_sgd_choose_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "STEPS", 20)
    monkeypatch.setattr(heads, "RATES", (1e-2,))
    monkeypatch.setattr(heads, "DECAYS", (1e-2,))
    data = standardized(make_features(SETTING, 1, known=16))
    np.testing.assert_allclose(data.train.features.std(axis=0), 1, atol=1e-3)
    for name in ("attributed_balanced", "balance_attributes", "selecmix"):
        accuracies = group_accuracies(METHODS[name](data, 1), data.test)
        assert len(accuracies) == 4 and mean_of(accuracies) > 0.6


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values)


def test_every_method_has_the_same_number_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_features(SETTING, 2, known=8)
    counted: list[int] = []

    def fit(*arguments: object, **options: object) -> object:
        found = fit_head(*arguments, **options)  # type: ignore[arg-type]
        counted.append(len(found.trials))
        return found

    from spurmix import fit_head

    monkeypatch.setattr(heads, "fit_head", fit)
    for name in ("erm", "dispel", "dfr", "dfr_l2", "inferred"):
        counted.clear()
        METHODS[name](data, 2)
        assert sum(counted) == heads.TRIALS, name
    assert len(heads.RATES) * len(heads.DECAYS) == heads.TRIALS


def test_the_table_has_means_and_standard_errors() -> None:
    rows = [HeadRow("a", "dfr", seed, 100, worst, 0.9, 1.0) for seed, worst in ((0, 0.7), (1, 0.8))]
    rows += [HeadRow("b", "dfr", 0, 100, 0.5, 0.9, 1.0)]
    table = markdown(rows)
    assert "| a | 75.0 (5.0) |" in table and "| b | 50.0 (nan) |" in table and "| **mean** | **62.50** |" in table


def test_the_command_writes_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--seeds", "3", "--settings", SETTING.name, "--methods", "dfr", "--known", "8", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["heads", *arguments])
    heads.main()
    row = json.loads(out.read_text())
    assert (row["setting"], row["method"], row["seed"], row["known"]) == (SETTING.name, "dfr", 3, 8)
    assert f"| {SETTING.name} | {100 * row['worst']:.1f} (nan) |" in capsys.readouterr().out
    assert not math.isnan(row["average"]) and torch.get_num_threads() > 0
