"""The tokenizer file next to an exported text model."""

from __future__ import annotations

from pathlib import Path

import pytest

from spurmix import Predictor


def test_a_missing_or_wrong_tokenizer_is_rejected(exported_text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(exported_text_model.read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer.json is missing"):
        Predictor(tmp_path / "m.onnx")
    file = tmp_path / "tokenizer.json"
    file.write_text(exported_text_model.with_name("tokenizer.json").read_text().replace("w7", "v7"))
    with pytest.raises(ValueError, match="tokenizer of another model"):
        Predictor(tmp_path / "m.onnx")
    file.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        Predictor(tmp_path / "m.onnx")
