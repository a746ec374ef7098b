"""Checks of the arguments of export_onnx, and files after a failed export."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from export_samples import IMAGE_GROUPS, IMAGES, ImageModel, NeverCalled
from typer.testing import CliRunner

from spurmix import GroupIndex, export_onnx
from spurmix.cli.app import app
from spurmix.deploy.export import ExportError


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(class_names=["a", "b"]), "class_names must have at least 3 names, one for each label, got 2"),
        (dict(membership=np.ones((9, 2), dtype=bool)), "membership must have shape"),
        (dict(min_group_size=51), "min_group_size"),
        (dict(train_groups=GroupIndex([9])), "train_groups"),
        (dict(tolerance=0), "tolerance must be a positive finite number"),
        (dict(batch_size=0), "batch_size must be 1 or more"),
        (dict(opset=2**70), r"opset must be in \[17, 26\]"),
    ],
)
def test_options_are_checked_before_the_model_runs(options: dict, text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        export_onnx(NeverCalled(), tmp_path / "new" / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS, **options)
    named = GroupIndex(IMAGE_GROUPS.labels, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="class_names: class 'b' has the number 0"):
        export_onnx(NeverCalled(), tmp_path / "m.onnx", source=IMAGES, groups=named, class_names=["b", "a", "c"])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_removes_the_folders_it_created(tmp_path: Path) -> None:
    faulty, path = ImageModel(drift=0.5), tmp_path / "a" / "b" / "m.onnx"
    for options, error in (
        (dict(batch_size=0), ValueError),
        (dict(class_names=list("abcd")), ValueError),
        ({}, ExportError),
    ):
        with pytest.raises(error):
            export_onnx(faulty, path, source=IMAGES, groups=IMAGE_GROUPS, **options)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(ExportError):
        export_onnx(faulty, path, source=IMAGES, groups=IMAGE_GROUPS)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_invalid_paths_and_names(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write into"):
        export_onnx(ImageModel(), tmp_path / "file" / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    for folder in (tmp_path, "."):
        with pytest.raises(ValueError, match="path must name a file"):
            export_onnx(ImageModel(), folder, source=IMAGES, groups=IMAGE_GROUPS)
    with pytest.raises(ValueError, match="class_names must have at least 3 names"):
        export_onnx(ImageModel(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS, class_names=["a"])


def test_special_files_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="path must name a regular file"):
        export_onnx(NeverCalled(), tmp_path / "pipe", source=IMAGES, groups=IMAGE_GROUPS)
    with pytest.raises(ValueError, match="path must name a regular file, got '/dev/null'"):
        export_onnx(NeverCalled(), "/dev/null", source=IMAGES, groups=IMAGE_GROUPS)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ImportError, match="needs the package 'onnxscript': pip install"):
        export_onnx(NeverCalled(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)


def test_the_command_checks_its_options_before_it_opens_the_run(tmp_path: Path) -> None:
    for options, text in (
        (["--opset", "9"], "opset must be in [17, 26], got 9"),
        (["--tolerance", "0"], "tolerance must be a positive"),
        (["--out", str(tmp_path)], "path must name a file"),
    ):
        done = CliRunner().invoke(app, ["export", str(tmp_path / "no-run"), *options])
        assert done.exit_code != 0
        assert text in done.output + str(done.exception)
