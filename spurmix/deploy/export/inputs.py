"""The interface between export and the kinds of input: images, features and texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from spurmix.deploy.predictor import Predictor
from spurmix.deploy.tokenizer import TextSettings

if TYPE_CHECKING:
    from spurmix.deploy.predictor import PredictorInput


@dataclass(frozen=True)
class TraceableModel:
    """A module and the description of its inputs for `torch.onnx.export`.

    Attributes:
        module: Module that maps the raw inputs to logits, in evaluation mode on the CPU.
        example: Example inputs.
        names: Name of each input.
        dynamic_shapes: For each input, the dimensions of variable size and their names.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    names: list[str]
    dynamic_shapes: tuple[dict[int, str], ...]


class ExportInput(ABC):
    """One kind of model input: preprocessing inside the ONNX graph, metadata, and files next to the model."""

    @abstractmethod
    def traceable(self, model: nn.Module) -> TraceableModel:
        """Wrap a copy of `model`, which is in evaluation mode on the CPU, so that it takes raw inputs."""

    @abstractmethod
    def predictor_input(self, index: Tensor) -> PredictorInput:
        """Return the examples `index`, int64 `[B]`, as `Predictor.predict` takes them."""

    def normalization(self) -> dict[str, list[float]]:
        """Return mean and standard deviation per channel. Only images have them."""
        return {}

    def text_settings(self) -> TextSettings | None:
        """Return the settings of the tokenizer. Only texts have them."""
        return None

    def open_predictor(self, path: Path) -> Predictor:
        """Open the exported file before it has its final name."""
        return Predictor(path)

    def write_files(self) -> None:  # noqa: B027  # optional, not abstract
        """Write the files that belong next to the model."""
