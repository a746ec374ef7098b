"""Reads metadata and checksum of an ONNX file without loading the model. Only entries named `spurmix.*` are interpreted."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from spurmix.core.files import FileError, parse_json
from spurmix.core.names import shortened

DIGEST = "spurmix.digest"
"""Metadata entry with the checksum of the model and all other entries named `spurmix.*`."""
DATA = "spurmix.data"
"""Metadata entry that describes the file of the weights, if they are not in the ONNX file."""
_FIRST_KEYS = frozenset({"spurmix.version", "spurmix.classes", "spurmix.normalise", "spurmix.report"})
"""Entries of every file of version 0.1.0, which wrote no checksum. Files of text models also have `spurmix.text`."""
_KEYS = _FIRST_KEYS | {"spurmix.text", DIGEST, DATA}
OPSET = 20
"""Default version of the ONNX operator set of an exported file."""
MIN_OPSET, MAX_OPSET = 17, 26
"""Versions that can be requested. Older ones cannot be written, and newer ones are not final."""
CHUNK = 1 << 24
"""Number of bytes that are read at once."""
MAX_METADATA = 1 << 26
"""Maximum size of the metadata of a file, in bytes."""
_METADATA_FIELD, _DOCUMENTATION_FIELD = 14, 6
"""Fields of `ModelProto` that other programs may change without changing the model."""

_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
"""Messages in the fields of a message that may contain tensors."""
MAX_DEPTH = 100
"""Maximum number of nested messages."""


class DataFile(TypedDict):
    """The file of the weights, in the folder of the ONNX file."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelFile:
    """Metadata of an ONNX file.

    Attributes:
        metadata: Text of each entry named `spurmix.*`.
        digest: Checksum of the contents.
        locations: Names of the files with data of tensors that are not in the file itself.
        unknown: Keys that are nearly the same as those of spurmix. They are damaged, or of a newer version.
    """

    metadata: dict[str, str]
    digest: str
    locations: frozenset[str]
    unknown: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether the contents match the stored checksum. Only files with the entries of version 0.1.0 may have none."""
        if DIGEST not in self.metadata:
            return not self.metadata or self.metadata.keys() - {"spurmix.text"} == _FIRST_KEYS
        return self.metadata[DIGEST] == json.dumps(self.digest)

    def check(self, path: Path) -> None:
        """Raise a `FileError` that names `path` if the contents do not match the checksum."""
        if self.unknown:
            raise FileError(
                f"{path}: metadata {shortened(self.unknown[0])} is damaged, or of a newer version of spurmix: the key is "
                "unknown; copy the file again or export the model again"
            )
        if not self.intact and DIGEST not in self.metadata:
            raise FileError(f"{path} is damaged: it has no metadata {DIGEST}; export the model again")
        if not self.intact:
            raise FileError(
                f"{path} was changed after export_onnx compared it with its model: its checksum is {self.digest[:16]}, "
                f"the stored one {self.metadata[DIGEST][1:17]}; copy the file again or export the model again"
            )
        described = None
        if DATA in self.metadata:
            described = parse_json(self.metadata[DATA], f"{path}: metadata {DATA}", DataFile)
            _check_data(path, described)
        others = self.locations - {described["name"] if described is not None else ""}
        if others:
            raise FileError(
                f"{path} reads weights from {', '.join(map(repr, sorted(others)))}, which are not part of the file and have "
                "no checksum; export the model again"
            )


def _check_data(path: Path, described: DataFile) -> None:
    """Raise a `FileError` if the file of the weights is missing, in another folder, or damaged."""
    name = described["name"]
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise FileError(f"{path} is damaged: the file of the weights must be in the same folder, got {name!r}")
    data = path.parent / name
    if not data.is_file():
        raise FileError(f"{path} needs the weights in {name}; copy this file to the same folder")
    with data.open("rb") as file:
        matches = data.stat().st_size == described["bytes"]
        if not matches or hashlib.file_digest(file, "sha256").hexdigest() != described["sha256"]:
            raise FileError(f"{data} is damaged: it does not match its checksum in {path.name}; copy both files again")


def read_model_file(path: Path) -> ModelFile:
    """Read metadata and checksum of an ONNX file.

    Args:
        path: The file.

    Returns:
        The metadata.

    Raises:
        FileError: If the file is not an ONNX file.
    """
    contents = hashlib.sha256()
    stored: dict[str, str] = {}
    locations: set[str] = set()
    unknown: list[str] = []
    size = 0
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for field, begin, end in _fields(data):
                    if field == _METADATA_FIELD:
                        size += end - begin
                        if size > MAX_METADATA:
                            raise ValueError(f"more than {MAX_METADATA:,} bytes of metadata")
                        key, value = _entry(data[begin:end])
                        if key in stored:
                            raise ValueError(f"it has two metadata entries {shortened(key)}")
                        if key.startswith("spurmix."):
                            stored[key] = value
                        if _nearly_ours(key):
                            unknown.append(key)
                    elif field != _DOCUMENTATION_FIELD:
                        if field in _NESTED["model"]:
                            locations.update(_locations(data, begin, end, _NESTED["model"][field]))
                        contents.update(f"{field} {end - begin} ".encode())
                        for at in range(begin, end, CHUNK):
                            contents.update(data[at : min(at + CHUNK, end)])
                if DIGEST not in stored and data.find(DIGEST.encode()) >= 0:  # its field has another number
                    unknown.append(DIGEST)
    except (OSError, ValueError, IndexError) as error:
        raise FileError(f"{path} cannot be loaded as an ONNX model: {error}") from None
    return ModelFile(stored, _with_metadata(contents.copy(), stored), frozenset(locations), tuple(unknown))


def _nearly_ours(key: str) -> bool:
    """Whether a key is unknown and close to one of ours: a damaged key would hide its entry."""
    return key not in _KEYS and (key.startswith("spurmix") or any(_differ_by_one(key, known) for known in _KEYS))


def _differ_by_one(first: str, second: str) -> bool:
    """Whether two different strings become equal by one change: a replaced, inserted or removed character."""
    short, long = sorted((first, second), key=len)
    same = next((n for n, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    return len(long) - len(short) < 2 and long[same + 1 :] == short[same + (len(long) == len(short)) :]


def _with_metadata(contents: hashlib._Hash, stored: Mapping[str, str]) -> str:
    for key, value in sorted(stored.items()):
        if key != DIGEST:
            contents.update(json.dumps([key, value]).encode())
    return contents.hexdigest()


def _locations(data: mmap.mmap, begin: int, end: int, kind: str, depth: int = 0) -> Iterator[str]:
    """Yield the names of the files with external data of all tensors in a message."""
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} nested messages")
    if kind == "external":
        key, value = _entry(data[begin:end])
        if key == "location":
            yield value
        return
    nested = _NESTED[kind]
    for field, first, last in _fields(data, begin, end):
        if field in nested:
            yield from _locations(data, first, last, nested[field], depth + 1)


def _fields(view: bytes | mmap.mmap, begin: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of each field of a protobuf message."""
    at, stop = begin, len(view) if stop is None else stop
    while at < stop:
        tag, at = _number(view, at)
        kind = tag & 7
        if kind == 0:
            _, end = _number(view, at)
        elif kind == 2:
            length, at = _number(view, at)
            end = at + length
        elif kind in (1, 5):
            end = at + (8 if kind == 1 else 4)
        else:
            raise ValueError("it is not a protobuf message")
        if end > stop:
            raise ValueError("the file is truncated")
        yield tag >> 3, at, end
        at = end


def _number(view: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """Read a number of variable length. Return it and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise ValueError("the file is truncated, or has more bytes than the model")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it is not a protobuf message")


def _entry(view: bytes) -> tuple[str, str]:
    """Read key and value of a metadata entry."""
    parts = {field: view[begin:end].decode("utf-8", errors="replace") for field, begin, end in _fields(view)}
    return parts.get(1, ""), parts.get(2, "")
