"""Predictor: imports, and checks of files and inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_samples import IMAGE_GROUPS, IMAGES, ImageModel

from spurmix import Predictor, export_onnx
from spurmix.deploy import predictor as predictor_module


def run_script(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_predictor_and_tokenizer_import_neither_torch_nor_transformers() -> None:
    run_script(
        "import sys, spurmix, spurmix.deploy.predictor, spurmix.deploy.tokenizer; spurmix.Predictor; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )


def test_predictions_from_strings_import_neither_torch_nor_transformers(exported_text_model: Path) -> None:
    output = run_script(
        "import sys; from spurmix import Predictor; "
        f"print(Predictor({str(exported_text_model)!r}).predict(['w1 w2', 'W3']).shape); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert output == "(2, 2)\n"


def test_invalid_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="there is no file"):
        Predictor(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="cannot be loaded"):
        Predictor(tmp_path / "file")


def test_image_inputs(tmp_path: Path) -> None:
    export_onnx(ImageModel(), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    predictor = Predictor(tmp_path / "m.onnx")
    np.testing.assert_allclose(predictor.predict_proba(IMAGES).sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(TypeError, match="uint8"):
        predictor.predict(IMAGES.astype(np.float32))
    with pytest.raises(ValueError, match="8, 8, 3"):
        predictor.predict(IMAGES[:, :4])
    for tensor in (torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, requires_grad=True)):
        with pytest.raises(TypeError, match=r"inputs cannot be converted to a NumPy array: .*; convert them first"):
            predictor.predict(tensor)


def test_text_inputs(exported_text_model: Path) -> None:
    predictor = Predictor(exported_text_model)
    assert predictor.predict([""]).shape == (1, 2)
    np.testing.assert_array_equal(predictor.predict(["w1 " * 500]), predictor.predict(["w1 " * 10]))
    one, two = np.ones((1, 2), int), np.ones((1, 3), int)
    for invalid, error, text in (
        ("w1", TypeError, "sequence of strings"),
        (["w1", 3], TypeError, r"texts\[1\] must be a string, got int"),
        (["w1", None], TypeError, r"texts\[1\] must be a string"),
        ({"input_ids": np.ones((1, 2))}, ValueError, "input_ids and attention_mask"),
        (dict(input_ids=np.ones((1, 2)), attention_mask=one), TypeError, "input_ids must be integers"),
        (dict(input_ids=one, attention_mask=two), ValueError, "attention_mask must have shape"),
        (dict(input_ids=np.full((1, 2), 34), attention_mask=one), IndexError, r"\[0, 34\)"),
        (dict(input_ids=np.ones((1, 13), int), attention_mask=np.ones((1, 13), int)), ValueError, "at most 12"),
        (dict(input_ids=np.ones((2, 0), int), attention_mask=np.ones((2, 0), int)), ValueError, r"mask\[0\] has no 1"),
        (
            dict(input_ids=two, attention_mask=0 * two),
            ValueError,
            r"attention_mask\[0\] has no 1: the text has no tokens",
        ),
        (
            dict(input_ids=two, attention_mask=two - 2),
            ValueError,
            "attention_mask must be 0 or 1, got values from -1 to",
        ),
        (dict(input_ids=[[1], [1, 2]], attention_mask=two), ValueError, "input_ids must be an array, or sequences of"),
        (dict(input_ids=[[2**70]], attention_mask=one), TypeError, "input_ids must be integers"),
        ([("w1", "w2")], TypeError, r"texts\[0\] must be a string, got tuple"),
        ({"w1", "w2"}, TypeError, "sequence of strings, got set"),
        (["\ud800"], ValueError, r"texts\[0\] has a lone surrogate"),
    ):
        with pytest.raises(error, match=text):
            predictor.predict(invalid)


def test_texts_of_one_token(exported_text_model: Path) -> None:
    predictor = Predictor(exported_text_model)
    one = dict(input_ids=np.array([[5]]), attention_mask=np.array([[True]]))
    padded = dict(input_ids=np.array([[5, 0, 0]]), attention_mask=np.array([[1, 0, 0]]))
    np.testing.assert_allclose(predictor.predict(one), predictor.predict(padded), atol=1e-6)
    none = np.zeros((0, 3), int)
    assert predictor.predict(dict(input_ids=none, attention_mask=none)).shape == (0, 2)


def test_errors_of_onnx_runtime_name_the_file(exported_text_model: Path) -> None:
    predictor = Predictor(exported_text_model)
    assert predictor.text is not None
    predictor.text.vocab_size = 10**6
    with pytest.raises(RuntimeError, match=r"m\.onnx: ONNX Runtime cannot compute logits of input_ids \[1, 2\]"):
        predictor.predict(dict(input_ids=np.full((1, 2), 50), attention_mask=np.ones((1, 2), int)))


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**40])
def test_numbers_of_threads_outside_the_range(exported_text_model: Path, threads: int) -> None:
    with pytest.raises(ValueError, match=rf"threads must be in \[1, 1024\], got {threads}"):
        Predictor(exported_text_model, threads=threads)


def test_deprecated_name_of_the_tokenizer_file_still_works() -> None:
    with pytest.deprecated_call(match="FILE is deprecated, use TOKENIZER_FILE"):
        assert predictor_module.FILE == predictor_module.TOKENIZER_FILE
    assert not hasattr(predictor_module, "OTHER_FILE")
