"""Metadata of an exported model, checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from spurmix.core.files import FileError, parse_json
from spurmix.deploy.tokenizer import TextSettings

_VERSION, _CLASSES, _REPORT, _TEXT = ("spurmix.version", "spurmix.classes", "spurmix.report", "spurmix.text")
_REQUIRED = (_CLASSES, _REPORT)
_FORMS: dict[str, type] = {_VERSION: str, _CLASSES: list[str], _REPORT: dict[str, object], _TEXT: TextSettings}
_SIDES = {"left", "right"}


@dataclass(frozen=True)
class FileMetadata:
    """Metadata of an exported model.

    Attributes:
        entries: All entries named `spurmix.*`, as JSON types.
        classes: Name of each class.
        report: Accuracy of the model per group at export.
        text: Settings of the tokenizer, for a text model.
    """

    entries: dict[str, object]
    classes: list[str]
    report: dict[str, object]
    text: TextSettings | None


def parse_metadata(path: Path, stored: Mapping[str, str]) -> FileMetadata:
    """Parse and check the metadata of an exported model.

    Args:
        path: The file, for messages.
        stored: Text of each entry named `spurmix.*`.

    Returns:
        The metadata.

    Raises:
        ValueError: If `export_onnx` did not write the file.
        FileError: If an entry is missing or invalid. The message names it.
    """
    if _VERSION not in stored:
        raise ValueError(f"{path} was not written by spurmix.export_onnx; export the model again")
    for name in _REQUIRED:
        if name not in stored:
            raise FileError(f"{path} is damaged: it has no metadata {name}; export the model again")
    entries: dict[str, object] = {
        name: parse_json(text, f"{path}: metadata {name}", _FORMS.get(name, object)) for name, text in stored.items()
    }
    found = FileMetadata(
        entries,
        cast("list[str]", entries[_CLASSES]),
        cast("dict[str, object]", entries[_REPORT]),
        cast("TextSettings | None", entries.get(_TEXT)),
    )
    if not found.classes:
        raise FileError(f"{path}: metadata {_CLASSES} is damaged: it has no names; export the model again")
    if found.text is not None:
        _check_text_settings(path, found.text)
    return found


def _check_text_settings(path: Path, text: TextSettings) -> None:
    """Check the ranges of the settings of a tokenizer."""
    size, limit = text["vocab_size"], text["max_length"]
    sides = (text.get("direction", "right"), text.get("padding_side", "right"))
    if not (0 <= text["pad_id"] < size < 2**31 and (limit is None or 0 < limit < 2**31) and set(sides) <= _SIDES):
        raise FileError(
            f"{path}: metadata {_TEXT} is damaged: values are out of range, got {text}; export the model again"
        )
