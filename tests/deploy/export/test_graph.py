"""The written ONNX graph: requested version, size, dynamic dimensions, and no paths of this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_samples import IMAGE_GROUPS, IMAGES, ImageModel, NeverCalled

from spurmix import GroupIndex, export_onnx
from spurmix.core.temporary import temporary_name
from spurmix.deploy.export import ExportError, onnx_export
from spurmix.deploy.export import graph as graph_module
from spurmix.deploy.export.inputs import TraceableModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "m.onnx"
    export_onnx(ImageModel(), path, source=IMAGES, groups=IMAGE_GROUPS)
    return path


def test_file_has_no_paths_and_no_notes_of_the_exporter(exported: Path) -> None:
    contents = exported.read_bytes()
    for text in (os.getcwd(), str(Path.home()), str(exported.parent), "stack_trace", ".py", "pkg.torch"):
        assert text.encode() not in contents, text
    model = onnx.load(exported)
    assert {entry.key.split(".")[0] for entry in model.metadata_props} == {"spurmix"}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("opset", [17, 21])
def test_file_has_the_requested_version(opset: int, tmp_path: Path) -> None:
    export_onnx(ImageModel(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS, opset=opset)
    assert [one.version for one in onnx.load(tmp_path / "m.onnx").opset_import] == [opset]


@pytest.mark.parametrize("opset", [0, 9, 16, 27, 99])
def test_a_version_outside_the_range_is_refused_before_the_model_runs(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"opset must be in \[17, 26\], got {opset}"):
        export_onnx(NeverCalled(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS, opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_a_version_to_which_a_model_cannot_be_converted_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = graph_module._convert

    def with_another_version(traceable: TraceableModel, opset: int, name: str) -> onnx.ModelProto:
        return convert(traceable, 18, name)

    def never_called(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was evaluated before it was converted")

    monkeypatch.setattr(graph_module, "_convert", with_another_version)
    monkeypatch.setattr(onnx_export, "predict", never_called)
    with pytest.raises(
        ExportError,
        match=r"ImageModel cannot be converted to version 17, .* wrote 18; use another version in \[17, 26\]",
    ):
        export_onnx(ImageModel(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS, opset=17)
    assert list(tmp_path.iterdir()) == []


class InvertedMask(ImageModel):
    """Subtracts integers from floating-point numbers, as XLNet does with its mask."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.argmax(dim=2)
        return self.body(x * (1.0 - (x > 0).long())) + (2.5 - count + torch.rsub(count, 1.0)).mean((1, 2))[:, None]


def test_integers_are_subtracted_from_numbers(tmp_path: Path) -> None:
    report = export_onnx(InvertedMask(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert report.argmax_flips == 0


class FixedBatch(ImageModel):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + (torch.zeros(3, 3) if torch.compiler.is_exporting() else 0)


def test_models_that_the_exporter_cannot_convert_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot convert FixedBatch: "):
        export_onnx(FixedBatch(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_dimension_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = graph_module._convert

    def with_fixed_batch(*arguments: Any) -> onnx.ModelProto:
        proto = convert(*arguments)
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
        return proto

    monkeypatch.setattr(graph_module, "_convert", with_fixed_batch)
    with pytest.raises(ExportError, match=r"fixes dimension 0 \(batch\) of logits to 3"):
        export_onnx(ImageModel(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)


@pytest.mark.parametrize("scale", [1e4])
def test_tolerance_is_relative_to_the_logits(scale: float, tmp_path: Path) -> None:
    class Scaled(ImageModel):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scale * super().forward(x)

    groups = GroupIndex(IMAGE_GROUPS.labels, IMAGE_GROUPS.attributes)
    export_onnx(Scaled(), tmp_path / "m.onnx", source=IMAGES, groups=groups)
    with pytest.raises(ExportError, match=r"tolerance is 0\.001 of the largest logit"):
        export_onnx(Scaled(drift=0.02), tmp_path / "n.onnx", source=IMAGES, groups=groups)


def test_files_of_killed_exports_are_removed(tmp_path: Path) -> None:
    left = temporary_name(tmp_path / "m.onnx", 999_999_999)
    other = tmp_path / ".other-999999999.onnx"
    left.write_bytes(b"partial")
    other.touch()
    export_onnx(ImageModel(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "m.onnx"]
