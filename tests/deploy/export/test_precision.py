"""The precision of exported models: converted to float32, or that of the model if it casts in its forward method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from export_samples import IMAGE_GROUPS, IMAGES, ImageModel
from torch import Tensor, nn

from spurmix import ImageSource, Predictor, export_onnx
from spurmix.deploy.export import ExportError, onnx_export
from spurmix.deploy.export.precision import check_dtypes, runnable_model


class Casting(ImageModel):
    """Weights of one dtype, and inputs that are cast to another."""

    def __init__(self, weights: torch.dtype, cast: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.to(weights)
        self.cast = cast

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.cast(x))


class MixedHead(ImageModel):
    """A head of another precision than the body."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3).to(dtype)
        self.register_buffer("offset", torch.ones(3, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).to(self.offset.dtype)) + self.offset


class Autocast(ImageModel):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype):
            return self.body(x)


class ComplexLogits(ImageModel):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).to(torch.complex64)


def forbid_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_called(*arguments: object, **options: object) -> None:
        raise AssertionError("the model was evaluated before it was converted")

    monkeypatch.setattr(onnx_export, "predict", never_called)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_another_precision_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    model = ImageModel().to(dtype)
    report = export_onnx(model, tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert report.argmax_flips == 0
    assert next(model.parameters()).dtype == dtype
    predictor = Predictor(tmp_path / "m.onnx")
    x = ImageSource(IMAGES).gather(torch.arange(len(IMAGES)))
    expected = copy.deepcopy(model).float()(x)
    np.testing.assert_allclose(predictor.predict(IMAGES), expected.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_that_cast_their_inputs_keep_their_dtypes(dtype: torch.dtype) -> None:
    source = ImageSource(IMAGES)
    for model in (Casting(dtype, lambda x: x.to(dtype)), Autocast(torch.bfloat16)):
        assert runnable_model(model, source) == (model, 3)
    for model in (ImageModel().to(dtype), MixedHead(dtype)):
        converted, _ = runnable_model(model, source)
        assert {one.dtype for one in converted.state_dict().values()} == {torch.float32}


def test_a_model_that_casts_is_exported_with_float32_logits(tmp_path: Path) -> None:
    model = Casting(torch.float16, Tensor.half)
    report = export_onnx(model, tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert report.argmax_flips == 0
    logits = Predictor(tmp_path / "m.onnx").predict(IMAGES)
    expected = model(ImageSource(IMAGES).gather(torch.arange(len(IMAGES)))).detach().float()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    "model",
    [Autocast(torch.bfloat16), pytest.param(Casting(torch.bfloat16, Tensor.bfloat16), marks=pytest.mark.slow)],
)
def test_a_precision_without_kernels_is_named_before_the_evaluation(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_evaluation(monkeypatch)
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot run .* computes in bfloat16: remove casts") as caught:
        export_onnx(model, tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cast", [Tensor.half, Tensor.bfloat16, Tensor.double])
def test_casts_that_do_not_match_the_weights_are_named(cast: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"Casting cannot compute logits .* of its weights: float32\); .* remove casts"
    ):
        export_onnx(Casting(torch.float32, cast), tmp_path / "m.onnx", source=IMAGES, groups=IMAGE_GROUPS)
    assert list(tmp_path.iterdir()) == []


def test_dtypes_that_cannot_be_exported_are_named() -> None:
    model = ImageModel()
    model.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"phase has dtype torch\.complex64"):
        check_dtypes(model)
    with pytest.raises(TypeError, match="must return real logits, got complex64"):
        runnable_model(ComplexLogits(), ImageSource(IMAGES))


def test_logits_of_a_wrong_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"must return logits \[B, C\], got shape \[9\] for B = 3"):
        runnable_model(nn.Flatten(0), ImageSource(IMAGES[:, :1, :1].copy()))
