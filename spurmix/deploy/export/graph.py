"""Writes a PyTorch model as an ONNX file."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from spurmix.deploy.export.errors import ExportError
from spurmix.deploy.export.inputs import ExportInput, TraceableModel
from spurmix.deploy.export.metadata import store_metadata, strip_traces
from spurmix.deploy.model_file import DIGEST, read_model_file

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = 2**31 - 2**24
"""Maximum size of the weights of an ONNX file, which is one protobuf message of less than 2 GiB, with room for the graph."""


def check_size(model: nn.Module) -> None:
    """Raise a ValueError if the weights of a model exceed the limit of an ONNX file."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    size = sum(tensor.numel() * (4 if tensor.is_floating_point() else tensor.itemsize) for tensor in tensors)
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"model: the weights have {size / 2**30:.2f} GiB in float32, but an ONNX file holds at most "
            f"{MAX_FILE_BYTES / 2**30:.2f} GiB; export a smaller model"
        )


def in_single_precision(model: nn.Module) -> nn.Module:
    """Return a model in float32: the model itself, or a converted copy if it has another precision.

    Raises `ValueError` if a parameter or buffer has a dtype that ONNX Runtime does not compute with.
    """
    other = False
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"model: {name} has dtype {tensor.dtype}, which cannot be exported; use a float32 model")
        other |= tensor.is_floating_point() and tensor.dtype != torch.float32
    return copy.deepcopy(model).float() if other else model


def write_onnx(model: nn.Module, inputs: ExportInput, path: Path, opset: int, metadata: Mapping[str, object]) -> None:
    """Export a copy of a model, in evaluation mode on the CPU.

    Args:
        model: The model. It is not changed.
        inputs: Kind of input. Its preprocessing becomes part of the graph.
        path: File to write.
        opset: Version of the ONNX operator set.
        metadata: Metadata to store in the file.

    Raises:
        ValueError: If the exporter does not support `opset`.
        ExportError: If the exporter cannot convert the model, or the file has other inputs than requested.
    """
    import onnx

    traceable = inputs.traceable(copy.deepcopy(model).cpu().eval())
    proto = _convert(traceable, opset, type(model).__name__)
    written = next((one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")), None)
    if written != opset:
        raise ValueError(
            f"opset: the exporter wrote version {written}, {opset} was requested; use a version that it supports, such "
            f"as {written}"
        )
    _check_interface(proto, traceable)
    strip_traces(proto)
    try:
        for entries in (metadata, {**metadata, DIGEST: ""}):
            # The checksum is that of the written file.
            digest = {DIGEST: read_model_file(path).digest} if DIGEST in entries else {}
            store_metadata(proto, {**entries, **digest})
            onnx.save_model(proto, str(path))
    except ValueError as error:  # the error of protobuf for a message above the limit
        raise ExportError(f"{type(model).__name__} cannot be written as one ONNX file: {error}") from None


def _convert(traceable: TraceableModel, opset: int, name: str) -> onnx.ModelProto:
    try:
        with _silent():
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
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"the exporter of PyTorch cannot convert {name}: {reason}") from error


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
