"""Datasets that the package `datasets` reads: what `save_to_disk` wrote, local files and folders, the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.data.dataset.packed import Metadata
from spurmix.data.pack.decode import file_bytes
from spurmix.data.pack.manifest import ArrowTexts, Content, Listing, coded, coded_attributes, local, split_names

_FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError("Hugging Face datasets need the package 'datasets': pip install 'spurmix[hf]'") from error
    return datasets


class _Images:
    """`Content` of a column of images, of datasets that lie behind one another."""

    def __init__(self, parts: Sequence[Any], column: str) -> None:
        self.parts = [part.select_columns([column]) for part in parts]
        self.column = column
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, n: int) -> Any:
        part = int(np.searchsorted(self.ends, n, side="right"))
        return _bytes(self.parts[part][n - int(self.ends[part])][self.column])

    def digest(self) -> str:
        """See `Content`: `datasets` keeps a fingerprint of what it reads."""
        known = [(part._fingerprint, len(part)) for part in self.parts]
        return hashlib.blake2b(repr((known, self.column)).encode(), digest_size=16).hexdigest()


def from_datasets(
    path: str | Path,
    *,
    image: str | None = None,
    text: str | None = None,
    label: str = "label",
    attributes: Sequence[str] = (),
    split: str | None = None,
    notify: Callable[[str], None] = print,
) -> Listing:
    """A dataset of `datasets`: its splits, an image column or a text column, label and attributes.

    Args:
        path: a folder that `save_to_disk` wrote; a Parquet, CSV, JSON or Arrow file, or a folder of them or of images; or,
            where there is no such path, a name on the Hugging Face hub, from which it is then downloaded.
        image: column of images; default: the one whose type is Image. text: column of texts, for `pack_texts`.
        label, attributes: columns of class labels, integers from 0 or names; a missing attribute is unknown (-1).
        split: column of the split; default: the splits that `datasets` knows.
        notify: is told before anything is downloaded.

    Raises:
        ValueError: for what cannot be read, or columns that are missing or of another type. ImportError: without datasets.
    """
    library = _library()
    path = local(path)
    with _quiet(library):
        splits = _open(library, path, notify)
    names, parts = list(splits), list(splits.values())
    features = parts[0].features
    for name in (label, *attributes, text, image, split):
        if name is not None and name not in features:
            raise ValueError(f"{path}: no column {name!r}; there are {', '.join(features)}")
    for name, part in splits.items():
        if list(part.features.items()) != list(features.items()):
            raise ValueError(f"{path}: the columns of split {name} differ from those of {names[0]}")
    if not sum(map(len, parts)):
        raise ValueError(f"{path} has no rows")
    content: Content = _texts(library, parts, text, path) if text is not None else _images(library, parts, image, path)
    where = str(path)

    def values(column: str) -> list[Any]:
        return [value for part in parts for value in _arrow(part, column).to_pylist()]

    labels, class_names, _ = coded(
        values(label), where, label, known=len(getattr(features[label], "names", None) or ())
    )
    class_names = _names(features[label], labels, class_names, where, label)
    codes, value_names, notes = coded_attributes({name: values(name) for name in attributes}, where)
    value_names = {n: _names(features[n], codes[n], known, where, n) for n, known in value_names.items()}
    sources = [f"{name}#{n}" for name, part in splits.items() for n in range(len(part))]
    of_row = (
        [source.rpartition("#")[0] for source in sources] if split is None else split_names(values(split), where, split)
    )
    metadata = Metadata(labels, of_row, sources, codes, class_names, value_names)
    kind = "texts" if text is not None else "images"
    return Listing(where, metadata, tuple(notes), content, kind=kind)


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """No progress bars where nobody watches."""
    shown = library.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bars()


def _open(library: Any, path: str | Path, notify: Callable[[str], None]) -> dict[str, Any]:
    place = Path(path)
    kind = _FILES.get(place.suffix.lower())
    if place.is_file() and kind is None:
        raise ValueError(f"{place} must be one of {', '.join(_FILES)}")
    if not place.exists():
        if not _HUB_NAME.fullmatch(str(path)):
            raise ValueError(f"there is no file or folder {path}")
        notify(f"there is no path {path} here: it is looked up on the Hugging Face hub, and downloaded")
    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            found = library.load_from_disk(str(place))
        elif place.is_file():
            found = library.load_dataset(kind, data_files=str(place))
        else:
            found = library.load_dataset(str(path))
    except Exception as error:  # datasets and what it reads with raise whatever they like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read by datasets: {reason}") from None
    if isinstance(found, library.Dataset):
        return {str(found.split or "train"): found}
    return dict(found)


def _texts(library: Any, parts: list[Any], column: str, path: str | Path) -> ArrowTexts:
    import pyarrow

    kind = parts[0].features[column]
    if not isinstance(kind, library.Value) or kind.dtype not in ("string", "large_string"):
        raise ValueError(f"{path}: {column} must be a column of texts, it is {kind}")
    chunks = [chunk for part in parts for chunk in _arrow(part, column).chunks]
    return ArrowTexts(pyarrow.chunked_array(chunks), f"{path}: {column}")


def _arrow(part: Any, column: str) -> Any:
    """A column as Arrow has it on the disk."""
    return part.select_columns([column]).with_format("arrow")[:][column]


def _images(library: Any, parts: list[Any], column: str | None, path: str | Path) -> _Images:
    features = parts[0].features
    if column is None:
        found = [name for name, kind in features.items() if isinstance(kind, library.Image)]
        if len(found) != 1:
            what = f"the images are in {' or '.join(found)}" if found else "no column is of type Image"
            raise ValueError(f"{path}: {what}; name the column of images or of texts; there are {', '.join(features)}")
        column = found[0]
    kind = features[column]
    if not isinstance(kind, library.Image) and getattr(kind, "dtype", None) not in ("binary", "large_binary"):
        raise ValueError(f"{path}: {column} must be a column of images or of their files' bytes, it is {kind}")
    if isinstance(kind, library.Image):
        parts = [part.cast_column(column, library.Image(decode=False)) for part in parts]
    return _Images(parts, column)


def _bytes(value: Any) -> bytes | None:
    """The file's bytes in what a row holds; a path is that of a file of this machine."""
    if value is None or isinstance(value, bytes):
        return value
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    if value["path"] is None:
        return None
    if "://" in value["path"]:
        raise OSError(f"the image lies at {value['path']}; nothing is downloaded")
    return file_bytes(value["path"])


def _names(kind: Any, codes: NDArray[np.int64], names: tuple[str, ...], where: str, column: str) -> tuple[str, ...]:
    """The names of a column of class labels; `names` for any other."""
    known: tuple[str, ...] = tuple(getattr(kind, "names", None) or ())
    if not known:
        return names
    if codes.size and codes.max() >= len(known):
        row = int(codes.argmax())
        raise ValueError(f"{where}, row {row}: {column} is {codes[row]}, there are {len(known)} names")
    return known
