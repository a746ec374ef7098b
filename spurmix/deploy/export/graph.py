"""Converts a PyTorch model to an ONNX graph and writes it to a file."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spurmix.deploy.export.errors import ExportError, first_line
from spurmix.deploy.export.external import ExternalWeights
from spurmix.deploy.export.inputs import ExportInput, TraceableModel
from spurmix.deploy.export.metadata import strip_traces
from spurmix.deploy.export.precision import precision_note
from spurmix.deploy.model_file import MAX_OPSET, MIN_OPSET, OPSET

if TYPE_CHECKING:
    import onnx


def write_onnx(model: nn.Module, inputs: ExportInput, path: Path, opset: int, weights: ExternalWeights) -> str:
    """Export a copy of a model, in evaluation mode on the CPU, and run the file on a few examples.

    Args:
        model: The model. It is not changed.
        inputs: Kind of input. Its preprocessing becomes part of the graph.
        path: File to write. It has no metadata.
        opset: Version of the ONNX operator set.
        weights: File for weights that are too large for one file.

    Returns:
        Description of the precisions other than float32 in which the graph computes. Usually empty.

    Raises:
        ExportError: If the exporter cannot convert the model to `opset`, the file has other inputs than requested, or
            ONNX Runtime cannot run it.
    """
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

    name = type(model).__name__
    traceable = inputs.traceable(copy.deepcopy(model).cpu().eval())
    proto = _convert(traceable, opset, name)
    written = [one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")]
    if written != [opset]:
        raise ExportError(
            f"opset: {name} cannot be converted to version {opset}, the exporter wrote {', '.join(map(str, written))}; "
            f"use another version in [{MIN_OPSET}, {MAX_OPSET}], such as {OPSET}"
        )
    _check_interface(proto, traceable)
    strip_traces(proto)
    try:
        weights.move(proto)
        path.write_bytes(proto.SerializeToString())
    except (ValueError, OSError, EncodeError) as error:  # an EncodeError for a message above the limit
        raise ExportError(f"{name} cannot be written to {path.parent}: {first_line(error)}") from None
    note = precision_note(proto)
    del proto
    _check_runs(path, traceable, name, note)
    return note


def _check_runs(path: Path, traceable: TraceableModel, name: str, note: str) -> None:
    """Run the file on the example inputs, before the evaluation, which may take long."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    inputs = {key: value.numpy() for key, value in zip(traceable.names, traceable.example, strict=True)}
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, inputs)
    except Exception as error:  # the errors of onnxruntime share no base class
        reason = first_line(error).replace(str(path), "the file")
        advice = note or f"try another opset, such as {OPSET}"
        raise ExportError(f"ONNX Runtime cannot run the exported {name}: {reason}; {advice}") from None


def _convert(traceable: TraceableModel, opset: int, name: str) -> onnx.ModelProto:
    try:
        with _silent(), _PromotedSubtraction():
            program = torch.onnx.export(
                traceable.module.eval(),
                traceable.example,
                dynamo=True,
                opset_version=opset,
                input_names=traceable.names,
                output_names=["logits"],
                dynamic_shapes=traceable.dynamic_shapes,
                verbose=False,
            )
            assert program is not None
            return program.model_proto
    except Exception as error:  # the exporter raises errors of any type
        raise ExportError(f"the exporter of PyTorch cannot convert {name}: {_reason(error)}") from error


def _check_interface(proto: onnx.ModelProto, traceable: TraceableModel) -> None:
    """Check that the graph has the requested inputs, and that the requested dimensions are dynamic."""
    inputs = {one.name: one.type.tensor_type.shape.dim for one in proto.graph.input}
    outputs = {one.name: one.type.tensor_type.shape.dim for one in proto.graph.output}
    if list(inputs) != traceable.names or list(outputs) != ["logits"]:
        raise ExportError(
            f"the exported graph has inputs {', '.join(inputs)} and outputs {', '.join(outputs)}, requested were "
            f"{', '.join(traceable.names)} and logits"
        )
    requested = {**dict(zip(traceable.names, traceable.dynamic_shapes, strict=True)), "logits": {0: "batch"}}
    for name, dimensions in (inputs | outputs).items():
        for number, label in requested[name].items():
            if dimensions[number].HasField("dim_value"):
                raise ExportError(
                    f"the exported graph fixes dimension {number} ({label}) of {name} to {dimensions[number].dim_value}; "
                    "the model must accept any size"
                )


def _reason(error: Exception) -> str:
    """Return the first line of the error that the exporter reports at the end of its chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    return first_line(error)


class _PromotedSubtraction(TorchFunctionMode):
    """Converts integers to float32 in `number - tensor`, which the exporter cannot promote: XLNet inverts its mask so."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in (Tensor.__rsub__, torch.rsub) and len(args) > 1:
            tensor, number = args[:2]
            if isinstance(tensor, Tensor) and isinstance(number, float) and not tensor.is_floating_point():
                args = (tensor.to(torch.get_default_dtype()), *args[1:])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress the output, log lines and warnings of the exporter."""
    output = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
