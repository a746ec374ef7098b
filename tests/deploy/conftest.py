"""Fixtures of the tests of deployment."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_samples import TEXT_GROUPS, TEXTS, text_model, tokenizer

from spurmix import TokenSource, export_onnx


@pytest.fixture(scope="session")
def exported_text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of an exported text model, with its tokenizer in the same folder."""
    folder = tmp_path_factory.mktemp("exported")
    source = TokenSource.from_texts(TEXTS, tokenizer())
    export_onnx(text_model(), folder / "m.onnx", source=source, groups=TEXT_GROUPS, tokenizer=tokenizer())
    return folder / "m.onnx"
