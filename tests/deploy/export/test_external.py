"""Weights above the limit of an ONNX file: a second file, replaced together with the first, and checked when opened."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_samples import IMAGE_GROUPS, IMAGES, ImageModel
from typer.testing import CliRunner

from spurmix import Predictor, export_onnx
from spurmix.cli.app import app
from spurmix.deploy.export import ExportError, external


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two files, exported twice, with other weights before."""
    path = tmp_path_factory.mktemp("external") / "m.onnx"
    first = ImageModel()
    first.body[1].weight.data.mul_(0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external, "MAX_FILE_BYTES", 2000)
        export_onnx(first, path, source=IMAGES, groups=IMAGE_GROUPS)
        for left in (".m.onnx-999999999.data", ".m-999999999.onnx", "m.onnx.0123456789abcdef.data"):
            path.with_name(left).touch()
        export_onnx(ImageModel(), path, source=IMAGES, groups=IMAGE_GROUPS)
    return path


def data_file(path: Path) -> Path:
    (data,) = path.parent.glob("*.data")
    return data


def test_two_files_run_like_one(exported: Path, tmp_path: Path) -> None:
    data = data_file(exported)
    assert sorted(path.name for path in exported.parent.iterdir()) == sorted(["m.onnx", data.name])
    assert len(data.read_bytes()) == 192 * 3 * 4 > exported.stat().st_size - 192 * 3 * 4
    for file in (exported, data):
        shutil.copy(file, tmp_path)
    export_onnx(ImageModel(), tmp_path / "one.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    logits = Predictor(tmp_path / "m.onnx").predict(IMAGES)
    np.testing.assert_array_equal(logits, Predictor(tmp_path / "one.onnx").predict(IMAGES))
    assert [entry.value for one in onnx.load(exported, load_external_data=False).graph.initializer
            for entry in one.external_data if entry.key == "location"] == [data.name]  # fmt: skip
    assert CliRunner().invoke(app, ["verify", str(exported)], catch_exceptions=False).exit_code == 0


def test_damaged_and_missing_weights_are_refused(exported: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / data_file(exported).name
    contents = data_file(exported).read_bytes()
    shutil.copy(exported, path)
    with pytest.raises(ValueError, match=rf"m\.onnx needs the weights in {data.name}; copy this file"):
        Predictor(path)
    for number in (0, 1000, len(contents) - 1):
        changed = bytearray(contents)
        changed[number] ^= 4
        data.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"{data.name} is damaged: it does not match its checksum in m\.onnx"):
            Predictor(path)
    data.write_bytes(contents + b"\0")
    with pytest.raises(ValueError, match=r"data is damaged"):
        Predictor(path)


@pytest.mark.parametrize("name", ["../secret.data", "/etc/passwd", "..", "", "a\\b"])
def test_weights_in_other_folders_are_refused(exported: Path, tmp_path: Path, name: str) -> None:
    from spurmix.deploy.export.metadata import append_metadata

    model = onnx.load(exported, load_external_data=False)
    del model.metadata_props[:]
    for entry in next(one for one in model.graph.initializer if one.external_data).external_data:
        if entry.key == "location":
            entry.value = name
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    described = {"name": name, "bytes": 1, "sha256": ""}
    append_metadata(path, {"spurmix.version": "", "spurmix.data": described})
    with pytest.raises(ValueError, match=r"m\.onnx is damaged: the file of the weights must be in the same folder"):
        Predictor(path)


def test_a_failed_export_keeps_both_files(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (exported, data_file(exported)):
        shutil.copy(file, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(external, "MAX_FILE_BYTES", 2000)
    other = ImageModel(drift=0.5)
    with pytest.raises(ExportError, match="logits differ"):  # the same weights, so that the data has the same name
        export_onnx(other, tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    other.body[1].weight.data.mul_(0.5)
    with pytest.raises(ExportError, match="logits differ"):
        export_onnx(other, tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_smaller_models_replace_both_files(exported: Path, tmp_path: Path) -> None:
    for file in (exported, data_file(exported)):
        shutil.copy(file, tmp_path)
    export_onnx(ImageModel(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
