"""export_onnx: writes a model as an ONNX file and compares the file with the model."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from spurmix.core import checks
from spurmix.core.group_join import check_name_order
from spurmix.core.groups import GroupIndex
from spurmix.core.temporary import temporary_file
from spurmix.data.sources.arrays import ImageSource, Source, SourceLike, as_source
from spurmix.data.sources.tokens import TokenSource
from spurmix.deploy.export.compare import ExportReport, compare_with_model, run_file
from spurmix.deploy.export.external import ExternalWeights
from spurmix.deploy.export.features import FeatureExport
from spurmix.deploy.export.graph import write_onnx
from spurmix.deploy.export.images import ImageExport
from spurmix.deploy.export.inputs import ExportInput
from spurmix.deploy.export.metadata import append_metadata, file_metadata
from spurmix.deploy.export.precision import check_dtypes, runnable_model
from spurmix.deploy.export.text import TextExport
from spurmix.deploy.export.text_tokenizer import ExportedTokenizer
from spurmix.deploy.model_file import MAX_OPSET, MIN_OPSET, OPSET
from spurmix.train.evaluate import predict, reading_order
from spurmix.train.metrics import check_labels, check_options, evaluate_logits

if TYPE_CHECKING:
    from spurmix.data.dataset.tokenize import TokenizerLike


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    source: SourceLike,
    groups: GroupIndex,
    class_names: Sequence[str] | None = None,
    train_groups: GroupIndex | None = None,
    tokenizer: TokenizerLike | None = None,
    membership: object = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
    tolerance: float = 1e-3,
    batch_size: int = 256,
    opset: int = OPSET,
) -> ExportReport:
    """Export a model to one ONNX file with its preprocessing, and compare the file with the model on held-out data.

    ONNX Runtime runs the file on all examples of `source`. The file is put in place, by rename, only if logits and the
    accuracy of each group match those of the model.

    The input is "image", uint8 `[batch, H, W, C]`; "features", float32 `[batch, D]`; or, for texts, "input_ids" and
    "attention_mask", int64 `[batch, sequence]`. The output is "logits", float32 `[batch, classes]`. Batch size and text
    length are dynamic. Images are normalized inside the graph, but not resized. The file stores classes, mean, standard
    deviation, version and the report per group as metadata. The tokenizer of a text model is written next to the file, as
    `tokenizer.json` and `tokenizer_config.json`, so that `Predictor` takes strings.

    A model of another precision (float16, bfloat16, float64) is converted to float32. A model that casts to its own
    dtype does not run in float32, and is exported in its own precision, if ONNX Runtime supports it. The logits of the
    file are always float32. The file contains a checksum, which `Predictor` verifies, and no paths of this machine.

    Weights of 2 GiB or more do not fit into an ONNX file. They are written next to it, to a file whose name is that of the
    ONNX file with a checksum and `.data`, for example `model.onnx.0123456789abcdef.data`. Copy both files together.

    Args:
        model: Model that maps the inputs of the source to logits (a tensor, an object with `.logits`, or a tuple).
        path: File to write. Missing folders are created.
        source: Held-out images, texts or features, as for `MixLoader`.
        groups: Groups of the same examples.
        class_names: Name of each class. Default: those of `groups`, or "0", "1", ...
        train_groups: Groups whose sizes weight the adjusted average of the report. Default: `groups`.
        tokenizer: Fast tokenizer of transformers, or a `tokenizers.Tokenizer`, that made the token ids. Required for texts.
        membership: Boolean matrix `[N, K]` of K cells that may overlap, as for `evaluate`.
        cell_names: Names of the K cells.
        min_group_size: Minimum size of a group or cell that can be the worst group of the report.
        tolerance: Maximum accepted difference of a logit, as a fraction of the largest logit, greater than 0.
        batch_size: Number of examples per batch.
        opset: Version of the ONNX operator set, in [17, 26]. The file has this version, otherwise an error is raised.

    Returns:
        Path of the file, maximum difference of a logit, number of changed predictions and accuracy of the file per group.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
        TypeError: If an argument has a wrong type, or the tokenizer is not a fast one.
        ValueError: If an argument is invalid, the tokenizer is not the model's, or the folder cannot be written. This is
            checked before the export starts.
        ExportError: If PyTorch cannot convert the model to this opset, ONNX Runtime cannot run it, a logit differs by
            more than the tolerance, the accuracy of a group differs, or the stored tokenizer gives other ids. The file
            is not written. The model is converted before it is evaluated.

    Example:
        >>> report = export_onnx(model, "model.onnx", source=test_images, groups=test_groups)  # doctest: +SKIP
        >>> Predictor("model.onnx").predict(images)  # doctest: +SKIP
    """
    target, tolerance, opset = check_request(path, tolerance, opset)
    batch_size = checks.integer(batch_size, "batch_size", 1)
    checks.instance(model, "model", nn.Module)
    checks.instance(groups, "groups", GroupIndex)
    data = as_source(source)
    if len(data) != groups.num_examples:
        raise ValueError(f"source has {len(data)} examples, the groups have {groups.num_examples}")
    options: dict[str, Any] = dict(
        train_groups=train_groups, membership=membership, cell_names=cell_names, min_group_size=min_group_size
    )
    check_options(groups, **options)
    _check_class_names(class_names, groups)
    check_dtypes(model)
    inputs = _export_input(data, model, tokenizer, target)
    with _temporary_file(target) as temporary, ExternalWeights(target) as weights:
        model, classes = runnable_model(model, data)
        check_labels(groups, classes)
        names = list(class_names or groups.class_names or map(str, range(classes)))
        if len(names) != classes:
            raise ValueError(
                f"class_names must have one name for each of the {classes} classes, got {len(names)} names"
            )
        note = write_onnx(model, inputs, temporary, opset, weights)
        model_logits = predict(model, data, batch_size=batch_size).numpy()
        model_evaluation = evaluate_logits(model_logits, groups, **options)
        append_metadata(temporary, {**file_metadata(inputs, names, model_evaluation), **weights.metadata})
        predictor = inputs.open_predictor(temporary)
        logits = run_file(predictor, inputs, reading_order(data), model_logits.shape, batch_size)
        evaluation = evaluate_logits(logits, groups, **options)
        report = compare_with_model(target, logits, evaluation, model_logits, model_evaluation, tolerance, note)
        inputs.write_files()
        temporary.replace(target)
        weights.keep()
        return report


def check_request(path: str | Path, tolerance: float, opset: int) -> tuple[Path, float, int]:
    """Check the arguments of `export_onnx` that need neither model nor data.

    Args:
        path: See `export_onnx`.
        tolerance: See `export_onnx`.
        opset: See `export_onnx`.

    Returns:
        The arguments.

    Raises:
        ImportError: If a package is not installed.
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is invalid, or the path is not that of a file.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"export_onnx needs the package {package!r}: pip install 'spurmix[train]'")
    target = checks.new_path(path, "path", room=24)  # the hash of external data, or a temporary name
    if not target.name or target.is_dir():
        raise ValueError(f"path must name a file, got {'' if not target.name else 'the folder '}{str(path)!r}")
    if target.exists() and not target.is_file():
        raise ValueError(f"path must name a regular file, got {str(path)!r}, which is a device, pipe or socket")
    tolerance = checks.number(tolerance, "tolerance", positive=True)
    return target, tolerance, checks.integer(opset, "opset", MIN_OPSET, MAX_OPSET)


def _check_class_names(class_names: Sequence[str] | None, groups: GroupIndex) -> None:
    """Check the names against the labels, before the number of logits is known."""
    if class_names is None:
        return
    if len(checks.strings(class_names, "class_names")) <= groups.labels.max():
        raise ValueError(
            f"class_names must have at least {groups.labels.max() + 1} names, one for each label, got {len(class_names)}"
        )
    check_name_order(class_names, groups, "class_names")


def _export_input(data: Source, model: nn.Module, tokenizer: TokenizerLike | None, target: Path) -> ExportInput:
    if isinstance(data, TokenSource):
        return TextExport(data, ExportedTokenizer(tokenizer, data, model, target))
    if tokenizer is not None:
        raise ValueError("tokenizer is only for texts, but this source holds images or features; remove the argument")
    return ImageExport(data) if isinstance(data, ImageSource) else FeatureExport(data)


@contextlib.contextmanager
def _temporary_file(target: Path) -> Iterator[Path]:
    """Create an empty file in the folder of `target`. After an error, the folders created here are removed."""
    stack = contextlib.ExitStack()
    created = [folder for folder in target.parents if not folder.exists()]
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            opened = stack.enter_context(temporary_file(target))
        except OSError as error:
            raise ValueError(f"path: cannot write into {target.parent} ({error.strerror})") from None
        with stack:
            yield opened
    except BaseException:
        with contextlib.suppress(OSError):  # a folder is kept if another process wrote into it
            for folder in created:
                folder.rmdir()
        raise
