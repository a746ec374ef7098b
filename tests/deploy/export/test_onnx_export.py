"""Checks of the arguments of export_onnx, and files after a failed export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from export_samples import IMAGE_GROUPS, IMAGES, ImageModel
from torch import nn

from spurmix import GroupIndex, export_onnx
from spurmix.deploy.export import ExportError


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(class_names=["a", "b"]), "class_names must have at least 3 names, one for each label, got 2"),
        (dict(membership=np.ones((9, 2), dtype=bool)), "membership must have shape"),
        (dict(min_group_size=51), "min_group_size"),
        (dict(train_groups=GroupIndex([9])), "train_groups"),
    ],
)
def test_options_are_checked_before_the_model_runs(options: dict, text: str, tmp_path: Path) -> None:
    class NeverCalled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the model ran before the options were checked")

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
