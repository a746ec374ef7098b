"""The packed format: file names, `dataset.json`, `metadata.parquet` and the headers of array files.

A packed dataset is a folder with:

- one of `images.npy` (uint8 `[N, H, W, C]`), `features.npy` (float `[N, D]`), or `tokens.npy` (int32 `[T]`) with
  `token_offsets.npy` (int64 `[N + 1]`) and the tokenizer's files;
- `metadata.parquet`: label, split, source and one column for each attribute;
- `dataset.json`: sizes and checksums of all files. It is written last, so an incomplete folder never opens;
- `broken.jsonl`, if examples could not be read: source and reason of each.
"""

from __future__ import annotations

import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NotRequired, TypeAlias, TypedDict, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from spurmix.core.files import FileError, check_form, read_json
from spurmix.data.dataset import checksums, tables
from spurmix.data.dataset.checksums import FileRecord

FORMAT_VERSION = 1
MAX_CHUNK = 1 << 30
"""Maximum number of bytes that one checksum covers. They are read at once."""
DESCRIPTION_FILE = "dataset.json"
METADATA_FILE = "metadata.parquet"
UNREADABLE_FILE = "broken.jsonl"
PACKING_SUFFIX = ".packing"
"""Suffix of a folder in which a dataset is being packed."""
ARRAY_FILES = {"images": ("images.npy",), "tokens": ("tokens.npy", "token_offsets.npy"), "features": ("features.npy",)}
"""Array files of each kind of dataset."""
RESERVED_COLUMNS = ("label", "split", "source")
"""Columns of `metadata.parquet` that no attribute may be named after."""

Provenance: TypeAlias = dict[str, Any]
"""A JSON object that describes how a dataset was made: version, root, settings and notes."""


class DatasetError(FileError):
    """A folder is not a packed dataset, is damaged, or was written by a newer version."""


class Description(TypedDict):
    """The content of `dataset.json`, without its checksum."""

    format: int
    kind: str
    count: int
    classes: list[str]
    attributes: dict[str, list[str]]
    chunk: int
    files: dict[str, FileRecord]
    made: Provenance


class TokenSettings(TypedDict):
    """Settings of a `TokenSource`, in the provenance of a dataset of texts."""

    vocab_size: int
    pad_id: int | None
    sep_id: int | None
    max_length: int | None
    tokenizer: str | None
    padding_side: NotRequired[str]


class _KnownProvenance(TypedDict):
    """The fields of the provenance that are read."""

    tokens: NotRequired[TokenSettings]
    cells: NotRequired[list[str]]
    notes: NotRequired[list[str]]
    broken: NotRequired[int]
    shard: NotRequired[list[int]]
    occurring: NotRequired[dict[str, list[int]]]


def import_parquet() -> ModuleType:
    """Import `pyarrow.parquet`.

    Raises `ImportError` if pyarrow is missing. The message names the extra to install.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError("packed datasets need the package 'pyarrow': pip install 'spurmix[data]'") from error
    return cast(ModuleType, pyarrow.parquet)


@dataclass(frozen=True)
class Metadata:
    """Label, split, source and attributes of each example.

    Args:
        labels: Labels, int64 `[N]`, in [0, number of classes).
        splits: Name of the split of each example.
        sources: Where each example comes from, such as a relative path.
        attributes: Values of each attribute, int64 `[N]`, by name. -1 means unknown.
        class_names: Names of the classes, by label.
        attribute_names: Names of the values of each attribute, by attribute.
    """

    labels: NDArray[np.int64]
    splits: list[str]
    sources: list[str]
    attributes: dict[str, NDArray[np.int64]]
    class_names: tuple[str, ...]
    attribute_names: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return int(self.labels.size)

    def select(self, rows: NDArray[np.int64]) -> Metadata:
        """Return the examples `rows`, in that order."""
        return Metadata(
            self.labels[rows],
            [self.splits[n] for n in rows],
            [self.sources[n] for n in rows],
            {name: values[rows] for name, values in self.attributes.items()},
            self.class_names,
            self.attribute_names,
        )


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write `metadata.parquet` into `folder`."""
    parquet = import_parquet()
    import pyarrow

    table = pyarrow.table(
        {
            "label": metadata.labels,
            "split": pyarrow.array(metadata.splits, pyarrow.string()).dictionary_encode(),
            "source": pyarrow.array(metadata.sources, pyarrow.string()),
            **metadata.attributes,
        }
    )
    with pyarrow.OSFile(
        str(folder / METADATA_FILE), "wb"
    ) as file:  # write_table would interpret a path with a colon as a URL
        parquet.write_table(table, file)


def read_metadata(folder: Path, description: Description) -> Metadata:
    """Read and check `metadata.parquet`.

    Raises `DatasetError` if the file is damaged or does not match the description.
    """
    path = folder / METADATA_FILE
    names = {name: tuple(values) for name, values in description["attributes"].items()}
    classes = tuple(description["classes"])
    import_parquet()
    try:
        with tables.open_file(path) as file:
            opened = tables.open_parquet(file, description["count"])
            columns = (*RESERVED_COLUMNS, *names)
            for name in columns:
                count = opened.file.schema_arrow.names.count(name)
                if count != 1:
                    raise DatasetError(f"{path} must have one column {name!r}, it has {count}")
            table = tables.read_columns(opened, columns)

        def integers(name: str, low: int, end: int) -> NDArray[np.int64]:
            values = np.asarray(table[name].to_numpy(), dtype=np.int64)
            if values.size and (values.min() < low or values.max() >= end):
                raise DatasetError(f"{path}: values of column {name!r} must be in [{low}, {end})")
            return values

        def strings(name: str) -> list[str]:
            values: list[str] = table[name].to_pylist()
            if not all(isinstance(value, str) for value in values):
                raise DatasetError(f"{path}: column {name!r} must contain strings")
            return values

        return Metadata(
            integers("label", 0, len(classes)),
            strings("split"),
            strings("source"),
            {name: integers(name, -1, len(values)) for name, values in names.items()},
            classes,
            names,
        )
    except DatasetError:
        raise
    except FileError as error:
        raise DatasetError(f"{path} {error}") from None
    except Exception as error:  # pyarrow's exceptions have no common base class
        raise DatasetError(f"{path} is damaged: {error}") from None


def write_description(
    folder: Path,
    kind: str,
    metadata: Metadata,
    provenance: Provenance,
    extra_files: Iterable[str] = (),
    known_checksums: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Write `dataset.json` for the files in `folder`. From then on the folder opens as a dataset.

    Args:
        folder: Folder with the array files and `metadata.parquet`.
        kind: "images", "tokens" or "features".
        metadata: Metadata of the examples, already written.
        provenance: How the dataset was made.
        extra_files: Names of further files that belong to the dataset, such as the tokenizer's.
        known_checksums: Checksums that need not be computed again, by file name and chunk number.
    """
    known = known_checksums or {}
    report = [UNREADABLE_FILE] if (folder / UNREADABLE_FILE).is_file() else []
    files: dict[str, FileRecord] = {
        name: {
            "size": (folder / name).stat().st_size,
            "checksums": checksums.file_checksums(folder / name, known.get(name, {})),
        }
        for name in (*ARRAY_FILES[kind], METADATA_FILE, *extra_files, *report)
    }
    description = {
        "format": FORMAT_VERSION,
        "kind": kind,
        "count": len(metadata),
        "classes": list(metadata.class_names),
        "attributes": {name: list(values) for name, values in metadata.attribute_names.items()},
        "chunk": checksums.CHUNK,
        "files": files,
        "made": provenance,
    }
    temporary = folder / f".{DESCRIPTION_FILE}"
    temporary.write_text(json.dumps(with_checksum(description), indent=1))
    temporary.replace(folder / DESCRIPTION_FILE)


def with_checksum(description: Mapping[str, object]) -> dict[str, object]:
    """Return a description with the checksum of its own content."""
    content = {key: value for key, value in description.items() if key != "checksum"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {**content, "checksum": f"{zlib.crc32(text.encode()):08x}"}


def read_description(folder: Path, incomplete: bool = False) -> Description:
    """Read and check `dataset.json`.

    Args:
        folder: Folder of the dataset.
        incomplete: Whether the folder may be one in which a dataset is being packed.

    Returns:
        The description.

    Raises:
        DatasetError: If the folder is not a packed dataset, is damaged, or has a newer format.
    """
    path = folder / DESCRIPTION_FILE
    if not os.path.isdir(folder):
        raise DatasetError(f"{folder} is not a folder")
    if folder.name.endswith(PACKING_SUFFIX) and not incomplete:
        raise DatasetError(f"{folder}: packing is incomplete; run the same command again to resume")
    if not path.is_file():
        raise DatasetError(f"{folder} is not a packed dataset: {DESCRIPTION_FILE} is missing")
    try:
        found = read_json(path, dict[str, object])
        version = check_form(found, str(path), _Versioned)["format"]
        if version > FORMAT_VERSION:
            raise DatasetError(
                f"{path}: format {version} is not supported, this version reads up to {FORMAT_VERSION}; update spurmix"
            )
        if check_form(found, str(path), _Sealed)["checksum"] != with_checksum(found)["checksum"]:
            raise DatasetError(f"{path} is damaged: the content does not match its checksum")
        description = check_form(found, str(path), Description)
        problem = _problem(description)
        if problem is not None:
            raise DatasetError(f"{path} is damaged: {problem}")
    except DatasetError:
        raise
    except FileError as error:
        raise DatasetError(error) from None
    return description


class _Versioned(TypedDict):
    format: int


class _Sealed(TypedDict):
    checksum: str


def _problem(description: Description) -> str | None:
    """Return which value of a description is invalid, or None."""
    kind, count, chunk = description["kind"], description["count"], description["chunk"]
    if description["format"] < 1:
        return f"format must be a positive integer, got {description['format']}"
    if kind not in ARRAY_FILES:
        return f"kind must be one of {', '.join(ARRAY_FILES)}, got {kind!r}"
    if count < 0 or not 1 <= chunk <= MAX_CHUNK:
        return f"invalid count {count} or chunk {chunk}"
    absent = {*ARRAY_FILES[kind], METADATA_FILE} - description["files"].keys()
    if absent:
        return f"no record of {', '.join(sorted(absent))}"
    for name, record in description["files"].items():
        if Path(name).name != name or "\0" in name:
            return f"{name!r} is outside the folder"
        if len(record["checksums"]) != -(-record["size"] // chunk):
            return f"the checksums of {name!r} do not cover the file"
    return None


def check_size(path: Path, size: int) -> None:
    """Check that a file exists and has the recorded size.

    Raises `DatasetError` if it does not.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing")
    found = path.stat().st_size
    if found != size:
        raise DatasetError(f"{path} has {found:,} bytes, expected {size:,}")


def check_provenance(folder: Path, kind: str, provenance: Provenance, metadata: Metadata) -> None:
    """Check the fields of the provenance that reading depends on.

    Raises `DatasetError` if one is missing or invalid.
    """
    path = folder / DESCRIPTION_FILE
    try:
        check_form(provenance, f"{path}, 'made',", _KnownProvenance)
    except FileError as error:
        raise DatasetError(error) from None
    if kind == "tokens":
        settings = provenance.get("tokens")
        if settings is None:
            raise DatasetError(f"{path} is damaged: the tokenizer's settings are missing")
        unknown = settings.keys() - TokenSettings.__annotations__.keys()
        if unknown:
            raise DatasetError(f"{path}: unknown settings of texts: {', '.join(sorted(unknown))}; update spurmix")
    if len(provenance.get("shard", (0, 0))) != 2:
        raise DatasetError(f"{path} is damaged: shard must be [number, count], got {provenance['shard']!r}")
    cells = provenance.get("cells", [])
    if not all(name in metadata.attributes for name in cells):
        raise DatasetError(f"{path} is damaged: cells must be names of attributes, got {cells!r}")


def array_header(shape: tuple[int, ...], dtype: DTypeLike) -> bytes:
    """Return the header of an `.npy` file in C order. NumPy pads it, so its size does not depend on the row count."""
    stream = io.BytesIO()
    descriptor = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(stream, {"descr": descriptor, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def read_array_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape and dtype of an `.npy` file in C order, and the offset of its data in bytes.

    Raises `DatasetError` if the file is not such an array.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
            shape, fortran, dtype = read(file)
            offset = file.tell()
        valid = path.stat().st_size == offset + dtype.itemsize * math.prod(shape) and min(shape, default=1) >= 0
        if fortran or dtype.hasobject or not valid:
            raise ValueError(f"its size does not match {dtype} {list(shape)}")
    except Exception as error:  # NumPy evaluates the header as Python, which raises exceptions of any type
        raise DatasetError(f"{path} is damaged: {error}") from None
    return shape, dtype, offset


def check_arrays(folder: Path, kind: str, count: int) -> None:
    """Check dtype, rank and row count of the array files.

    Raises `DatasetError` if they do not match the kind of dataset or the row count of the metadata.
    """
    headers = [read_array_header(folder / name)[:2] for name in ARRAY_FILES[kind]]
    shape, dtype = headers[0]
    rank, letter = {"images": (4, "u1"), "tokens": (1, "i4"), "features": (2, "f")}[kind]
    if len(shape) != rank or not dtype.str[1:].startswith(letter):
        raise DatasetError(f"{folder / ARRAY_FILES[kind][0]}: {dtype} {list(shape)} is not an array of {kind}")
    rows = shape[0] if kind != "tokens" else headers[1][0][0] - 1
    if rows != count:
        raise DatasetError(f"{folder}: {METADATA_FILE} has {count:,} rows for {rows:,} {kind}")
