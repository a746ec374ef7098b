"""Metadata of an exported file: version, classes, normalization, accuracy per group and tokenizer settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spurmix._version import __version__
from spurmix.deploy.export.inputs import ExportInput
from spurmix.train.metrics import Evaluation

if TYPE_CHECKING:
    import onnx


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


def store_metadata(proto: onnx.ModelProto, metadata: dict[str, object]) -> None:
    """Add metadata to an ONNX model, each value as JSON."""
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
