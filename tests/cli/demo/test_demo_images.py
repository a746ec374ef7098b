"""`spurmix demo` for images: a very short run, complete runs (slow), and invalid options."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spurmix.cli.demo import digits, images


@pytest.mark.parametrize(
    "arguments",
    [
        ("--policy", "magic"),
        ("--model", "vgg"),
        ("--out", "/dev/null/x"),
        ("--task", "audio"),
        ("--full",),
        ("--task", "text", "--model", "small"),
    ],
)
def test_invalid_options_print_one_line(arguments: tuple[str, ...], tmp_path: Path, command: Any) -> None:
    done = command("demo", *(arguments if "--out" in arguments else (*arguments, "--out", tmp_path)))
    assert done.returncode == 2
    assert done.stderr.startswith("spurmix: ") and done.stderr.count("\n") == 1


FILES = {"report.json", "report.html", "model.onnx", "accuracy.png", "audit.png", "samples.png"}


def check(out: Path) -> Any:
    """Check what does not depend on the accuracy. Return the report."""
    report = json.loads((out / "report.json").read_text())
    assert {p.name for p in out.iterdir()} == FILES
    assert report["audit"]["residual"] < 1e-6 < 0.5 < report["audit"]["raw"]
    assert report["onnx"]["max_abs_logit_diff"] <= 1e-3
    assert report["onnx"]["argmax_flips"] == 0
    assert report["onnx"]["worst_group"] == report["debiased"]["worst_group"]
    return report


def test_a_very_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "TRAIN_COPIES", 1)
    monkeypatch.setattr(digits, "TEST_PER_GROUP", 20)
    report = images.run(
        tmp_path,
        policy="balance_attributes",
        model_name="small",
        seed=1,
        epochs=(0.05, 0.05),
        seeds=2,
    )
    assert check(tmp_path)["erm"] == report["erm"]
    methods: Any = report["methods"]
    assert set(methods) == {"erm", "balance_attributes"}
    assert report["seeds"] == [1, 2]
    for method in methods.values():
        assert method["mean"] == pytest.approx(sum(method["worst_group"]) / 2)
    shown = " ".join(capsys.readouterr().out.split())
    assert "worst group" in shown and "methods, equally long training" in shown
    page = (tmp_path / "report.html").read_text()
    assert "infers their shares" in page and "<h2>Methods</h2>" in page and "seeds 1, 2" in page


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_complete_runs(seed: int, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "spurmix", "demo", "--out", str(out), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = check(out)
    by_group = {(g["label"], g["attribute"]): g["accuracy"] for g in report["erm"]["groups"]}
    assert report["erm"]["worst_group"] < 0.8
    assert min(by_group[0, 0], by_group[1, 1]) > 0.85
    assert report["debiased"]["worst_group"] > 0.8
    assert report["debiased"]["worst_group"] >= report["erm"]["worst_group"] + 0.1
