"""Export, predictor and command line, as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import spurmix
from spurmix import GroupIndex, ImageSource, Predictor, export_onnx
from spurmix.cli.report import GREY, draw_accuracy, draw_audit
from spurmix.deploy.export import ExportError
from spurmix.ops import library

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 50)
GROUPS = GroupIndex(LABELS, RNG.integers(0, 2, 50), class_names=["a", "b", "c"])


class Network(nn.Module):
    def __init__(self, drift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        self.drift = drift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # `drift` shows in the exported graph only: a stand-in for an exporter that goes wrong.
        return self.body(x) + (self.drift if torch.compiler.is_exporting() else 0.0)


def test_export_and_predict(tmp_path: Path) -> None:
    model, source = Network().train(), ImageSource(IMAGES)
    report = export_onnx(model, tmp_path / "m.onnx", source=source, groups=GROUPS)
    assert model.training
    assert report.max_abs_logit_diff < 1e-4
    assert report.argmax_flips == 0
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    predictor = Predictor(tmp_path / "m.onnx")
    assert predictor.classes == ["a", "b", "c"]
    assert predictor.report["worst_group"] == report.evaluation.worst_group
    expected = model(source.gather(torch.arange(50))).detach().numpy()
    for count in (0, 1, 7, 50):
        np.testing.assert_allclose(predictor.predict(IMAGES[:count]), expected[:count], atol=1e-4)
    np.testing.assert_allclose(predictor.predict_proba(IMAGES).sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(TypeError, match="uint8"):
        predictor.predict(IMAGES.astype(np.float32))
    with pytest.raises(ValueError, match="8, 8, 3"):
        predictor.predict(IMAGES[:, :4])


def test_features_export_too(tmp_path: Path) -> None:
    features = RNG.standard_normal((50, 4)).astype(np.float32)
    export_onnx(nn.Linear(4, 3), tmp_path / "f.onnx", source=features, groups=GROUPS)
    assert Predictor(tmp_path / "f.onnx").predict(features[:3]).shape == (3, 3)


def test_a_file_that_disagrees_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="logits differ by"):
        export_onnx(Network(drift=0.5), tmp_path / "m.onnx", source=IMAGES, groups=GROUPS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(class_names=["a", "b"]), "class_names: 2 names, but labels go up to 2"),
        (dict(membership=np.ones((9, 2), dtype=bool)), "membership must have shape"),
        (dict(min_group_size=51), "the largest group has only"),
        (dict(train_groups=GroupIndex([9])), "train_groups"),
    ],
)
def test_options_of_an_export_are_checked_before_the_model_works(options: dict, text: str, tmp_path: Path) -> None:
    class Untouched(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the model worked before the options were checked")

    with pytest.raises(ValueError, match=text):
        export_onnx(Untouched(), tmp_path / "new" / "m.onnx", source=IMAGES, groups=GROUPS, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    for options, error in (
        (dict(batch_size=0), ValueError),
        (dict(class_names=list("abcd")), ValueError),
        ({}, ExportError),
    ):
        with pytest.raises(error):
            export_onnx(Network(drift=0.5), tmp_path / "a" / "b" / "m.onnx", source=IMAGES, groups=GROUPS, **options)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(ExportError):
        export_onnx(Network(drift=0.5), tmp_path / "a" / "b" / "m.onnx", source=IMAGES, groups=GROUPS)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_bad_exports(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write into"):
        export_onnx(Network(), tmp_path / "file" / "m.onnx", source=IMAGES, groups=GROUPS)
    for folder in (tmp_path, "."):
        with pytest.raises(ValueError, match="path must name a file"):
            export_onnx(Network(), folder, source=IMAGES, groups=GROUPS)
    with pytest.raises(ValueError, match="class_names: 1 names"):
        export_onnx(Network(), tmp_path / "m.onnx", source=IMAGES, groups=GROUPS, class_names=["a"])
    with pytest.raises(ValueError, match="there is no file"):
        Predictor(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="cannot be loaded"):
        Predictor(tmp_path / "file")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "spurmix", *arguments], capture_output=True, text=True)


def test_predictor_and_package_import_no_torch() -> None:
    script = "import sys, spurmix; from spurmix.deploy.predictor import Predictor; spurmix.Predictor; import spurmix.core.policies; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
