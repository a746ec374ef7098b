"""bench.tweets on a small file of the same layout. Accuracies are not tested."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench import tweets  # noqa: E402


def write(path: Path, count: int = 400, **change: Any) -> Path:
    rng = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["", "count", "class", change.get("column", "tweet")])
        for n in range(count):
            words = ["RT &amp; this", 'is "quoted",\nover two lines', *(["Women"] if rng.random() < 0.5 else [])]
            table.writerow([n, 3, change.get("label", n % 3), " ".join(words)])
    return path


def test_reading_splitting_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "data.csv")
    texts, labels, attributes = tweets.read(data)
    assert len(texts) == 400
    assert texts[0].startswith("RT & this")
    assert labels.tolist() == [int(n % 3 != 2) for n in range(400)]
    assert attributes.tolist() == [int("Women" in text) for text in texts]

    train, test = tweets.split(labels, attributes, 0.9, seed=1)
    assert not set(train) & set(test)
    assert len(set(train)) == len(train)
    for y in (0, 1):
        mine = train[labels[train] == y]
        assert abs(np.mean(attributes[mine] == y) - 0.9) < 0.03
        assert mine.size == train.size / 2
    assert not np.array_equal(np.sort(train), np.sort(tweets.split(labels, attributes, 0.9, seed=2)[0]))

    # Instead of the encoder: features that contain the label weakly and the attribute strongly.
    rng = np.random.default_rng(2)
    features = np.stack([labels, 3 * attributes, *rng.standard_normal((4, 400))], axis=1).astype(np.float32)
    monkeypatch.setattr(tweets, "extract", lambda texts, progress=None: torch.from_numpy(features))
    monkeypatch.setattr(tweets, "EPOCHS", 2.0)
    target = tmp_path / "out.json"
    assert tweets.main(["--data", str(data), "--seeds", "2", "--strength", "0.9", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert [line["policy"] for line in result["summary"]] == list(tweets.POLICIES)
    assert len(result["rows"]) == 10
    by_policy = {line["policy"]: line for line in result["summary"]}
    erm, ours = ([r["worst_group"] for r in result["rows"] if r["policy"] == p] for p in ("erm", "balance_attributes"))
    ahead, line = np.subtract(ours, erm), by_policy["balance_attributes"]
    assert line["seeds_above_erm"] == (ahead > 0).sum()
    assert [line[f"ahead_of_erm_{k}"] for k in ("min", "max")] == [ahead.min(), ahead.max()]
    half = 12.706205 * abs(ahead[0] - ahead[1]) / 2  # 95% quantile of Student's t with one degree of freedom
    bounds = [line[f"ahead_of_erm_{k}"] for k in ("low", "mean", "high")]
    assert bounds == pytest.approx([ahead.mean() - half, ahead.mean(), ahead.mean() + half], rel=1e-6)
    assert by_policy["erm"]["ahead_of_erm_mean"] == 0
    assert all(r["low"] <= r["worst_group"] <= r["high"] for r in result["rows"])
    with target.with_suffix(".csv").open() as file:
        assert [r["policy"] for r in csv.DictReader(file)] == [r["policy"] for r in result["rows"]]


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "one.csv"
    for path, text in (
        (tmp_path / "none.csv", "cannot read"),
        (write(tmp_path / "a.csv", column="text"), "no column 'tweet'"),
        (write(tmp_path / "b.csv", label=7), "line 3: class must be 0, 1 or 2, got '7'"),
        (write(tmp_path / "c.csv", label=1), "a group is empty"),
        (empty, "no column 'class'"),
    ):
        empty.touch()
        assert tweets.main(["--data", str(path), "--json", str(tmp_path / "out.json")]) == 2
        assert text in capsys.readouterr().err
    (tmp_path / "latin.csv").write_bytes("class,tweet\n1,caf\u00e9\n".encode("latin-1"))
    assert tweets.main(["--data", str(tmp_path / "latin.csv"), "--json", str(tmp_path / "out.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
