"""Metadata of an exported file: version, classes, normalization, accuracy per group and tokenizer settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spurmix._version import __version__
from spurmix.deploy.export.inputs import ExportInput
from spurmix.deploy.model_file import DIGEST, read_model_file
from spurmix.train.evaluation import Evaluation

if TYPE_CHECKING:
    from google.protobuf.message import Message  # type: ignore[import-untyped]


def file_metadata(inputs: ExportInput, class_names: Sequence[str], evaluation: Evaluation) -> dict[str, object]:
    """Return the metadata that `Predictor` reads.

    Args:
        inputs: Kind of input.
        class_names: Names of all classes.
        evaluation: Accuracy of the model per group.

    Returns:
        Values of JSON types, by key.
    """
    metadata: dict[str, object] = {
        "spurmix.version": __version__,
        "spurmix.classes": list(class_names),
        "spurmix.normalise": inputs.normalization(),
        "spurmix.report": evaluation.to_dict(),
    }
    settings = inputs.text_settings()
    if settings is not None:
        metadata["spurmix.text"] = settings
    return metadata


def append_metadata(path: Path, metadata: Mapping[str, object]) -> None:
    """Add metadata to an ONNX file without metadata, each value as JSON, and the checksum of all contents."""
    _append(path, metadata)
    _append(path, {DIGEST: read_model_file(path).digest})


def _append(path: Path, entries: Mapping[str, object]) -> None:
    """Append entries. The fields of a protobuf message may be in any order."""
    import onnx

    message = onnx.ModelProto()
    for key, value in entries.items():
        message.metadata_props.add(key=key, value=json.dumps(value))
    with path.open("ab") as file:
        file.write(message.SerializeToString())


def strip_traces(message: Message) -> None:
    """Remove the notes of the exporter from all parts of a model. They contain source code and paths of this machine."""
    for field, value in list(message.ListFields()):
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if isinstance(value, Sequence) or hasattr(value, "add") else (value,):
                strip_traces(part)
