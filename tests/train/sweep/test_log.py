"""The log of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from spurmix.train.sweep.log import SweepLog, TrialRow


def row(trial: int, protocol: str = "p") -> TrialRow:
    return TrialRow(
        protocol=protocol, phase="trial", setting="s", known="all", method="erm", trial=trial, seed=100,
        values={"rate": 1.0}, validation=0.5,
    )  # fmt: skip


def test_results_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "out" / "results.jsonl"
    log = SweepLog(path, "p")
    log.add(row(0))
    log.add({**row(1), "residual": float("nan")})
    again = SweepLog(path, "p")
    assert again.find("trial", "s", "all", "erm", 0, 100) == row(0)
    found = again.find("trial", "s", "all", "erm", 1, 100)
    assert found is not None and found["residual"] is None
    assert SweepLog(path, "other").find("trial", "s", "all", "erm", 0, 100) is None
    assert log.find("result", "s", "all", "erm", 0, 100) is None


def test_incomplete_last_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    SweepLog(path, "p").add(row(0))
    complete = path.read_text()
    path.write_text(complete + complete[:40])
    SweepLog(path, "p").add(row(1))
    assert len(path.read_text().splitlines()) == 2
    path.write_text("{}\n" + complete)
    with pytest.raises(ValueError, match=r"results.jsonl, line 1, .*; remove this line"):
        SweepLog(path, "p")
