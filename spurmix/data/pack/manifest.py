"""`Manifest`: the examples to pack. Layouts make manifests, `pack_images` and `pack_texts` read them."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from spurmix.core.names import missing_notes, shortened, shown, similarity_notes, spells_missing
from spurmix.core.ranges import chunks
from spurmix.data.dataset.format import RESERVED_COLUMNS, Metadata
from spurmix.data.dataset.tokenize import encoding_error
from spurmix.data.pack.decode import file_fingerprint, read_file_with_fingerprint
from spurmix.data.pack.remote import file_reader, is_local, open_root

if TYPE_CHECKING:
    from pyarrow import ChunkedArray


class SampleSource(Protocol):
    """Examples that are not files.

    Item n is the content of an image file (bytes), pixels (uint8 `[H, W]` or `[H, W, 3]`), a text, or None if it is
    missing. Several threads read items at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, n: int, /) -> object: ...

    def digest(self) -> str:
        """Return a hex digest of the content. Packing resumes only if it has not changed."""
        ...


@dataclass(frozen=True)
class Manifest:
    """The examples to pack, with their metadata: the files below a root, or the items of `samples`.

    Args:
        root: Folder or fsspec URL of the files. `metadata.sources` are relative to it.
        metadata: Label, split, source and attributes of each example.
        notes: Remarks for the user.
        samples: The examples, if they are not files.
        rows: Item of `samples` for each example, int64 `[N]`. Default: all, in order.
        kind: "images" or "texts".
        cells: Attributes with overlapping cells to evaluate, see `PackedDataset.cells`.
    """

    root: str
    metadata: Metadata
    notes: tuple[str, ...] = field(default=())
    samples: SampleSource | None = None
    rows: NDArray[np.int64] | None = None
    kind: str = "images"
    cells: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = self.metadata
        notes = similarity_notes(known.class_names, "classes")
        notes += missing_notes(known.class_names, "classes", "remove these examples, because labels must be known")
        for name, values in known.attribute_names.items():
            notes += similarity_notes(values, f"values of {name!a}")
            notes += missing_notes(values, f"values of {name!a}", "leave them empty")
        notes += similarity_notes(known.attribute_names, "attributes") + similarity_notes(known.splits, "splits")
        object.__setattr__(self, "notes", tuple(dict.fromkeys((*self.notes, *notes))))

    def __len__(self) -> int:
        return len(self.metadata)

    def select(self, examples: NDArray[np.int64]) -> Manifest:
        """Return the given examples, in that order."""
        rows = None if self.samples is None else examples if self.rows is None else self.rows[examples]
        return replace(self, metadata=self.metadata.select(examples), rows=rows)

    def ordered(self, limit: int | None = None) -> Manifest:
        """Return the examples sorted by split, splits in order of appearance, at most `limit` of each."""
        order: dict[str, list[int]] = {}
        for n, name in enumerate(self.metadata.splits):
            order.setdefault(name, []).append(n)
        return self.select(np.array([n for members in order.values() for n in members[:limit]], dtype=np.int64))

    def reader(self) -> Callable[[int], object]:
        """Return a function that reads example n: an item of `samples`, or the bytes of a file."""
        if self.samples is not None:
            samples, rows = self.samples, self.rows
            return lambda n: samples[n if rows is None else int(rows[n])]
        return file_reader(*open_root(self.root), self.metadata.sources)

    def fingerprint_reader(self) -> Callable[[int], tuple[bytes, int]] | None:
        """Return a function that reads file n and its fingerprint, or None if the examples are not local files."""
        path_of = self._local_path()
        return None if path_of is None else lambda n: read_file_with_fingerprint(path_of(n))

    def fingerprints(self) -> Callable[[int], int] | None:
        """Return a function from n to the fingerprint of file n, or None if the examples are not local files.

        A fingerprint changes when the file changes. It is -1 if there is no file.
        """
        path_of = self._local_path()
        if path_of is None:
            return None

        def fingerprint(n: int) -> int:
            try:
                return file_fingerprint(os.stat(path_of(n)))
            except OSError:
                return -1

        return fingerprint

    def _local_path(self) -> Callable[[int], str] | None:
        """Return a function from n to the path of file n, or None if the examples are not local files."""
        if self.samples is not None:
            return None
        system, base = open_root(self.root)
        sources = self.metadata.sources
        return (lambda n: f"{base}/{sources[n]}") if is_local(system) else None

    def digest(self) -> str:
        """Return a hex digest of everything that is packed, except the content of files."""
        known = self.metadata
        names = [self.root, known.sources, known.splits, known.class_names, known.attribute_names]
        digest = hashlib.blake2b(repr(names).encode("utf-8", "surrogatepass"), digest_size=16)
        for values in (known.labels, *known.attributes.values()):
            digest.update(values.tobytes())
        if self.samples is not None:
            digest.update(self.samples.digest().encode())
        return digest.hexdigest()


def check_paths(paths: Sequence[str], file_name: str) -> None:
    """Check that paths are relative, below the root, valid UTF-8 and different.

    Raises `ValueError` if a path is not. The message names `file_name` and the row.
    """
    seen: dict[str, int] = {}
    for n, given in enumerate(paths):
        path = posixpath.normpath(given)
        if not given:
            raise ValueError(f"{file_name}, row {n}: the path is missing")
        if path.startswith(("/", "../")) or path in (".", "..") or "://" in given:
            raise ValueError(
                f"{file_name}, row {n}: the path must be relative to the root and below it, got {shown(given)}"
            )
        if path in seen:
            raise ValueError(f"{file_name}, row {n}: {shown(given)} is also in row {seen[path]}; remove one of the two")
        if "\0" in given:
            raise ValueError(f"{file_name}, row {n}: the path {shown(given)} has a NUL character")
        if encoding_error(given) is not None:
            raise ValueError(f"{file_name}, row {n}: the file name {shown(given)} is not valid UTF-8; rename the file")
        seen[path] = n


def _normalize(value: object) -> object:
    """Return None for a missing value, and an integer for a float that a column with gaps was converted to."""
    if value is None or type(value).__name__ == "NAType" or value == "" or value != value:
        return None
    return int(value) if isinstance(value, (float, np.floating)) and value == value // 1 else value


def encode_column(
    values: Iterable[object],
    file_name: str,
    column: str,
    optional: bool = False,
    max_classes: int = 0,
    skipped: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], tuple[str, ...], int]:
    """Encode a column of integers from 0, or of names, as codes.

    Args:
        values: Values of the column.
        file_name: File name for messages.
        column: Column name for messages.
        optional: Whether values may be missing. Their code is -1.
        max_classes: Number of classes, if it is known.
        skipped: Rows that are not read, bool `[N]`. Their code is -1.

    Returns:
        Codes, int64 `[N]`, the name of each code, and the number of unknown values.

    Raises:
        ValueError: If a value is missing, is neither an integer nor a name, or is too large for a class number. The
            message names the row. If the values are exactly -1 and 1.
    """
    rows = [_normalize(value) for value in values]
    if skipped is not None:
        rows = [None if skip else value for value, skip in zip(rows, skipped, strict=True)]
    missing = [n for n, value in enumerate(rows) if value is None and (skipped is None or not skipped[n])]
    if missing and not optional:
        raise ValueError(f"{file_name}, row {missing[0]}: {column} is missing")
    given = [value for value in rows if value is not None]
    integers = [int(v) for v in given if isinstance(v, (int, np.integer)) and not isinstance(v, bool)]
    if len(integers) == len(given):
        low, end = -1 if optional else 0, max(1000, 10 * len(rows), max_classes)
        if set(integers) == {-1, 1}:
            raise ValueError(
                f"{file_name}: {column} is coded -1 and 1, and -1 means unknown; code the two values as 0 and 1, or as names"
            )
        for n, value in enumerate(rows):
            if isinstance(value, (int, np.integer)) and not low <= value < end:
                accepted = "0 or more" if value < low else f"a class number below {end:,}, or a name"
                raise ValueError(f"{file_name}, row {n}: {column} must be {accepted}, got {value}")
        codes = np.array([-1 if v is None else v for v in rows], dtype=np.int64)
        return codes, tuple(str(v) for v in range(max(integers, default=0) + 1)), len(missing) + integers.count(-1)
    for n, value in enumerate(rows):
        if not isinstance(value, (str, bool)) and value is not None:
            raise ValueError(f"{file_name}, row {n}: {column} must be an integer or a name, got {shown(value)}")
    names = sorted({str(v) for v in given})
    code = {name: k for k, name in enumerate(names)}
    codes = np.array([-1 if v is None else code[str(v)] for v in rows], dtype=np.int64)
    return codes, tuple(names), len(missing)


def encode_attributes(
    columns: Mapping[str, Iterable[object]],
    file_name: str,
    skipped: NDArray[np.bool_] | None = None,
    known_names: Callable[[str, NDArray[np.int64]], tuple[str, ...]] | None = None,
) -> tuple[dict[str, NDArray[np.int64]], dict[str, tuple[str, ...]], list[str]]:
    """Encode attribute columns with `encode_column`. Names that spell a missing value, such as "NA", are unknown (-1).

    Args:
        columns: Values of each attribute, by name.
        file_name: File name for messages.
        skipped: See `encode_column`.
        known_names: Function of a column and its codes that returns the names of the codes, or () if they have none.

    Returns:
        Codes and names of the values by attribute, and a note for each attribute with unknown values.

    Raises:
        ValueError: If a column has a reserved name or an invalid value.
    """
    codes: dict[str, NDArray[np.int64]] = {}
    names: dict[str, tuple[str, ...]] = {}
    notes = []
    for name, column in columns.items():
        if name in RESERVED_COLUMNS:
            raise ValueError(f"attributes: {shown(name)} is reserved in packed datasets; rename the column")
        found, values, unknown = encode_column(column, file_name, name, optional=True, skipped=skipped)
        values = (known_names(name, found) if known_names is not None else ()) or values
        codes[name], names[name], spelled = _without_missing_names(found, values)
        unknown += int(np.count_nonzero((found >= 0) & (codes[name] < 0)))
        if unknown:
            read = found.size - (0 if skipped is None else int(skipped.sum()))
            hint = f"; {spelled} is read as unknown, rename it if it is a name" if spelled else ""
            notes.append(f"{name} is unknown in {unknown:,} of {read:,} rows{hint}")
    return codes, names, notes


def _without_missing_names(
    codes: NDArray[np.int64], names: tuple[str, ...]
) -> tuple[NDArray[np.int64], tuple[str, ...], str]:
    """Replace the codes of names that spell a missing value by -1. Returns codes, names, and the replaced names."""
    missing = {k for k, name in enumerate(names) if spells_missing(name)}
    if "-1" in names and set(names) != {"-1", "1"}:  # the code of unknown values, as a string
        missing.add(names.index("-1"))
    if not missing:
        return codes, names, ""
    kept = [k for k in range(len(names)) if k not in missing]
    renumbered = np.full(len(names) + 1, -1)  # the last one is the code -1 of unknown values
    renumbered[kept] = np.arange(len(kept))
    present = [shown(names[k], escape=True) for k in sorted(missing & set(codes.tolist()))]
    return renumbered[codes], tuple(names[k] for k in kept) or ("0",), ", ".join(present)


def unlabelled_rows(labels: Sequence[object], splits: Sequence[str]) -> tuple[NDArray[np.bool_], list[str]]:
    """Find the splits without any label, such as a test split whose labels are not published.

    Args:
        labels: Values of the label column. None, NaN, -1, "-1" and `MISSING_SPELLINGS` mean that there is no label.
        splits: Name of the split of each row.

    Returns:
        Which rows are in such splits, bool `[N]`, and a note for each of them. No row if no split has a label.
    """
    labelled = {name for name, label in zip(splits, labels, strict=True) if not _is_unlabelled(label)}
    counts = Counter(name for name in splits if name not in labelled)
    if not labelled or not counts:
        return np.zeros(len(splits), dtype=bool), []
    notes = [
        f"split {shortened(name)} is left out, because its {count:,} rows have no labels"
        for name, count in counts.items()
    ]
    return np.array([name in counts for name in splits]), notes


def _is_unlabelled(label: object) -> bool:
    return _normalize(label) in (None, -1, "-1") or (isinstance(label, str) and spells_missing(label))


def with_labels(manifest: Manifest) -> Manifest:
    """Return the examples of a manifest that have a label. Those of splits without labels have the code -1."""
    labelled = manifest.metadata.labels >= 0
    return manifest if labelled.all() else manifest.select(np.flatnonzero(labelled))


def split_names(values: Iterable[object], file_name: str, column: str) -> list[str]:
    """Return a column of splits as strings.

    Raises `ValueError` if a split is missing. The message names the row.
    """
    rows = [_normalize(value) for value in values]
    for n, value in enumerate(rows):
        if value is None:
            raise ValueError(f"{file_name}, row {n}: split is missing (column {shown(column)})")
    return [str(value) for value in rows]


_THREE_SPLITS = ("train", "val", "test")


def numbered_splits(values: Iterable[object], file_name: str, column: str) -> list[str]:
    """Return the names of splits that are numbered 0, 1 and 2.

    Raises `ValueError` if there is another number. The message names the row.
    """
    names = []
    for n, value in enumerate(values):
        if not isinstance(value, (int, float)) or value not in (0, 1, 2):
            raise ValueError(f"{file_name}, row {n}: {column} must be 0, 1 or 2 (train, val, test), got {shown(value)}")
        names.append(_THREE_SPLITS[int(value)])
    return names


class TextColumn:
    """`SampleSource` of an Arrow column of strings, which takes less memory than a list.

    Args:
        column: Column of type string or large_string.
        column_label: Name of the column for messages.

    Raises:
        ValueError: If the column has another type.
    """

    def __init__(self, column: ChunkedArray, column_label: str) -> None:
        import pyarrow

        if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
            raise ValueError(f"{column_label} must be a column of texts, got {column.type}")
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, n: int, /) -> object:
        return self.column[n].as_py()

    def _texts(self) -> Iterator[str | None]:
        for rows in chunks(len(self), 1 << 14):
            yield from self.column.slice(rows.start, len(rows)).to_pylist()

    def digest(self) -> str:
        """See `SampleSource.digest`."""
        return digest_texts(self._texts())


def digest_texts(texts: Iterable[str | None]) -> str:
    """Return a hex digest of texts and their lengths."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = b"" if text is None else text.encode("utf-8", "surrogatepass")
        digest.update(b"%d " % (-1 if text is None else len(data)) + data)
    return digest.hexdigest()
