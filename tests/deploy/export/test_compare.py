"""An exported file that differs from its model is rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_samples import IMAGE_GROUPS, IMAGES, TEXT_GROUPS, TEXTS, FaultyTextModel, ImageModel, tokenizer

from spurmix import TokenSource, export_onnx
from spurmix.deploy.export import ExportError
from spurmix.deploy.export.compare import compare_with_model
from spurmix.train.metrics import evaluate_logits


def test_other_logits_are_rejected_and_no_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"logits differ from the PyTorch model.s by up to 0\.5, tolerance is 0\.001"):
        export_onnx(ImageModel(drift=0.5), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert list(tmp_path.iterdir()) == []


def test_other_logits_of_a_text_model_are_rejected(tmp_path: Path) -> None:
    source = TokenSource.from_texts(TEXTS, tokenizer())
    with pytest.raises(ExportError, match="logits differ from the PyTorch model's"):
        export_onnx(FaultyTextModel(), tmp_path / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_nan_and_another_accuracy_are_rejected() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    evaluation = evaluate_logits(logits, IMAGE_GROUPS)
    path = Path("m.onnx")
    assert compare_with_model(path, logits, evaluation, logits, evaluation, 1e-3).argmax_flips == 0
    with pytest.raises(ExportError, match="by up to nan"):
        compare_with_model(path, np.full_like(logits, np.nan), evaluation, logits, evaluation, 1e-3)
    first = evaluation.groups[0]
    other = replace(evaluation, groups=(replace(first, correct=first.correct + 1), *evaluation.groups[1:]))
    with pytest.raises(ExportError, match=r"accuracy in .* is .*, the PyTorch model's .*; the file was not written"):
        compare_with_model(path, logits, other, logits, evaluation, 1e-3)
