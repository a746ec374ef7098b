"""Export of image models: uint8 images, normalized inside the ONNX graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spurmix.data.sources.arrays import ImageSource
from spurmix.deploy.export.inputs import ExportInput, TraceableModel
from spurmix.deploy.export.precision import float_logits
from spurmix.deploy.predictor import PredictorInput


class ImageExport(ExportInput):
    """Images of a source as model input."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def traceable(self, model: nn.Module) -> TraceableModel:
        """Put the normalization of the source in front of `model`."""
        example = self._source.raw(torch.arange(3) % len(self._source)).cpu()
        return TraceableModel(_NormalizedImages(model, self._source), (example,), ["image"], ({0: "batch"},))

    def predictor_input(self, index: Tensor) -> PredictorInput:
        """Return images, uint8 `[B, H, W, C]`."""
        return self._source.raw(index).cpu().numpy()

    def normalization(self) -> dict[str, list[float]]:
        """Return mean and standard deviation per channel."""
        return {"mean": self._source.mean.tolist(), "std": self._source.std.tolist()}


class _NormalizedImages(nn.Module):
    """Normalizes uint8 `[B, H, W, C]` as the loader does, then applies the model."""

    scale: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, source: ImageSource) -> None:
        super().__init__()
        self.model = model
        scale = 1.0 / (255.0 * source.std)
        self.register_buffer("scale", scale.cpu().view(1, -1, 1, 1))
        self.register_buffer("bias", (-source.mean / source.std).cpu().view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.bias
        return float_logits(self.model(x))
