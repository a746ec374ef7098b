"""The rows of one logistic regression: examples, or mixed pairs of examples, of a feature matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spurmix.core.array_types import FloatArray, Int64Array

Features = NDArray[np.float32]


@dataclass(frozen=True)
class HeadRows:
    """Row i is `share[i] * x[index[i]] + (1 - share[i]) * x[partner[i]]`, of class `label[i]`.

    Attributes:
        index: Example numbers, `[n]`.
        label: Classes, int32 `[n]`, in [0, C).
        partner: Example numbers of the partners, `[n]`, or None if rows are single examples.
        share: Weight of `index`, float32 `[n]`, in [0, 1]. None if `partner` is.
    """

    index: Int64Array
    label: NDArray[np.int32]
    partner: Int64Array | None = None
    share: NDArray[np.float32] | None = None

    def values(self, features: Features) -> Features:
        """Return the rows, float32 `[n, D]`."""
        rows = features[self.index]
        if self.partner is None or self.share is None:
            return rows
        other = features[self.partner]
        mixed: Features = other + self.share[:, None] * (rows - other)
        return mixed


@dataclass(frozen=True)
class Standardization:
    """Maps a feature x to (x - mean) * inverse_scale.

    Attributes:
        mean: Mean of each feature, float32 `[D]`.
        inverse_scale: 1 / standard deviation, float32 `[D]`. 0 for a constant feature, which is ignored.
    """

    mean: NDArray[np.float32]
    inverse_scale: NDArray[np.float32]

    @classmethod
    def of(cls, features: Features, examples: Int64Array, block: int = 4096) -> Standardization:
        """Standardize by the population mean and standard deviation of some examples."""
        parts = [examples[start : start + block] for start in range(0, examples.size, block)]
        mean = sum(features[part].sum(axis=0, dtype=np.float64) for part in parts) / examples.size
        variance = sum(((features[part] - mean) ** 2).sum(axis=0, dtype=np.float64) for part in parts) / examples.size
        scale = np.sqrt(variance)
        constant = scale <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
        inverse = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, scale))
        return cls(mean.astype(np.float32), inverse.astype(np.float32))

    def apply(self, features: Features) -> Features:
        """Standardize `features`, `[n, D]`."""
        return (features - self.mean) * self.inverse_scale

    def unstandardized(self, weight: FloatArray) -> tuple[torch.Tensor, torch.Tensor]:
        """Map weights for standardized features to those for the features.

        Args:
            weight: Weights and bias of each class, `[C, D + 1]`, or of class 1 of two, `[1, D + 1]`.

        Returns:
            Weights, float32 `[C, D]`, and biases, float32 `[C]`.
        """
        scaled = weight[:, :-1] * self.inverse_scale
        bias = weight[:, -1] - scaled @ self.mean.astype(np.float64)
        if len(weight) == 1:  # two logits with this difference
            scaled, bias = np.concatenate([-scaled, scaled]) / 2, np.concatenate([-bias, bias]) / 2
        return torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(bias.astype(np.float32))
