"""Writes a PyTorch model as an ONNX file."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from spurmix.deploy.export.inputs import ExportInput
from spurmix.deploy.export.metadata import store_metadata


def write_onnx(model: nn.Module, inputs: ExportInput, path: Path, opset: int, metadata: dict[str, object]) -> None:
    """Export a copy of a model, in evaluation mode on the CPU.

    Args:
        model: The model. It is not changed.
        inputs: Kind of input. Its preprocessing becomes part of the graph.
        path: File to write.
        opset: Version of the ONNX operator set.
        metadata: Metadata to store in the file.
    """
    import onnx

    traceable = inputs.traceable(copy.deepcopy(model).cpu().eval())
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
        proto = program.model_proto
    store_metadata(proto, metadata)
    onnx.save_model(proto, str(path))


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
