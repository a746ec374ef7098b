"""The command line, as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import spurmix
from spurmix import GroupIndex
from spurmix.cli.report import GREY, draw_accuracy, draw_audit
from spurmix.ops import library

RNG = np.random.default_rng(2)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "spurmix", *arguments], capture_output=True, text=True)


def test_public_names_exist() -> None:
    for name in spurmix.__all__:
        assert getattr(spurmix, name) is not None
    with pytest.raises(AttributeError):
        spurmix.nothing  # noqa: B018


def test_version_and_info(command: Any) -> None:
    assert run("--version").stdout == f"spurmix {spurmix.__version__}\n"
    done = command("info")
    assert done.returncode == 0, done.stderr
    on_gpu = "cuda" if library.COMPILED_CUDA == "ok" else "triton"
    assert "op mix_image_batch" in done.stdout and f"CPU: cpu, GPU: {on_gpu}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--policy", "magic"),
        ("--model", "vgg"),
        ("--out", "/dev/null/x"),
        ("--task", "sound"),
        ("--full",),
        ("--task", "text", "--model", "small"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], tmp_path: Path, command: Any) -> None:
    done = command("demo", *(arguments if "--out" in arguments else (*arguments, "--out", tmp_path)))
    assert done.returncode == 2
    assert done.stderr.startswith("spurmix: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("classes", "name", "tall"), [
    (2, "cat", False), (2, r"$\frac{a}$, of a long name", False), (9, "x", True),
])  # fmt: skip
def test_pictures_of_any_names(classes: int, name: str, tall: bool, tmp_path: Path) -> None:
    names = [f"{name}{k}" for k in range(classes)]
    groups = GroupIndex(np.arange(50) % classes, class_names=names)
    found = spurmix.evaluate(nn.Linear(4, classes), RNG.standard_normal((50, 4)).astype(np.float32), groups)
    drawn = [draw_accuracy(tmp_path, [("ERM", found, GREY)]), draw_audit(tmp_path, {"erm": 0.5}, 0.5, r"$\co$")]
    with Image.open(drawn[0]) as bars, Image.open(drawn[1]) as audit:
        assert (bars.height > 0.65 * bars.width) == tall
        assert max(bars.size + audit.size) < 1500


def check_demo(out: Path, seed: int) -> Any:
    done = run("demo", "--out", str(out), "--seed", str(seed))
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    by_group = {(g["label"], g["attribute"]): g["accuracy"] for g in report["erm"]["groups"]}
    assert report["erm"]["worst_group"] < 0.6
    assert min(by_group[0, 0], by_group[1, 1]) > 0.85
    assert report["debiased"]["worst_group"] >= report["erm"]["worst_group"] + 0.2
    assert report["audit"]["residual"] < 1e-6 < 0.5 < report["audit"]["raw"]
    assert report["onnx"]["max_abs_logit_diff"] <= 1e-3
    assert report["onnx"]["argmax_flips"] == 0
    assert report["onnx"]["worst_group"] == report["debiased"]["worst_group"]
    names = {"report.json", "report.html", "model.onnx", "accuracy.png", "audit.png", "samples.png"}
    assert {p.name for p in out.iterdir()} == names
    return report


def test_demo(tmp_path: Path) -> None:
    check_demo(tmp_path / "demo", 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_demo_of_other_seeds(tmp_path: Path, seed: int) -> None:
    check_demo(tmp_path / "demo", seed)
