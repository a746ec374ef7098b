"""Export of models of feature vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spurmix.data.sources.arrays import FeatureSource
from spurmix.deploy.export.inputs import ExportInput, TraceableModel
from spurmix.deploy.export.precision import float_logits
from spurmix.deploy.predictor import PredictorInput


class FeatureExport(ExportInput):
    """Feature vectors of a source as model input."""

    def __init__(self, source: FeatureSource) -> None:
        self._source = source

    def traceable(self, model: nn.Module) -> TraceableModel:
        """Wrap `model` so that it returns a tensor."""
        example = self._source.raw(torch.arange(3) % len(self._source)).cpu().float()
        return TraceableModel(_FeatureLogits(model), (example,), ["features"], ({0: "batch"},))

    def predictor_input(self, index: Tensor) -> PredictorInput:
        """Return features, float32 `[B, D]`."""
        return self._source.raw(index).cpu().float().numpy()


class _FeatureLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        return float_logits(self.model(features))
