"""Layout `huggingface`: datasets that the package `datasets` reads, from disk or from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from spurmix.core.files import FileError
from spurmix.core.limits import MAX_VALUE_BYTES
from spurmix.core.names import listed, printable
from spurmix.data.dataset import tables
from spurmix.data.dataset.format import Metadata
from spurmix.data.pack.decode import IMAGE_SUFFIXES, read_file
from spurmix.data.pack.manifest import (
    Manifest,
    SampleSource,
    TextColumn,
    encode_attributes,
    encode_column,
    split_names,
    unlabelled_rows,
    with_labels,
)
from spurmix.data.pack.remote import local_path
from spurmix.data.pack.strays import is_stray, without_strays

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import ChunkedArray

_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class _ImageRecord(TypedDict):
    """An undecoded value of a `datasets.Image` column."""

    bytes: bytes | None
    path: str | None


def import_datasets() -> ModuleType:
    """Import the package `datasets`.

    Raises `ImportError` if it is missing. The message names the extra to install.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError("Hugging Face datasets need the package 'datasets': pip install 'spurmix[hf]'") from error
    return cast(ModuleType, datasets)


class _ImageColumn:
    """`SampleSource` of a column of images, of concatenated datasets."""

    def __init__(self, parts: Sequence[Dataset], column: str) -> None:
        self.parts = [part.select_columns([column]) for part in parts]
        self.column = column
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, n: int, /) -> bytes | None:
        part = int(np.searchsorted(self.ends, n, side="right"))
        return _image_bytes(self.parts[part][n - int(self.ends[part])][self.column])

    def paths(self, root: Path) -> list[str]:
        """Return the path of each image relative to the folder `root`, or "" for images that are not files."""
        found: list[str] = []
        for part in self.parts:
            chunks = _arrow_column(part, self.column).chunks if root.is_dir() and _is_image(part, self.column) else []
            paths = [path for chunk in chunks for path in getattr(chunk, "storage", chunk).field("path").to_pylist()]
            found += [_relative(path, root) for path in paths or [None] * len(part)]
        return found

    def digest(self) -> str:
        """See `SampleSource.digest`. It uses the fingerprint that `datasets` stores for each dataset."""
        known = [(part._fingerprint, len(part)) for part in self.parts]
        return hashlib.blake2b(repr((known, self.column)).encode(), digest_size=16).hexdigest()


def from_huggingface(
    path: str | Path,
    *,
    image: str | None = None,
    text: str | None = None,
    label: str = "label",
    attributes: Sequence[str] = (),
    split: str | None = None,
    notify: Callable[[str], None] = print,
) -> Manifest:
    """Read a dataset with the package `datasets`.

    Args:
        path: A folder that `save_to_disk` wrote, a Parquet, CSV, JSON or Arrow file, or a folder of such files or of
            images. If there is no such path, the name of a dataset on the Hugging Face hub, which is downloaded.
        image: Column of images. Default: the only column of type Image.
        text: Column of texts, for `pack_texts`.
        label: Column of the labels: class labels, integers from 0, or names.
        attributes: Columns of the attributes, the spurious one first. Missing values are unknown (-1).
        split: Column of the splits. Default: the splits of the dataset.
        notify: Receives a message before anything is downloaded.

    Returns:
        The rows of all splits. A split without any label is left out, and a note names it.

    Raises:
        ValueError: If the dataset cannot be read, or a column is missing or has the wrong type.
        ImportError: If the package `datasets` is missing.
    """
    library = import_datasets()
    path = local_path(path)
    with _progress_bars_on_terminals(library):
        splits = _load_splits(library, path, notify)
    location = str(path)
    hint = _class_folder_hint(Path(path)) if any(label not in part.features for part in splits.values()) else ""
    splits, without_column = _labelled_splits(splits, label, hint)
    features = _check_columns(splits, (label, *attributes, text, image, split), location, hint)
    parts = list(splits.values())
    samples: SampleSource = (
        _image_column(library, parts, image, location)
        if text is None
        else TextColumn(_text_column(library, parts, text, location), f"{location}: {text}")
    )

    def values(column: str) -> list[object]:
        found: list[object] = []
        first = 0
        for part in parts:
            arrow = _arrow_column(part, column)
            try:
                tables.check_values(arrow, column, MAX_VALUE_BYTES, first)
            except FileError as error:
                raise ValueError(f"{location} {error}") from None
            found += arrow.to_pylist()
            first += len(arrow)
        return found

    sources = [f"{name}#{n}" for name, part in splits.items() for n in range(len(part))]
    if split is not None:
        split_of_row = split_names(values(split), location, split)
    else:
        split_of_row = [name for name, part in splits.items() for _ in range(len(part))]
    given = values(label)
    skipped, left_out = unlabelled_rows(given, split_of_row)
    count = len(getattr(features[label], "names", None) or ())
    labels, class_names, _ = encode_column(given, location, label, max_classes=count, skipped=skipped)
    class_names = _class_label_names(features[label], labels, location, label) or class_names
    codes, value_names, notes = encode_attributes(
        {name: values(name) for name in attributes}, location, skipped,
        lambda name, found: _class_label_names(features[name], found, location, name),
    )  # fmt: skip
    metadata = Metadata(labels, split_of_row, sources, codes, class_names, value_names)
    kind = "texts" if text is not None else "images"
    manifest = Manifest(location, metadata, (*without_column, *left_out, *notes), samples, kind=kind)
    paths = samples.paths(Path(path)) if isinstance(samples, _ImageColumn) else None
    return with_labels(without_strays(manifest, paths))


def _class_folder_hint(folder: Path) -> str:
    """Return why `datasets` reads no labels from class folders, or "". It does so only if all images have one depth."""
    if not os.path.isdir(folder):
        return ""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not is_stray(name)]
    depths = Counter(name.count("/") for name in images)
    if len(depths) < 2:
        classes = {name.rpartition("/")[0] for name in images}
        return f"; `datasets` reads no labels from the only class folder {min(classes)!a}" if len(classes) == 1 else ""
    usual = max(depths, key=lambda depth: (depths[depth], depth))
    stray = next(name for name in images if name.count("/") != usual)
    other = next(name for name in images if name.count("/") == usual)
    return (
        f"; `datasets` reads no labels from class folders, because {stray!a} has another depth than {other!a}; move or "
        "remove this file, or use the layout 'folder'"
    )


def _labelled_splits(splits: dict[str, Dataset], label: str, hint: str) -> tuple[dict[str, Dataset], list[str]]:
    """Leave out splits without the label column, unless no split has it. Returns a note for each of them."""
    found = {name: part for name, part in splits.items() if label in part.features}
    if not found:
        return splits, []
    notes = [
        f"split {name} is left out, because it has no column {label}{hint}" for name in splits if name not in found
    ]
    return found, notes


@contextmanager
def _progress_bars_on_terminals(library: ModuleType) -> Iterator[None]:
    """Disable progress bars of `datasets` unless stderr is a terminal."""
    enabled = library.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            library.enable_progress_bars()


def _load_splits(library: ModuleType, path: str | Path, notify: Callable[[str], None]) -> dict[str, Dataset]:
    """Load a dataset. Returns its splits by name."""
    local = Path(path)
    file_format = _FORMATS.get(local.suffix.lower())
    if os.path.isfile(local) and file_format is None:
        raise ValueError(f"{local} must be one of {', '.join(_FORMATS)}")
    _check_sizes(local)
    if not os.path.exists(local):
        if not _HUB_NAME.fullmatch(str(path)):
            raise ValueError(f"there is no file or folder {path}")
        notify(f"there is no local path {printable(path)}; the dataset is downloaded from the Hugging Face hub")
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            found = library.load_from_disk(str(local))
        elif local.is_file():
            found = library.load_dataset(file_format, data_files=str(local), trust_remote_code=False)
        else:
            found = library.load_dataset(str(path), trust_remote_code=False)
    except Exception as error:  # datasets and its readers raise exceptions of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read by datasets: {reason}") from None
    if isinstance(found, library.Dataset):
        return {str(found.split or "train"): found}
    return dict(found)


def _check_sizes(local: Path) -> None:
    """Check the sizes of a file, or of the files in a folder, before `datasets` reads them.

    Raises `ValueError` if a file is too large, or Parquet files have too many rows.
    """
    import pyarrow

    rows = 0
    for file in [local] if local.is_file() else local.rglob("*") if local.is_dir() else ():
        if file.suffix.lower() not in _FORMATS or not file.is_file():
            continue
        try:
            with tables.open_file(file) as stream:
                if file.suffix.lower() == ".parquet":
                    rows += tables.open_parquet(stream).file.metadata.num_rows
                    tables.check_rows(rows)
        except FileError as error:
            raise ValueError(f"{file} {error}") from None
        except (pyarrow.ArrowException, OSError):  # damaged: `datasets` reports it
            continue


def _check_columns(
    splits: dict[str, Dataset], columns: Sequence[str | None], location: str, hint: str
) -> dict[str, object]:
    """Check that all splits have the same columns, among them `columns`. Returns the type of each column.

    `hint` says why a column of labels is missing.
    """
    first, *others = splits
    features = splits[first].features
    for name in columns:
        if name is not None and name not in features:
            raise ValueError(f"{location}: no column {name!r}; the columns are {listed(features, [name])}{hint}")
    for name in others:
        found = splits[name].features
        if list(found.items()) != list(features.items()):
            column = next((c for c in (*features, *found) if features.get(c) != found.get(c)), "")
            types = f": {column!a} is {found.get(column)} and {features.get(column)}" if column else " in their order"
            raise ValueError(f"{location}: the columns of split {name} differ from those of split {first}{types}")
    count = sum(len(part) for part in splits.values())
    if count == 0:
        raise ValueError(f"{location} has no rows")
    try:
        tables.check_rows(count)
    except FileError as error:
        raise ValueError(f"{location} {error}") from None
    return dict(features)


def _text_column(library: ModuleType, parts: list[Dataset], column: str, location: str) -> ChunkedArray:
    import pyarrow

    feature = parts[0].features[column]
    if not isinstance(feature, library.Value) or feature.dtype not in ("string", "large_string"):
        raise ValueError(f"{location}: {column} must be a column of texts, got {feature}")
    chunks = [chunk for part in parts for chunk in _arrow_column(part, column).chunks]
    return pyarrow.chunked_array(chunks)


def _arrow_column(part: Dataset, column: str) -> ChunkedArray:
    """Return a column as Arrow stores it, without decoding."""
    return part.select_columns([column]).with_format("arrow")[:][column]


def _image_column(library: ModuleType, parts: list[Dataset], column: str | None, location: str) -> _ImageColumn:
    features = parts[0].features
    if column is None:
        found = [name for name, feature in features.items() if isinstance(feature, library.Image)]
        if len(found) != 1:
            problem = f"columns {' and '.join(found)} contain images" if found else "no column is of type Image"
            raise ValueError(
                f"{location}: {problem}; name the column of images or of texts; the columns are {listed(features)}"
            )
        column = found[0]
    feature = features[column]
    if not isinstance(feature, library.Image) and getattr(feature, "dtype", None) not in ("binary", "large_binary"):
        raise ValueError(
            f"{location}: {column} must be a column of images or of the bytes of image files, got {feature}"
        )
    if isinstance(feature, library.Image):
        parts = [part.cast_column(column, library.Image(decode=False)) for part in parts]
    return _ImageColumn(parts, column)


def _image_bytes(value: bytes | _ImageRecord | None) -> bytes | None:
    """Return the content of an image file. A path is local."""
    if value is None or isinstance(value, bytes):
        return value
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    path = value["path"]
    if path is None:
        return None
    if "://" in path:
        raise OSError(f"the image is at {path}, which is not downloaded")
    return read_file(path)


def _is_image(part: Dataset, column: str) -> bool:
    return isinstance(part.features[column], import_datasets().Image)


def _relative(path: str | None, root: Path) -> str:
    """Return a path relative to `root`, or "" if it is not below."""
    for base in (root.absolute(), root.resolve()):
        if path is not None and Path(path).is_relative_to(base):
            return Path(path).relative_to(base).as_posix()
    return ""


def _class_label_names(feature: object, codes: NDArray[np.int64], location: str, column: str) -> tuple[str, ...]:
    """Return the names of a column of class labels, or () for another column."""
    names: tuple[str, ...] = tuple(getattr(feature, "names", None) or ())
    if names and codes.size and codes.max() >= len(names):
        row = int(codes.argmax())
        raise ValueError(
            f"{location}, row {row}: {column} must be below {len(names)}, the number of names, got {codes[row]}"
        )
    return names
