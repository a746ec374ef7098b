"""What is to be packed: files with label, attributes and split, from folders, tables, and datasets as published."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.data.store import Metadata

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True)
class Listing:
    """Image files below `root` (a folder or an fsspec URL), `metadata.sources` relative to it; `notes` for the user."""

    root: str
    metadata: Metadata
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.metadata)

    def ordered(self, limit: int | None = None) -> Listing:
        """The examples of each split together, splits in the order they are first met; at most `limit` of each."""
        splits = self.metadata.splits
        order: dict[str, list[int]] = {}
        for n, name in enumerate(splits):
            order.setdefault(name, []).append(n)
        rows = [n for members in order.values() for n in members[:limit]]
        return Listing(self.root, self.metadata.take(np.array(rows, dtype=np.int64)), self.notes)


def open_root(root: str) -> tuple[Any, str]:
    """The file system of a folder or URL, and the path in it."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ImportError("packing needs the package 'fsspec': pip install 'spurmix[data]'") from error
    system, path = fsspec.core.url_to_fs(root)
    if not system.isdir(path):
        raise ValueError(f"root: there is no folder {root}")
    return system, path.rstrip("/")


def check_inside(sources: Sequence[str], where: str) -> None:
    """Check that paths are relative and stay below their root, and that none comes twice."""
    seen: dict[str, int] = {}
    for n, source in enumerate(sources):
        path = posixpath.normpath(source)
        if path.startswith(("/", "..")) or "://" in source or path == ".":
            raise ValueError(f"{where}, row {n}: the path {source!r} leaves the root; paths are relative to it")
        if path in seen:
            raise ValueError(f"{where}, row {n}: {source!r} stands in row {seen[path]} too")
        seen[path] = n


def coded(values: Iterable[Any], where: str, column: str, optional: bool = False) -> tuple[Any, tuple[str, ...], int]:
    """Codes int64 `[N]`, the names by code, and how many are unknown (-1): of integers 0 to K - 1, or of names.

    Raises:
        ValueError: for values that are neither integers nor names, naming the row; for missing ones unless `optional`.
    """
    rows = list(values)
    missing = [n for n, v in enumerate(rows) if v is None or v == "" or v != v]
    if missing and not optional:
        raise ValueError(f"{where}, row {missing[0]}: {column} is missing")
    known = [v for v in rows if not (v is None or v == "" or v != v)]
    if all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in known):
        low, high = (min(known), max(known)) if known else (0, 0)
        if low < (-1 if optional else 0) or high >= 1 << 31:
            bad = next(n for n, v in enumerate(rows) if v in (low, high) and not 0 <= v < 1 << 31)
            raise ValueError(f"{where}, row {bad}: {column} must be 0 or more, got {rows[bad]}")
        codes = np.array([-1 if v is None or v == "" or v != v else v for v in rows], dtype=np.int64)
        return codes, tuple(str(v) for v in range(int(high) + 1)), int((codes < 0).sum())
    for n, value in enumerate(rows):
        if not isinstance(value, (str, bool)) and value is not None and value == value:
            raise ValueError(f"{where}, row {n}: {column} must be an integer or a name, got {value!r}")
    names = sorted({str(v) for v in known})
    code = {name: k for k, name in enumerate(names)}
    codes = np.array([code.get(str(v), -1) if v not in (None, "") else -1 for v in rows], dtype=np.int64)
    return codes, tuple(names), len(missing)


def from_folder(root: str | Path) -> Listing:
    """Class folders `root/<class>/**`, or below split folders `root/<split>/<class>/**` (train, val, valid, test).

    Raises:
        ValueError: where there are no images, naming the folder.
    """
    system, base = open_root(str(root))
    files = sorted(f for f in system.find(base) if f.lower().endswith(SUFFIXES))
    parts = [posixpath.relpath(f, base).split("/") for f in files]
    parts = [p for p in parts if len(p) > 1]
    if not parts:
        raise ValueError(f"root: no images in class folders below {root}")
    split_names = {"train", "val", "valid", "validation", "test"}
    has_splits = all(p[0] in split_names and len(p) > 2 for p in parts)
    classes = [p[1] if has_splits else p[0] for p in parts]
    labels, names, _ = coded(classes, str(root), "class")
    splits = [p[0] if has_splits else "train" for p in parts]
    names = tuple(sorted(set(classes)))
    return Listing(str(root), Metadata(labels, splits, ["/".join(p) for p in parts], {}, names, {}))


def read_table(path: str | Path) -> Any:
    """A CSV or Parquet file as a pyarrow table.

    Raises:
        ValueError: for a file that cannot be read, with pyarrow's reason.
    """
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError("tables need the package 'pyarrow': pip install 'spurmix[data]'") from error
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            return pyarrow.parquet.read_table(file)
        return pyarrow.csv.read_csv(file)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def _column(table: Any, name: str, where: str) -> list[Any]:
    if name not in table.column_names:
        raise ValueError(f"{where}: no column {name!r}; there are {', '.join(table.column_names)}")
    return table[name].to_pylist()


def from_table(
    table: str | Path,
    root: str | Path | None = None,
    *,
    path: str = "path",
    label: str = "label",
    attributes: Sequence[str] = (),
    split: str | None = None,
) -> Listing:
    """Rows of a CSV or Parquet file: relative path, label, attributes, split.

    Args:
        table: the file. root: the folder paths are relative to; default: the table's.
        path, label, attributes, split: columns. Labels and attributes are integers from 0 or names; an attribute that is
            missing in a row is unknown there (-1), and counted in the notes. split None: all is "train".

    Raises:
        ValueError: naming row and column.
    """
    where = str(table)
    rows = read_table(table)
    sources = [str(v) if v is not None else "" for v in _column(rows, path, where)]
    check_inside(sources, where)
    labels, names, _ = coded(_column(rows, label, where), where, label)
    values: dict[str, NDArray[np.int64]] = {}
    value_names: dict[str, tuple[str, ...]] = {}
    notes = []
    for name in attributes:
        if name in ("label", "split", "source"):
            raise ValueError(f"attributes: {name!r} is a name that packed datasets use; rename the column")
        values[name], value_names[name], unknown = coded(_column(rows, name, where), where, name, optional=True)
        if unknown:
            notes.append(f"{name} is unknown in {unknown:,} of {len(sources):,} rows")
    splits = [str(v) for v in _column(rows, split, where)] if split is not None else ["train"] * len(sources)
    if not sources:
        raise ValueError(f"{where} has no rows")
    metadata = Metadata(labels, splits, sources, values, names, value_names)
    return Listing(str(root if root is not None else Path(table).parent), metadata, tuple(notes))


_THREE_SPLITS = ("train", "val", "test")


def _numbered(values: list[Any], where: str, column: str) -> list[str]:
    for n, value in enumerate(values):
        if value not in (0, 1, 2):
            raise ValueError(f"{where}, row {n}: {column} must be 0, 1 or 2 (train, val, test), got {value!r}")
    return [_THREE_SPLITS[v] for v in values]


def waterbirds(root: str | Path) -> Listing:
    """Waterbirds as published: `metadata.csv` with img_filename, y, split (0, 1, 2) and place."""
    file = Path(root) / "metadata.csv"
    table, where = read_table(file), str(file)
    sources = [str(v) for v in _column(table, "img_filename", where)]
    check_inside(sources, where)
    labels, _, _ = coded(_column(table, "y", where), where, "y")
    place, _, _ = coded(_column(table, "place", where), where, "place", optional=True)
    splits = _numbered(_column(table, "split", where), where, "split")
    if labels.max() > 1 or place.max() > 1:
        raise ValueError(f"{where}: y and place must be 0 or 1")
    names: dict[str, tuple[str, ...]] = {"place": ("land", "water")}
    return Listing(str(root), Metadata(labels, splits, sources, {"place": place}, ("landbird", "waterbird"), names))


def celeba(root: str | Path, *, target: str = "Blond_Hair", attributes: Sequence[str] = ("Male",)) -> Listing:
    """CelebA: `list_attr_celeba.csv`, `list_eval_partition.csv` and the folder `img_align_celeba`.

    Args:
        target: column that becomes the label. attributes: columns that become attributes; the first is the spurious one.
    """
    folder = Path(root)
    table, where = read_table(folder / "list_attr_celeba.csv"), str(folder / "list_attr_celeba.csv")
    parts, parts_where = read_table(folder / "list_eval_partition.csv"), str(folder / "list_eval_partition.csv")
    files = [str(v) for v in _column(table, "image_id", where)]
    of_file = dict(
        zip(map(str, _column(parts, "image_id", parts_where)), _column(parts, "partition", parts_where), strict=True)
    )
    for n, name in enumerate(files):
        if name not in of_file:
            raise ValueError(f"{where}, row {n}: {name} has no partition in {parts_where}")

    def signs(column: str) -> NDArray[np.int64]:
        values = _column(table, column, where)
        for n, value in enumerate(values):
            if value not in (-1, 0, 1):
                raise ValueError(f"{where}, row {n}: {column} must be -1 or 1, got {value!r}")
        return np.array([v == 1 for v in values], dtype=np.int64)

    sources = [f"img_align_celeba/{name}" for name in files]
    check_inside(sources, where)
    splits = _numbered([of_file[name] for name in files], parts_where, "partition")
    names: dict[str, tuple[str, ...]] = {name: (f"not {name}", name) for name in attributes}
    metadata = Metadata(
        signs(target), splits, sources, {name: signs(name) for name in attributes}, (f"not {target}", target), names
    )
    return Listing(str(root), metadata)
