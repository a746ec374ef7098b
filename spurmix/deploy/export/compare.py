"""Comparison of an exported ONNX file with the PyTorch model: logits and accuracy per group, on held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spurmix.core.names import printable
from spurmix.deploy.export.errors import ExportError
from spurmix.deploy.export.inputs import ExportInput
from spurmix.deploy.predictor import Predictor
from spurmix.train.evaluation import Evaluation

LogitArray = NDArray[np.float32]


@dataclass(frozen=True)
class ExportReport:
    """Result of the comparison of an exported file with its model.

    Attributes:
        path: The exported file.
        max_abs_logit_diff: Maximum difference of a logit from the model's, over all held-out examples.
        argmax_flips: Number of held-out examples with another predicted class than the model's.
        evaluation: Accuracy of the file per group, run by ONNX Runtime.
    """

    path: Path
    max_abs_logit_diff: float
    argmax_flips: int
    evaluation: Evaluation

    def __str__(self) -> str:
        return (
            f"{printable(self.path)}: max |logit difference| {self.max_abs_logit_diff:.2e}, "
            f"{self.argmax_flips} argmax flips\n{self.evaluation}"
        )


def run_file(
    predictor: Predictor, inputs: ExportInput, order: Tensor, shape: tuple[int, ...], batch_size: int
) -> LogitArray:
    """Run the exported file on all held-out examples.

    Args:
        predictor: Runs the file.
        inputs: The examples.
        order: Numbers of all examples in the order to read them, int64 `[N]`.
        shape: (N, classes).
        batch_size: Number of examples per batch.

    Returns:
        Logits, float32 `[N, classes]`.

    Raises:
        ExportError: If ONNX Runtime cannot run the file.
    """
    logits = np.empty(shape, dtype=np.float32)
    # The first batch has one example: a graph with a fixed batch size fails here.
    for index in (order[:1], *order[1:].split(batch_size)):
        try:
            logits[index.numpy()] = predictor.predict(inputs.predictor_input(index))
        except RuntimeError as error:
            raise ExportError(f"the exported file does not run: {error}; the file was not written") from None
    return logits


def compare_with_model(
    target: Path,
    logits: LogitArray,
    evaluation: Evaluation,
    model_logits: LogitArray,
    model_evaluation: Evaluation,
    tolerance: float,
    note: str = "",
) -> ExportReport:
    """Compare logits and accuracies of an exported file with those of the model.

    Args:
        target: Path of the file.
        logits: Logits of the file, float32 `[N, classes]`.
        evaluation: Accuracy of the file per group.
        model_logits: Logits of the model, float32 `[N, classes]`.
        model_evaluation: Accuracy of the model per group.
        tolerance: Maximum accepted difference of a logit, as a fraction of the largest logit.
        note: Possible reason for a difference.

    Returns:
        The report.

    Raises:
        ExportError: If a logit differs by more than the tolerance, or the accuracy of a group or cell differs.
    """
    reason = f"; {note}" if note else ""
    difference = float(np.abs(logits - model_logits).max())
    size = float(np.abs(model_logits).max())
    if not difference <= tolerance * size:  # also true for NaN
        raise ExportError(
            f"{target}: the exported model's logits differ from the PyTorch model's by up to {difference:.3g}, "
            f"tolerance is {tolerance:g} of the largest logit, {size:.3g}; the file was not written{reason}"
        )
    rows = evaluation.groups + evaluation.cells
    for row, model_row in zip(rows, model_evaluation.groups + model_evaluation.cells, strict=True):
        if row.correct != model_row.correct:
            raise ExportError(
                f"{target}: the exported model's accuracy in {row.name} is {row.accuracy:.4f}, the PyTorch model's "
                f"{model_row.accuracy:.4f}; the file was not written{reason}"
            )
    flips = int((logits.argmax(axis=1) != model_logits.argmax(axis=1)).sum())
    return ExportReport(target, difference, flips, evaluation)
