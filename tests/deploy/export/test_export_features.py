"""Export of models of feature vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from export_samples import IMAGE_GROUPS
from torch import nn

from spurmix import Predictor, export_onnx


def test_features_are_exported(tmp_path: Path) -> None:
    features = np.random.default_rng(3).standard_normal((50, 4)).astype(np.float32)
    export_onnx(nn.Linear(4, 3), tmp_path / "f.onnx", source=features, groups=IMAGE_GROUPS)
    assert Predictor(tmp_path / "f.onnx").predict(features[:3]).shape == (3, 3)
