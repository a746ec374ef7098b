"""The result of fitting a head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadTrial:
    """One setting of the search, and its accuracy on the validation examples.

    Attributes:
        settings: Hyperparameters, such as `{"C": 0.1}`.
        worst_group: Accuracy of the worst group of the validation examples.
        average: Mean accuracy of the groups of the validation examples.
        nonzero: Share of weights that are not 0.
    """

    settings: dict[str, float]
    worst_group: float
    average: float
    nonzero: float


@dataclass(frozen=True)
class HeadFit:
    """A fitted linear head, for features as they are (not standardized).

    Attributes:
        method: Name of the method.
        weight: float32 `[C, D]`.
        bias: float32 `[C]`.
        best: The chosen trial. None if there was one setting, which needs no validation examples.
        trials: All trials, in the order of the search.
    """

    method: str
    weight: Tensor
    bias: Tensor
    best: HeadTrial | None
    trials: tuple[HeadTrial, ...]

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits `[N, C]` of features `[N, D]`."""
        return torch.nn.functional.linear(features, self.weight, self.bias)

    def copy_to(self, layer: nn.Linear) -> None:
        """Write the head into a linear layer.

        Args:
            layer: Layer with D inputs and C outputs, and a bias. A layer with one output receives the difference of the
                logits of two classes.

        Raises:
            ValueError: If the layer has another shape or no bias.
        """
        weight, bias = self.weight, self.bias
        if layer.out_features == 1 and len(bias) == 2:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        if tuple(layer.weight.shape) != tuple(weight.shape) or layer.bias is None:
            raise ValueError(
                f"the head must be a linear layer with a bias and weights {list(weight.shape)}, got "
                f"{list(layer.weight.shape)}{'' if layer.bias is not None else ' without a bias'}"
            )
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)

    def __str__(self) -> str:
        lines = [f"{self.method}: head of {self.weight.shape[1]} features and {self.weight.shape[0]} classes"]
        if self.best is not None:
            chosen = ", ".join(f"{name}={value:g}" for name, value in self.best.settings.items())
            lines.append(
                f"chosen {chosen} of {len(self.trials)} settings: validation worst group "
                f"{100 * self.best.worst_group:.1f} %, mean of the groups {100 * self.best.average:.1f} %"
            )
        return "\n".join(lines)
