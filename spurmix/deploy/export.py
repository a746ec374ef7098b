"""ONNX export with the preprocessing inside, proven per group on held-out data before the file appears."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spurmix._version import __version__
from spurmix.core.groups import GroupIndex
from spurmix.data.sources import FeatureSource, ImageSource, as_source
from spurmix.data.text import TokenSource
from spurmix.deploy.predictor import Predictor
from spurmix.train.evaluate import predict
from spurmix.train.metrics import Evaluation, evaluate_logits
from spurmix.train.models import logits_of

OPSET = 20


class ExportError(RuntimeError):
    """The exported file does not do what the model does; no file was left."""


@dataclass(frozen=True)
class ExportReport:
    """What was proven on the file.

    Attributes:
        path: the file. max_abs_logit_diff, argmax_flips: against the model, over all held-out examples.
        evaluation: per-group accuracy of the file, run by ONNX Runtime.
    """

    path: Path
    max_abs_logit_diff: float
    argmax_flips: int
    evaluation: Evaluation

    def __str__(self) -> str:
        return (
            f"{self.path}: max |logit difference| {self.max_abs_logit_diff:.2e}, {self.argmax_flips} argmax flips\n"
            f"{self.evaluation}"
        )


class _WithPreprocessing(nn.Module):
    """uint8 `[B, H, W, C]` -> logits: the normalisation of the loader, then the model."""

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
        return logits_of(self.model(x))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        return logits_of(self.model(features))


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    source: Any,
    groups: GroupIndex,
    class_names: Sequence[str] | None = None,
    train_groups: GroupIndex | None = None,
    tolerance: float = 1e-3,
    batch_size: int = 256,
    opset: int = OPSET,
) -> ExportReport:
    """Write `model` as one ONNX file and prove it: input "image" uint8 `[batch, H, W, C]` (or "features" float32
    `[batch, D]`), output "logits" float32 `[batch, classes]`, any batch size.

    Normalisation is inside, resizing is left to the caller. The file carries classes, mean, std, version and the
    per-group report as metadata. It is run by ONNX Runtime on the held-out data and appears, by rename, only when it
    agrees with the model.

    Args:
        source, groups: held-out data and its groups.
        class_names: default those of `groups`, else "0", "1", ...
        train_groups: weigh the adjusted average, see `evaluate`.
        tolerance: largest accepted |logit difference|.

    Raises:
        ValueError: for bad arguments or a folder that cannot be written, before anything is exported.
        ExportError: where logits differ by more than `tolerance` or a group's accuracy differs; no file is left.
    """
    data = as_source(source)
    if isinstance(data, TokenSource):
        raise TypeError("source: images and features are exported here, got texts")
    if len(data) != groups.num_examples:
        raise ValueError(f"source has {len(data)} examples, the groups have {groups.num_examples}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    target = Path(path)
    temporary = target.with_name(f".{target.stem}-{os.getpid()}.onnx")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise ValueError(f"path: cannot write into {target.parent} ({error.strerror})") from None
    try:
        expected = predict(model, data, batch_size=batch_size).numpy()
        evaluation = evaluate_logits(expected, groups, train_groups=train_groups)
        names = list(class_names or groups.class_names or map(str, range(expected.shape[1])))
        if len(names) != expected.shape[1]:
            raise ValueError(f"class_names: {len(names)} names for {expected.shape[1]} classes")
        _write(model, data, temporary, opset, _metadata(data, names, evaluation))
        report = _prove(temporary, target, data, groups, train_groups, expected, evaluation, tolerance, batch_size)
        temporary.replace(target)
        return report
    finally:
        temporary.unlink(missing_ok=True)


def _metadata(data: ImageSource | FeatureSource, names: list[str], evaluation: Evaluation) -> dict[str, Any]:
    normalise = {"mean": data.mean.tolist(), "std": data.std.tolist()} if isinstance(data, ImageSource) else {}
    return {
        "spurmix.version": __version__,
        "spurmix.classes": names,
        "spurmix.normalise": normalise,
        "spurmix.report": evaluation.to_dict(),
    }


def _write(
    model: nn.Module, data: ImageSource | FeatureSource, path: Path, opset: int, metadata: dict[str, Any]
) -> None:
    """Export a copy of the model, in evaluation mode on the CPU, and store the metadata."""
    import onnx

    clone = copy.deepcopy(model).cpu().eval()
    wrapped = _WithPreprocessing(clone, data) if isinstance(data, ImageSource) else _Logits(clone)
    example = data.raw(torch.zeros(3, dtype=torch.int64)).cpu()
    example = example if isinstance(data, ImageSource) else example.float()
    name = "image" if isinstance(data, ImageSource) else "features"
    chatter = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                wrapped.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[name],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
    finally:
        logging.disable(level)
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    onnx.save_model(proto, str(path))


def _prove(
    file: Path,
    target: Path,
    data: ImageSource | FeatureSource,
    groups: GroupIndex,
    train_groups: GroupIndex | None,
    expected: np.ndarray[Any, Any],
    evaluation: Evaluation,
    tolerance: float,
    batch_size: int,
) -> ExportReport:
    """Run the file on every held-out example and compare it with the model."""
    predictor = Predictor(file)
    inputs = data.raw(torch.arange(len(data))).cpu()
    array = inputs.numpy() if isinstance(data, ImageSource) else inputs.float().numpy()
    # An odd first batch of one example, so that the batch dimension is proven to be free.
    cuts = [0, 1, *range(1 + batch_size, len(data), batch_size), len(data)]
    parts = [predictor.predict(array[a:b]) for a, b in itertools.pairwise(cuts) if b > a]
    actual = np.concatenate(parts)
    difference = float(np.abs(actual - expected).max())
    if not difference <= tolerance:
        raise ExportError(f"{target}: logits differ by {difference:.3g}, more than {tolerance:g}; no file was written")
    proven = evaluate_logits(actual, groups, train_groups=train_groups)
    for ours, theirs in zip(proven.groups, evaluation.groups, strict=True):
        if ours.correct != theirs.correct:
            raise ExportError(
                f"{target}: accuracy of {ours.name} is {ours.accuracy:.4f} in the file and {theirs.accuracy:.4f} in the "
                "model; no file was written"
            )
    flips = int((actual.argmax(axis=1) != expected.argmax(axis=1)).sum())
    return ExportReport(target, difference, flips, proven)
