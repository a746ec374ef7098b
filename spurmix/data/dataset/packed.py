"""PackedDataset: a dataset on disk as standard files, memory-mapped, described by `dataset.json` and checked by it.

A folder holds `images.npy` (uint8 `[N, H, W, C]`), or `tokens.npy` and `token_offsets.npy` (int32, int64 `[N + 1]`) and
the tokenizer's files, or `features.npy` (floats `[N, D]`); `metadata.parquet` with label, split, source and a column for
each attribute; and `dataset.json`, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.data.dataset import checksums
from spurmix.data.dataset.checksums import Damage, damages

if TYPE_CHECKING:
    from spurmix.data.sources.arrays import Source

FORMAT = 1
DESCRIPTION, METADATA, REPORT = "dataset.json", "metadata.parquet", "broken.jsonl"
PACKING = ".packing"
"""How the name of a folder ends whose dataset is being made."""
ARRAYS = {"images": ("images.npy",), "tokens": ("tokens.npy", "token_offsets.npy"), "features": ("features.npy",)}
"""Array files of each kind of dataset."""
OWN_COLUMNS = ("label", "split", "source")


class DatasetError(ValueError):
    """A folder that is no packed dataset, is damaged, or was written by a newer version."""


def parquet() -> Any:
    """pyarrow.parquet, or an error that names the extra."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError("packed datasets need the package 'pyarrow': pip install 'spurmix[data]'") from error
    return pyarrow.parquet


@dataclass(frozen=True)
class Metadata:
    """What is known of each example besides its pixels or tokens.

    Attributes:
        labels: int64 `[N]`. splits: name of each example's split. sources: where it came from.
        attributes: int64 `[N]` by name, -1 where unknown.
        class_names: by label. attribute_names: names of an attribute's values, by attribute.
    """

    labels: NDArray[np.int64]
    splits: list[str]
    sources: list[str]
    attributes: dict[str, NDArray[np.int64]]
    class_names: tuple[str, ...]
    attribute_names: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return int(self.labels.size)

    def take(self, rows: NDArray[np.int64]) -> Metadata:
        """The examples `rows`, in that order."""
        return Metadata(
            self.labels[rows],
            [self.splits[n] for n in rows],
            [self.sources[n] for n in rows],
            {name: values[rows] for name, values in self.attributes.items()},
            self.class_names,
            self.attribute_names,
        )


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write `metadata.parquet` into a folder that is being made."""
    written = parquet()
    import pyarrow

    columns: dict[str, Any] = {
        "label": metadata.labels,
        "split": pyarrow.array(metadata.splits, pyarrow.string()).dictionary_encode(),
        "source": pyarrow.array(metadata.sources, pyarrow.string()),
        **metadata.attributes,
    }
    with (folder / METADATA).open("wb") as file:  # a path with a colon would be taken for a URL
        written.write_table(pyarrow.table(columns), file)


def describe(
    folder: Path,
    kind: str,
    metadata: Metadata,
    made: dict[str, Any],
    others: Iterable[str] = (),
    known: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Write `dataset.json` for the files that lie in `folder`: from then on it opens as a dataset; others: further files
    that belong to it, such as the tokenizer's. known: checksums of some chunks, by file and number of the chunk."""
    sums = known or {}
    files = {
        name: {
            "size": (folder / name).stat().st_size,
            "checksums": checksums.of_file(folder / name, sums.get(name, {})),
        }
        for name in (*ARRAYS[kind], METADATA, *others, *([REPORT] if (folder / REPORT).is_file() else []))
    }
    description = {
        "format": FORMAT,
        "kind": kind,
        "count": len(metadata),
        "classes": list(metadata.class_names),
        "attributes": {name: list(values) for name, values in metadata.attribute_names.items()},
        "chunk": checksums.CHUNK,
        "files": files,
        "made": made,
    }
    temporary = folder / f".{DESCRIPTION}"
    temporary.write_text(json.dumps(sealed(description), indent=1))
    temporary.replace(folder / DESCRIPTION)


def sealed(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description with the checksum of itself."""
    rest = {key: value for key, value in description.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "checksum": f"{zlib.crc32(text.encode()):08x}"}


class PackedDataset:
    """A packed dataset, opened: its arrays memory-mapped, its metadata read.

    Args:
        path: the folder. Version, sizes, shapes and metadata are checked; `verify` checks the contents too.

    Attributes:
        kind: "images", "tokens" or "features". metadata: of the examples of this split.
        made: how the dataset was made. path: the folder.

    Raises:
        DatasetError: naming the file and what is wrong. ImportError: without pyarrow.
    """

    def __init__(self, path: str | Path) -> None:
        self._open(checks.path(path, "path"))

    @classmethod
    def unfinished(cls, folder: Path) -> PackedDataset:
        """What lies in a folder whose packing may not have ended: for who packs."""
        opened = object.__new__(cls)
        opened._open(folder, unfinished=True)
        return opened

    def _open(self, path: Path, unfinished: bool = False) -> None:
        self.path = path
        self._description = _read_description(self.path, unfinished)
        self.kind: str = self._description["kind"]
        self.made: dict[str, Any] = self._description["made"]
        for name, record in self._description["files"].items():
            _check_size(self.path / name, record["size"])
        self.metadata = _read_metadata(self.path, self._description)
        _check_made(self.path, self.kind, self.made, self.metadata)
        _check_arrays(self.path, self.kind, len(self.metadata))
        self.begin = 0

    def __len__(self) -> int:
        return len(self.metadata)

    @property
    def splits(self) -> dict[str, int]:
        """Number of examples of each split, in the order they lie in."""
        counts: dict[str, int] = {}
        for name in self.metadata.splits:
            counts[name] = counts.get(name, 0) + 1
        return counts

    def split(self, name: str) -> PackedDataset:
        """The examples of one split, which lie together.

        Raises:
            ValueError: for a split the dataset does not have.
        """
        splits = self.splits
        checks.choice(name, "split", splits)
        begin = self.metadata.splits.index(name)
        return self.part(begin, begin + splits[name])

    def part(self, begin: int, end: int) -> PackedDataset:
        """The examples [begin, end)."""
        begin, end = checks.integer(begin, "begin"), checks.integer(end, "end")
        if not 0 <= begin <= end <= len(self):
            raise IndexError(f"part must lie in [0, {len(self)}], got [{begin}, {end})")
        part = object.__new__(PackedDataset)
        part.__dict__.update(self.__dict__)
        part.metadata = self.metadata.take(np.arange(begin, end))
        part.begin = self.begin + begin
        return part

    def digest(self) -> str:
        """A hex digest of the whole dataset's checksums: equal for equal files."""
        files = {name: record["checksums"] for name, record in sorted(self._description["files"].items())}
        return hashlib.blake2b(json.dumps([self.kind, files]).encode(), digest_size=16).hexdigest()

    def mapped(self, number: int) -> NDArray[Any]:
        """A file of the dataset, all splits of it."""
        return np.load(self.path / ARRAYS[self.kind][number], mmap_mode="r", allow_pickle=False)

    @property
    def array(self) -> NDArray[Any]:
        """The images `[N, H, W, C]` or features `[N, D]` of this split, memory-mapped.

        Raises:
            ValueError: for tokens, which have no array of examples.
        """
        if self.kind == "tokens":
            raise ValueError("a dataset of texts has no array of examples; see source()")
        path = self.path / ARRAYS[self.kind][0]
        shape, dtype, data = array_header(path)
        skipped = self.begin * int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        # The split's rows alone: mapping others too would count against a limit on the address space.
        return np.memmap(path, dtype, "r", data + skipped, (len(self), *shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes of the images, features or tokens of this split."""
        if self.kind == "tokens":
            begin, end = (int(self.mapped(1)[n]) for n in (self.begin, self.begin + len(self)))
            return (end - begin) * self.mapped(0).itemsize
        shape, dtype, _ = array_header(self.path / ARRAYS[self.kind][0])
        return len(self) * int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize

    def source(
        self,
        window: int | None = None,
        *,
        tier: str | None = None,
        device: Any = None,
        memory: int | None = None,
        room: int | None = None,
    ) -> Source:
        """The examples as the loader reads them: `ImageSource`, `TokenSource` or `FeatureSource`.

        A file that is mapped must stay as it is: one that becomes shorter ends the process (SIGBUS), as with any map.

        Args:
            window: images only: batches whose rows are read ahead, in the file's order, each once, as `WindowedImages` does:
                for datasets that memory cannot hold. 0 maps the file into memory, which is quicker where it fits.
            tier: where the bytes are read from: "device" (on the GPU), "pinned" (memory of the host that a GPU reads),
                "cache" (mapped), "disk" (by windows), or "auto": the first of them that holds the examples of this split.
                What was taken, and why, stands in the source's `tier` and repr. Default: "disk" with a window, else "cache".
            device: that batches are wanted on, the loader's; default: the CPU. memory: bytes of the host's memory that may
                be used; default: what is available. room: bytes of the GPU's that "device" leaves to the model; default:
                half of what is free for "auto", none where "device" is asked for.

        Raises:
            ValueError: for a tier that the dataset or the device does not have. MemoryError: for one that is too small.
        """
        from spurmix.data.sources.open import open_source

        return open_source(self, window, tier, device, memory, room)

    def tokenizer(self) -> Any:
        """The tokenizer that made the tokens, of transformers or of tokenizers: its files lie in the folder.

        Raises:
            ValueError: for a dataset that carries none. DatasetError: where it is not the one that made the tokens.
        """
        from spurmix.data.dataset import tokenize as tokenise
        from spurmix.data.dataset import tokenizer_files as tokenizer

        if tokenizer.FILE not in self.others:
            raise ValueError(f"{self.path} carries no tokenizer: it holds {self.kind}")
        expected = self.made["tokens"]["tokenizer"]
        for alone in (False, True):  # transformers adds rules of its own to what only tokenizers had made
            found = tokenizer.load_tokenizer(self.path, alone=alone)
            if tokenise.tokenizer_fingerprint(found) == expected:
                return found
        raise DatasetError(f"{self.path / tokenizer.FILE} is damaged: it is not the tokenizer that made the tokens")

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the files besides arrays and metadata, such as the tokenizer's."""
        return tuple(name for name in self._description["files"] if name not in (*ARRAYS[self.kind], METADATA, REPORT))

    def cells(self) -> tuple[NDArray[np.bool_], tuple[str, ...]] | None:
        """Overlapping cells to evaluate, the `membership` and `cell_names` of `evaluate`; None where there are none.

        Cell K k + y of bool `[N, cells]`, K the number of classes, holds the examples of label y whose attribute k is 1:
        of CivilComments, those that mention an identity.
        """
        names: list[str] = self.made.get("cells", [])
        if not names:
            return None
        classes = self.metadata.class_names
        by_label = self.metadata.labels[:, None] == np.arange(len(classes))
        holds = np.stack([self.metadata.attributes[name] == 1 for name in names], axis=1)
        membership = (holds[:, :, None] & by_label[:, None, :]).reshape(len(self), -1)
        return membership, tuple(f"{name}, {label}" for name in names for label in classes)

    def groups(self, attribute: str | None = None) -> GroupIndex:
        """The groups (label, attribute) of the examples.

        Args:
            attribute: its name; default: the first one; a dataset without any has a group for each class.
        """
        known = self.metadata.attributes
        names = list(self.metadata.attribute_names)
        if attribute is None and not names:
            return GroupIndex(self.metadata.labels, class_names=self.metadata.class_names)
        chosen = attribute if attribute is not None else names[0]
        if not isinstance(chosen, str) or chosen not in known:
            raise ValueError(f"attribute must be one of {', '.join(names) or 'none'}, got {chosen!r}")
        return GroupIndex(
            self.metadata.labels,
            known[chosen],
            class_names=self.metadata.class_names,
            attribute_names=self.metadata.attribute_names[chosen],
        )

    def verify(self, progress: bool | None = None) -> list[Damage]:
        """Read every byte and compare it with its checksum; what is damaged, an empty list where nothing is.

        Args:
            progress: show a progress bar; default: on a terminal.
        """
        return damages(self.path, self._description["files"], self._description["chunk"], progress)

    def check(self, progress: bool | None = None) -> None:
        """As `verify`, of this split's rows and all small files.

        Raises:
            DatasetError: naming the file and the bytes.
        """
        within = {}
        if self.kind != "tokens":
            name = ARRAYS[self.kind][0]
            shape, dtype, data = array_header(self.path / name)
            row = math.prod(shape[1:]) * dtype.itemsize
            within[name] = data + self.begin * row, data + (self.begin + len(self)) * row
        found = damages(self.path, self._description["files"], self._description["chunk"], progress, within)
        if found:
            more = f", and {len(found) - 1} more places" if len(found) > 1 else ""
            raise DatasetError(f"{found[0]}{more}; pack it again")

    def __repr__(self) -> str:
        return f"PackedDataset({str(self.path)!r}, {len(self):,} examples, {self.kind})"


def _read_description(folder: Path, unfinished: bool) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder")
    if folder.name.endswith(PACKING) and not unfinished:
        raise DatasetError(f"{folder} is being packed, or packing was broken off; packing again goes on with it")
    if not path.is_file():
        raise DatasetError(f"{folder} is no packed dataset: it has no {DESCRIPTION}")
    try:
        description = json.loads(path.read_bytes())
        version = description["format"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format must be a number from 1, got {version!r}")
        if version > FORMAT:
            raise DatasetError(f"{path}: format {version}, this version reads up to {FORMAT}; update spurmix")
        if description["checksum"] != sealed(description)["checksum"]:
            raise ValueError("it does not fit its own checksum")
        _check_description(description)
    except DatasetError:
        raise
    except Exception as error:  # whatever damage leads to
        raise DatasetError(f"{path} is damaged: {error}") from None
    assert isinstance(description, dict)
    return description


_TYPES = {"kind": str, "count": int, "classes": list, "attributes": dict, "chunk": int, "files": dict, "made": dict}


def _check_description(found: dict[str, Any]) -> None:
    """Check names and types of all fields."""
    for name, kind in _TYPES.items():
        if type(found[name]) is not kind:
            raise TypeError(f"{name} must be {kind.__name__}, got {found[name]!r}")
    if found["kind"] not in ARRAYS:
        raise KeyError("kind")
    if found["count"] < 0 or found["chunk"] < 1:
        raise ValueError(f"count {found['count']}, chunk {found['chunk']}")
    for name, values in {"classes": found["classes"], **found["attributes"]}.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise TypeError(f"{name} must be names, got {values!r}")
    absent = {*ARRAYS[found["kind"]], METADATA} - found["files"].keys()
    if absent:
        raise KeyError(", ".join(sorted(absent)))
    for name, record in found["files"].items():
        if Path(name).name != name:
            raise ValueError(f"{name!r} lies outside of the folder")
        size, checks = record["size"], record["checksums"]
        if type(size) is not int or not isinstance(checks, list) or not all(isinstance(c, str) for c in checks):
            raise TypeError(f"{name!r} needs a size and checksums")
        if len(checks) != -(-size // found["chunk"]):
            raise ValueError("checksums do not cover a file")


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise DatasetError(f"{path} has {'gone' if found is None else f'{found:,} bytes'}, {size:,} bytes were written")


def _check_made(folder: Path, kind: str, made: dict[str, Any], metadata: Metadata) -> None:
    if kind == "tokens" and not isinstance(made.get("tokens"), dict):
        raise DatasetError(f"{folder / DESCRIPTION} is damaged: 'made'")
    cells = made.get("cells", [])
    if not isinstance(cells, list) or not all(isinstance(c, str) and c in metadata.attributes for c in cells):
        raise DatasetError(f"{folder / DESCRIPTION} is damaged: cells must be names of attributes, got {cells!r}")


def array_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and dtype of an `.npy` file in C order, and the byte its data begin at.

    Raises:
        DatasetError: for anything else.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
            shape, fortran, dtype = read(file)
            begin = file.tell()
        fits = path.stat().st_size == begin + dtype.itemsize * math.prod(shape) and min(shape, default=1) >= 0
        if fortran or dtype.hasobject or not fits:
            raise ValueError(f"its size does not fit {dtype} {list(shape)}")
    except Exception as error:  # NumPy parses the header as Python, which fails in many ways
        raise DatasetError(f"{path} is damaged: {error}") from None
    return shape, dtype, begin


def _check_arrays(folder: Path, kind: str, count: int) -> None:
    shapes = [array_header(folder / name)[:2] for name in ARRAYS[kind]]
    shape, dtype = shapes[0]
    rank, letter = {"images": (4, "u1"), "tokens": (1, "i4"), "features": (2, "f")}[kind]
    if len(shape) != rank or not dtype.str[1:].startswith(letter):
        raise DatasetError(f"{folder / ARRAYS[kind][0]}: not {kind}, but {dtype} {list(shape)}")
    rows = shape[0] if kind != "tokens" else shapes[1][0][0] - 1
    if rows != count:
        raise DatasetError(f"{folder}: {METADATA} has {count:,} rows for {rows:,} {kind}")


def _read_metadata(folder: Path, description: dict[str, Any]) -> Metadata:
    path = folder / METADATA
    names: dict[str, tuple[str, ...]] = {k: tuple(v) for k, v in description["attributes"].items()}
    classes = tuple(description["classes"])
    try:
        with path.open("rb") as file:
            table = parquet().read_table(file)
        for name in (*OWN_COLUMNS, *names):
            if table.column_names.count(name) != 1:
                raise DatasetError(f"{path} has {'no' if name not in table.column_names else 'twice a'} column {name}")
        if table.num_rows != description["count"]:
            raise DatasetError(f"{path} has {table.num_rows:,} rows, {description['count']:,} were written")

        def integers(name: str, low: int, most: int) -> NDArray[np.int64]:
            values = np.asarray(table[name].to_numpy(), dtype=np.int64)
            if values.size and (values.min() < low or values.max() >= most):
                raise DatasetError(f"{path}: column {name} must lie in [{low}, {most})")
            return values

        def texts(name: str) -> list[str]:
            values = table[name].to_pylist()
            if not all(isinstance(value, str) for value in values):
                raise DatasetError(f"{path}: column {name} must hold texts")
            return values

        return Metadata(
            integers("label", 0, len(classes)),
            texts("split"),
            texts("source"),
            {name: integers(name, -1, len(values)) for name, values in names.items()},
            classes,
            names,
        )
    except (ImportError, DatasetError):
        raise
    except Exception as error:  # pyarrow's errors share no base class
        raise DatasetError(f"{path} is damaged: {error}") from None
