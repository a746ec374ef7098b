"""What is to be packed: files with label, attributes and split, from folders, tables, and datasets as published."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spurmix.core.ranges import chunks
from spurmix.data.dataset.packed import OWN_COLUMNS, Metadata
from spurmix.data.dataset.tokenize import unreadable
from spurmix.data.pack import remote
from spurmix.data.pack.decode import file_bytes, stamp_of, stamped_bytes
from spurmix.data.pack.job import counted
from spurmix.data.pack.remote import beside, parent

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class Content(Protocol):
    """What the examples are where they are no files: item n is the bytes of an image file, its pixels (uint8 `[H, W]` or
    `[H, W, 3]`), or a text; None where it is missing. Read by several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, n: int, /) -> Any: ...

    def digest(self) -> str:
        """A hex digest of what it holds: a killed job is gone on with where it is the same."""
        ...


@dataclass(frozen=True)
class Listing:
    """What is to be packed: image files below `root` (a folder or an fsspec URL), `metadata.sources` relative to it; or,
    with `content`, its items.

    Attributes:
        notes: for the user. rows: which item each example is, int64 `[N]`; default: all, in order.
        kind: "images" or "texts". cells: attributes whose overlapping cells are evaluated, see `PackedDataset.cells`.
    """

    root: str
    metadata: Metadata
    notes: tuple[str, ...] = field(default=())
    content: Content | None = None
    rows: NDArray[np.int64] | None = None
    kind: str = "images"
    cells: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.metadata)

    def take(self, chosen: NDArray[np.int64]) -> Listing:
        """The examples `chosen`, in that order."""
        rows = None if self.content is None else chosen if self.rows is None else self.rows[chosen]
        return replace(self, metadata=self.metadata.take(chosen), rows=rows)

    def ordered(self, limit: int | None = None) -> Listing:
        """The examples of each split together, splits in the order they are first met; at most `limit` of each."""
        order: dict[str, list[int]] = {}
        for n, name in enumerate(self.metadata.splits):
            order.setdefault(name, []).append(n)
        return self.take(np.array([n for members in order.values() for n in members[:limit]], dtype=np.int64))

    def reader(self) -> Callable[[int], Any]:
        """A function that gives what example n is; of a file its bytes."""
        if self.content is not None:
            content, rows = self.content, self.rows
            return lambda n: content[n if rows is None else int(rows[n])]
        system, base = open_root(self.root)
        sources = self.metadata.sources
        if "file" in system.protocol:
            return lambda n: file_bytes(f"{base}/{sources[n]}")
        return remote.reader(system, base, sources)

    def stamped_reader(self) -> Callable[[int], tuple[bytes, int]] | None:
        """A function that gives the bytes of file n and its stamp, see `stamper`; None for what is no file here."""
        place = self._place()
        return None if place is None else lambda n: stamped_bytes(place(n))

    def stamper(self) -> Callable[[int], int] | None:
        """A function that gives a number for file n that is another once the file is; None for what is no file here."""
        place = self._place()
        if place is None:
            return None

        def stamp(n: int) -> int:
            try:
                return stamp_of(os.stat(place(n)))
            except OSError:
                return -1

        return stamp

    def _place(self) -> Callable[[int], str] | None:
        """A function that gives the path of file n, where they are files of this machine."""
        if self.content is not None:
            return None
        system, base = open_root(self.root)
        sources = self.metadata.sources
        return (lambda n: f"{base}/{sources[n]}") if "file" in system.protocol else None


def _fsspec() -> Any:
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ImportError("packing needs the package 'fsspec': pip install 'spurmix[data]'") from error
    return fsspec


def local(place: str | Path) -> str | Path:
    """A path of this machine, also where it is written as a `file://` URL.

    Raises:
        ValueError: for any other URL.
    """
    text = str(place)
    if text.startswith("file://"):
        return text.removeprefix("file://")
    if "://" in text:
        raise ValueError(f"{text}: only files of this machine can be read here; copy them first")
    return place


def open_root(root: str) -> tuple[Any, str]:
    """The file system of a folder or URL, and the path in it; whether a web server has a folder, it need not tell."""
    try:
        system, path = _fsspec().core.url_to_fs(root)
        there = remote.has_folder(system, path)
    except ImportError as error:  # fsspec says which package it is
        raise ImportError(f"root: {root} needs another package: {error}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"root: {root} cannot be opened: {error}") from None
    if not there:
        raise ValueError(f"root: there is no folder {root}")
    return system, (remote.quoted_root(path) if remote.is_web(system) else path).rstrip("/")


def files_below(system: Any, base: str) -> list[str]:
    """All that is no folder below a folder, relative to it, sorted; on this machine also in folders that links lead to."""
    if "file" not in system.protocol:
        return remote.files_below(system, base)
    found: list[str] = []

    def walk(folder: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if real in above:  # a link to a folder that holds it
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    walk(entry.path, (*above, real))
                else:
                    found.append(entry.path)

    walk(base, ())
    return sorted(os.path.relpath(path, base) for path in found)


def check_inside(sources: Sequence[str], where: str) -> None:
    """Check that paths are relative, stay below their root, are text, and that none comes twice."""
    seen: dict[str, int] = {}
    for n, source in enumerate(sources):
        path = posixpath.normpath(source)
        if not source:
            raise ValueError(f"{where}, row {n}: the path is missing")
        if path.startswith(("/", "../")) or path in (".", "..") or "://" in source:
            raise ValueError(f"{where}, row {n}: the path {source!r} leaves the root; paths are relative to it")
        if path in seen:
            raise ValueError(f"{where}, row {n}: {source!r} stands in row {seen[path]} too")
        if unreadable(source) is not None:
            raise ValueError(f"{where}, row {n}: the name {source!r} is no UTF-8; rename the file")
        seen[path] = n


def _plain(value: Any) -> Any:
    """A value of a table: None where it is missing, an integer where a column with gaps made it a float."""
    if value is None or value == "" or value != value:
        return None
    return int(value) if isinstance(value, (float, np.floating)) and value == value // 1 else value


def coded(
    values: Iterable[Any], where: str, column: str, optional: bool = False, known: int = 0
) -> tuple[NDArray[np.int64], tuple[str, ...], int]:
    """Codes int64 `[N]`, the names by code, and how many are unknown (-1): of integers 0 to K - 1, or of names.

    known: how many values there can be, where it is known.

    Raises:
        ValueError: for values that are neither integers nor names, or too large to be numbers of classes, naming the row;
            for missing ones unless `optional`.
    """
    rows = [_plain(v) for v in values]
    missing = [n for n, v in enumerate(rows) if v is None]
    if missing and not optional:
        raise ValueError(f"{where}, row {missing[0]}: {column} is missing")
    given = [v for v in rows if v is not None]
    if all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in given):
        low, high = -1 if optional else 0, max(1000, 10 * len(rows), known)
        for n, v in enumerate(rows):
            if v is not None and not low <= v < high:
                what = (
                    "must be 0 or more"
                    if v < low
                    else f"must be a number of one of at most {high:,} classes, or a name"
                )
                raise ValueError(f"{where}, row {n}: {column} {what}, got {v}")
        codes = np.array([-1 if v is None else v for v in rows], dtype=np.int64)
        return codes, tuple(str(v) for v in range(int(max(given, default=0)) + 1)), int((codes < 0).sum())
    for n, value in enumerate(rows):
        if not isinstance(value, (str, bool)) and value is not None:
            raise ValueError(f"{where}, row {n}: {column} must be an integer or a name, got {value!r}")
    names = sorted({str(v) for v in given})
    code = {name: k for k, name in enumerate(names)}
    codes = np.array([-1 if v is None else code[str(v)] for v in rows], dtype=np.int64)
    return codes, tuple(names), len(missing)


def split_names(values: Iterable[Any], where: str, column: str) -> list[str]:
    """A column of splits.

    Raises:
        ValueError: naming a row where it is missing.
    """
    rows = [_plain(v) for v in values]
    for n, value in enumerate(rows):
        if value is None:
            raise ValueError(f"{where}, row {n}: split is missing (column {column!r})")
    return [str(v) for v in rows]


_SPLITS = ("train", "val", "valid", "validation", "test")


def from_folder(root: str | Path) -> Listing:
    """Class folders `root/<class>/**`, or below split folders `root/<split>/<class>/**` (train, val, valid, validation,
    test, in capitals or not).

    Raises:
        ValueError: where there are no images, naming the folder; where some lie in split folders and others do not.
    """
    system, base = open_root(str(root))
    images: list[list[str]] = []
    loose: list[str] = []
    others: list[str] = []
    for name in files_below(system, base):
        parts = name.split("/")
        if not name.lower().endswith(SUFFIXES):
            others.append(name)
        elif len(parts) == 1:
            loose.append(name)
        else:
            images.append(parts)
    if not images:
        raise ValueError(f"root: no images in class folders below {root}")
    notes = [
        f"{counted(len(names), 'file')} {what} left out, such as {names[0]}"
        for what, names in (("in no class folder", loose), ("that by name is no image", others))
        if names
    ]
    in_split = [p[0].lower() in _SPLITS for p in images]
    has_splits = all(in_split) or any(inside and len(p) > 2 for p, inside in zip(images, in_split, strict=True))
    strays = [p for p, inside in zip(images, in_split, strict=True) if not (inside and len(p) > 2)]
    if has_splits and strays:
        raise ValueError(
            f"root: {root} has folders of splits, but {counted(len(strays), 'image')} in no class folder of a split, "
            f"such as {'/'.join(strays[0])}; move or remove what does not belong there"
        )
    classes = [p[1] if has_splits else p[0] for p in images]
    labels, names, _ = coded(classes, str(root), "class")
    splits = [p[0].lower() if has_splits else "train" for p in images]
    sources = ["/".join(p) for p in images]
    check_inside(sources, str(root))
    metadata = Metadata(labels, splits, sources, {}, names, {})
    return Listing(str(root), metadata, tuple(notes))


def read_table(path: str | Path, texts: Sequence[str] = (), columns: Iterable[str | None] | None = None) -> Any:
    """A CSV or Parquet file, on this machine or behind an fsspec URL, as a pyarrow table.

    Args:
        texts: columns that are strings, whatever they look like. columns: what is needed of a Parquet file; default: all.

    Raises:
        ValueError: for a file that cannot be read, with the reason.
    """
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError("tables need the package 'pyarrow': pip install 'spurmix[data]'") from error
    where = str(path)
    name = where.split("::")[0].lower()
    if "://" not in where and not Path(where).is_file():
        raise ValueError(f"there is no file {where}")
    try:
        with _fsspec().open(where, "rb") as opened:
            stream = opened if opened.seekable() else pyarrow.BufferReader(opened.read())
            if name.endswith((".parquet", ".pq")):
                known = pyarrow.parquet.ParquetFile(stream)
                found = known.schema_arrow.names
                twice = [c for c in found if found.count(c) > 1 and (columns is None or c in set(columns))]
                if twice:
                    raise ValueError(f"there are two columns {twice[0]!r}")
                return known.read(None if columns is None else [c for c in found if c in set(columns)])
            return pyarrow.csv.read_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(block_size=1 << 24, use_threads=False),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pyarrow.large_string())),
            )
    except FileNotFoundError as error:  # so fsspec also says that a server did not answer
        reason = f" ({error.__cause__})" if error.__cause__ is not None and "://" in where else ""
        raise ValueError(f"there is no file {where}{reason}") from None
    except ImportError as error:  # fsspec says which package it is
        raise ImportError(f"{where} needs another package: {error}") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from None


def column_of(table: Any, name: str, where: str) -> Any:
    """A column of a table, as Arrow holds it.

    Raises:
        ValueError: naming the columns there are.
    """
    if name not in table.column_names:
        raise ValueError(f"{where}: no column {name!r}; there are {', '.join(table.column_names)}")
    if table.column_names.count(name) > 1:
        raise ValueError(f"{where}: there are two columns {name!r}")
    return table[name]


def _column(table: Any, name: str, where: str) -> list[Any]:
    return column_of(table, name, where).to_pylist()


def coded_attributes(
    columns: Mapping[str, Iterable[Any]], where: str
) -> tuple[dict[str, NDArray[np.int64]], dict[str, tuple[str, ...]], list[str]]:
    """Codes and names of attributes by name, and notes on how many are unknown; see `coded`."""
    values: dict[str, NDArray[np.int64]] = {}
    names: dict[str, tuple[str, ...]] = {}
    notes = []
    for name, column in columns.items():
        if name in OWN_COLUMNS:
            raise ValueError(f"attributes: {name!r} is a name that packed datasets use; rename the column")
        values[name], names[name], unknown = coded(column, where, name, optional=True)
        if unknown:
            notes.append(f"{name} is unknown in {unknown:,} of {values[name].size:,} rows")
    return values, names, notes


def from_table(
    table: str | Path,
    root: str | Path | None = None,
    *,
    path: str = "path",
    text: str | None = None,
    label: str = "label",
    attributes: Sequence[str] = (),
    split: str | None = None,
) -> Listing:
    """Rows of a CSV or Parquet file: relative path of an image, or a text, with label, attributes, split.

    Args:
        table: the file, or an fsspec URL. root: the folder paths are relative to; default: the table's.
        path, label, attributes, split: columns. Labels and attributes are integers from 0 or names; an attribute that is
            missing in a row is unknown there (-1), and counted in the notes. split None: all is "train".
        text: column of texts, for `pack_texts`; there are no paths then.

    Raises:
        ValueError: naming row and column.
    """
    where = str(table)
    rows = read_table(table, [text or path], [text or path, label, split, *attributes])
    content = None
    if text is not None:
        content = ArrowTexts(column_of(rows, text, where), f"{where}: {text}")
        sources = [f"{posixpath.basename(where.split('::')[0])}#{n}" for n in range(len(content))]
    else:
        sources = [str(v) if v is not None else "" for v in _column(rows, path, where)]
        check_inside(sources, where)
    if not sources:
        raise ValueError(f"{where} has no rows")
    labels, names, _ = coded(_column(rows, label, where), where, label)
    values, value_names, notes = coded_attributes({name: _column(rows, name, where) for name in attributes}, where)
    splits = split_names(_column(rows, split, where), where, split) if split is not None else ["train"] * len(sources)
    metadata = Metadata(labels, splits, sources, values, names, value_names)
    root = str(root) if root is not None else parent(table)
    return Listing(root, metadata, tuple(notes), content, kind="images" if content is None else "texts")


class ArrowTexts:
    """`Content` of a column of strings, as Arrow holds it: compact in memory.

    Raises:
        ValueError: for a column of anything else.
    """

    def __init__(self, column: Any, where: str) -> None:
        import pyarrow

        if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
            raise ValueError(f"{where} must be a column of texts, got {column.type}")
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, n: int) -> str | None:
        return self.column[n].as_py()

    def digest(self) -> str:
        """See `Content`."""
        slices = (self.column.slice(r.start, len(r)) for r in chunks(len(self), 1 << 14))
        return digest_of_texts(text for part in slices for text in part.to_pylist())


def digest_of_texts(texts: Iterable[str | None]) -> str:
    """A hex digest of texts and where they end."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = b"" if text is None else text.encode("utf-8", "surrogatepass")
        digest.update(b"%d " % (-1 if text is None else len(data)) + data)
    return digest.hexdigest()


_THREE_SPLITS = ("train", "val", "test")


def _numbered(values: list[Any], where: str, column: str) -> list[str]:
    for n, value in enumerate(values):
        if value not in (0, 1, 2):
            raise ValueError(f"{where}, row {n}: {column} must be 0, 1 or 2 (train, val, test), got {value!r}")
    return [_THREE_SPLITS[int(v)] for v in values]


def waterbirds(root: str | Path) -> Listing:
    """Waterbirds as published: `metadata.csv` with img_filename, y, split (0, 1, 2) and place."""
    where = beside(root, "metadata.csv")
    table = read_table(where, ["img_filename"])
    sources = [str(v) for v in _column(table, "img_filename", where)]
    check_inside(sources, where)
    labels, _, _ = coded(_column(table, "y", where), where, "y")
    places = {"place": _column(table, "place", where)}
    values, _, notes = coded_attributes(places, where)
    splits = _numbered(_column(table, "split", where), where, "split")
    if not sources:
        raise ValueError(f"{where} has no rows")
    if labels.max() > 1 or values["place"].max() > 1:
        raise ValueError(f"{where}: y and place must be 0 or 1")
    names: dict[str, tuple[str, ...]] = {"place": ("land", "water")}
    metadata = Metadata(labels, splits, sources, values, ("landbird", "waterbird"), names)
    return Listing(str(root), metadata, tuple(notes))


def celeba(root: str | Path, *, target: str = "Blond_Hair", attributes: Sequence[str] = ("Male",)) -> Listing:
    """CelebA: `list_attr_celeba.csv`, `list_eval_partition.csv` and the folder `img_align_celeba`.

    Args:
        target: column that becomes the label. attributes: columns that become attributes; the first is the spurious one.
    """
    where, parts_where = (beside(root, name) for name in ("list_attr_celeba.csv", "list_eval_partition.csv"))
    table, parts = (read_table(name, ["image_id"]) for name in (where, parts_where))
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
