"""`spurmix demo` for texts: very short and complete runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spurmix import Predictor
from spurmix.cli.demo import texts

FILES = {
    "report.json",
    "report.html",
    "model.onnx",
    "accuracy.png",
    "audit.png",
    "tokenizer.json",
    "tokenizer_config.json",
}


def check(out: Path) -> Any:
    report = json.loads((out / "report.json").read_text())
    assert {p.name for p in out.iterdir()} == FILES
    assert report["audit"]["residual"] < 1e-6 < 0.5 < report["audit"]["raw"]
    assert report["onnx"]["max_abs_logit_diff"] <= 1e-3
    assert report["onnx"]["argmax_flips"] == 0
    assert report["onnx"]["worst_group"] == report["debiased"]["worst_group"]
    page = (out / "report.html").read_text()
    assert "students or pensioners" in page
    assert "samples.png" not in page
    proba = Predictor(out / "model.onnx").predict_proba(["The soup was awful.", "The soup was wonderful."])
    assert proba.shape == (2, 2)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_a_very_short_run(full: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = texts.run(
        tmp_path, policy="balance_attributes", seed=0, full=full, epochs=(0.5, 0.5), train_size=240, test_per_group=8
    )
    assert report["full"] is full
    assert check(tmp_path)["erm"] == report["erm"]
    shown = capsys.readouterr().out
    assert "worst group" in shown
    assert ("pre-training takes 4 batches, about" in shown) is full
    assert ("15% of the training labels are wrong" in (tmp_path / "report.html").read_text()) is full


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_complete_runs(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spurmix", "demo", "--task", "text", "--seed", str(seed), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = check(tmp_path)
    accuracy = {(g["label"], g["attribute"]): g["accuracy"] for g in report["erm"]["groups"]}
    assert max(accuracy[0, 1], accuracy[1, 0]) < 0.5
    assert min(accuracy[0, 0], accuracy[1, 1]) > 0.9
    assert report["debiased"]["worst_group"] > 0.85
    predictor = Predictor(tmp_path / "model.onnx")
    contradictions = ["Some students were waiting in front of us. The soup was horrible.",
                      "Some pensioners were waiting in front of us. The soup was lovely."]  # fmt: skip
    assert predictor.predict(contradictions).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.slow
def test_a_complete_run_of_the_whole_encoder(tmp_path: Path) -> None:
    """Training without debiasing learns the mentioned group, because some opinions contradict the class."""
    texts.run(tmp_path, policy="balance_attributes", seed=0, full=True)
    report = check(tmp_path)
    assert report["erm"]["worst_group"] < 0.3
    assert report["debiased"]["worst_group"] > 0.7
