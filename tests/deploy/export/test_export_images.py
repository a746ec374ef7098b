"""Export of image models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from export_samples import IMAGE_GROUPS, IMAGES, ImageModel

from spurmix import ImageSource, Predictor, export_onnx


def test_predictions_of_the_file_equal_those_of_the_model(tmp_path: Path) -> None:
    model, source = ImageModel().train(), ImageSource(IMAGES)
    report = export_onnx(model, tmp_path / "m.onnx", source=source, groups=IMAGE_GROUPS)
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
