"""ONNX export with the preprocessing inside, proven per group on held-out data before the file appears."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spurmix._version import __version__
from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.data.batch import Tokens
from spurmix.data.sources.arrays import ImageSource, Source, as_source
from spurmix.data.sources.tokens import TokenSource
from spurmix.deploy.export_text import ExportError, StoredTokenizer
from spurmix.deploy.predictor import Predictor
from spurmix.train.evaluate import predict, reading_order
from spurmix.train.metrics import Evaluation, check_options, evaluate_logits
from spurmix.train.models import logits_of
from spurmix.train.text import unwrapped

__all__ = ["ExportError", "ExportReport", "export_onnx"]

OPSET = 20


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


class _TextLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = unwrapped(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return logits_of(self.model(input_ids=input_ids, attention_mask=attention_mask))


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    source: Any,
    groups: GroupIndex,
    class_names: Sequence[str] | None = None,
    train_groups: GroupIndex | None = None,
    tokenizer: Any = None,
    membership: Any = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
    tolerance: float = 1e-3,
    batch_size: int = 256,
    opset: int = OPSET,
) -> ExportReport:
    """Write `model` as one ONNX file and prove it: input "image" uint8 `[batch, H, W, C]` (or "features" float32
    `[batch, D]`; of texts "input_ids" and "attention_mask" int64 `[batch, sequence]`), output "logits" float32
    `[batch, classes]`, any batch size and length.

    Normalisation is inside, resizing is left to the caller. A text model's tokenizer travels beside the file, as
    tokenizer.json and tokenizer_config.json, so that `Predictor` reads strings. The file carries classes, mean, std,
    version and the per-group report as metadata. It is run by ONNX Runtime on the held-out data and appears, by rename,
    only when it agrees with the model.

    Args:
        source, groups: held-out data and its groups.
        class_names: default those of `groups`, else "0", "1", ...
        train_groups, membership, cell_names, min_group_size: see `evaluate`.
        tokenizer: of a `TokenSource`'s texts: a fast one of transformers, or a `tokenizers.Tokenizer`.
        tolerance: largest accepted |logit difference|.

    Raises:
        ValueError: for bad arguments, a tokenizer that is not the model's, or a folder that cannot be written, before
            anything is exported.
        ExportError: where logits differ by more than `tolerance`, a group's accuracy differs, or the stored tokenizer
            gives other ids; no file is left.
    """
    checks.instance(model, "model", nn.Module)
    checks.instance(groups, "groups", GroupIndex)
    data = as_source(source)
    if len(data) != groups.num_examples:
        raise ValueError(f"source has {len(data)} examples, the groups have {groups.num_examples}")
    tolerance = checks.number(tolerance, "tolerance", positive=True)
    batch_size, opset = checks.integer(batch_size, "batch_size", 1), checks.integer(opset, "opset", 1)
    options: Any = dict(
        train_groups=train_groups, membership=membership, cell_names=cell_names, min_group_size=min_group_size
    )
    check_options(groups, **options)
    _check_names(class_names, groups)
    target = checks.path(path, "path")
    if not target.name or target.is_dir():
        raise ValueError(f"path must name a file, got {'' if not target.name else 'the folder '}{str(path)!r}")
    text = None
    if isinstance(data, TokenSource):
        text = StoredTokenizer(tokenizer, data, model, target)
    elif tokenizer is not None:
        raise ValueError("tokenizer is for texts; this source holds none")
    with _file_beside(target) as temporary:
        expected = predict(model, data, batch_size=batch_size).numpy()
        evaluation = evaluate_logits(expected, groups, **options)
        names = list(class_names or groups.class_names or map(str, range(expected.shape[1])))
        if len(names) != expected.shape[1]:
            raise ValueError(f"class_names: {len(names)} names for {expected.shape[1]} classes")
        metadata = _metadata(data, names, evaluation)
        if text is not None:
            metadata["spurmix.text"] = text.settings
        _write(model, data, temporary, opset, metadata)
        predictor = Predictor(temporary) if text is None else text.predictor(temporary)
        actual = _run(predictor, data, expected, batch_size)
        proven = evaluate_logits(actual, groups, **options)
        report = _prove(target, actual, expected, proven, evaluation, tolerance)
        if text is not None:
            text.write()
        temporary.replace(target)
        return report


@contextlib.contextmanager
def _file_beside(target: Path) -> Iterator[Path]:
    """An empty file in the folder of `target`, which is made; where it fails, nothing is left that was made here.

    Raises:
        ValueError: where the folder cannot be written into.
    """
    temporary = target.with_name(f".{target.stem}-{os.getpid()}.onnx")
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
        except OSError as error:
            raise ValueError(f"path: cannot write into {target.parent} ({error.strerror})") from None
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except BaseException:
        with contextlib.suppress(OSError):  # one that somebody put something into stays
            for folder in made:
                folder.rmdir()
        raise


def _check_names(class_names: Sequence[str] | None, groups: GroupIndex) -> None:
    """Check names of classes as far as it goes without logits."""
    if class_names is None:
        return
    if len(checks.strings(class_names, "class_names")) <= groups.labels.max():
        raise ValueError(f"class_names: {len(class_names)} names, but labels go up to {groups.labels.max()}")


def _metadata(data: Source, names: list[str], evaluation: Evaluation) -> dict[str, Any]:
    normalise = {"mean": data.mean.tolist(), "std": data.std.tolist()} if isinstance(data, ImageSource) else {}
    return {
        "spurmix.version": __version__,
        "spurmix.classes": names,
        "spurmix.normalise": normalise,
        "spurmix.report": evaluation.to_dict(),
    }


def _traced(model: nn.Module, data: Source) -> tuple[nn.Module, tuple[Tensor, ...], list[str], tuple[Any, ...]]:
    """What is exported, example inputs, their names and free dimensions."""
    clone = copy.deepcopy(model).cpu().eval()
    index = torch.arange(3) % len(data)
    if isinstance(data, TokenSource):
        tokens = data.gather(index)
        ids, mask = (F.pad(t.long(), (0, max(0, 2 - t.shape[1]))) for t in tokens.tensors())
        free = {0: "batch", 1: "sequence"}
        return _TextLogits(clone), (ids, mask), ["input_ids", "attention_mask"], (free, free)
    example = data.raw(index).cpu()
    if isinstance(data, ImageSource):
        return _WithPreprocessing(clone, data), (example,), ["image"], ({0: "batch"},)
    return _Logits(clone), (example.float(),), ["features"], ({0: "batch"},)


def _write(model: nn.Module, data: Source, path: Path, opset: int, metadata: dict[str, Any]) -> None:
    """Export a copy of the model, in evaluation mode on the CPU, and store the metadata."""
    import onnx

    wrapped, example, names, free = _traced(model, data)
    chatter = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                wrapped.eval(),
                example,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=free,
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


def _run(predictor: Predictor, data: Source, expected: np.ndarray[Any, Any], batch_size: int) -> np.ndarray[Any, Any]:
    """Logits of the file for every held-out example."""
    actual = np.empty_like(expected)
    # An odd first batch of one example, so that the free dimensions are proven to be free.
    order = reading_order(data)
    for index in (order[:1], *order[1:].split(batch_size)):
        raw = data.raw(index)
        if isinstance(raw, Tokens):
            inputs: Any = {"input_ids": raw.ids.numpy(), "attention_mask": raw.mask.numpy()}
        else:
            inputs = raw.cpu().numpy() if isinstance(data, ImageSource) else raw.cpu().float().numpy()
        actual[index.numpy()] = predictor.predict(inputs)
    return actual


def _prove(
    target: Path,
    actual: np.ndarray[Any, Any],
    expected: np.ndarray[Any, Any],
    proven: Evaluation,
    evaluation: Evaluation,
    tolerance: float,
) -> ExportReport:
    """Compare what the file gave with what the model gave."""
    difference = float(np.abs(actual - expected).max())
    if not difference <= tolerance:
        raise ExportError(f"{target}: logits differ by {difference:.3g}, more than {tolerance:g}; no file was written")
    rows = zip(proven.groups + proven.cells, evaluation.groups + evaluation.cells, strict=True)
    for ours, theirs in rows:
        if ours.correct != theirs.correct:
            raise ExportError(
                f"{target}: accuracy of {ours.name} is {ours.accuracy:.4f} in the file and {theirs.accuracy:.4f} in the "
                "model; no file was written"
            )
    flips = int((actual.argmax(axis=1) != expected.argmax(axis=1)).sum())
    return ExportReport(target, difference, flips, proven)
