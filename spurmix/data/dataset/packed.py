"""`PackedDataset`: reads a packed dataset from disk. `format.py` describes the files."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.deprecation import renamed_argument, renamed_attribute
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.names import listed
from spurmix.data.dataset.checksums import Damage, find_damage
from spurmix.data.dataset.format import (
    ARRAY_FILES,
    METADATA_FILE,
    UNREADABLE_FILE,
    DatasetError,
    Metadata,
    Provenance,
    check_arrays,
    check_provenance,
    check_size,
    read_array_header,
    read_description,
    read_metadata,
)

if TYPE_CHECKING:
    import torch

    from spurmix.data.dataset.tokenize import TokenizerLike
    from spurmix.data.sources.open import Source


class PackedDataset:
    """A packed dataset: memory-mapped arrays and the metadata of each example.

    Opening checks version, file sizes, array shapes and metadata. `verify` also checks the contents.

    Args:
        path: Folder of the dataset.

    Attributes:
        path: Folder of the dataset.
        kind: "images", "tokens" or "features".
        metadata: Label, split, source and attributes of each example.
        provenance: How the dataset was made: version, root, settings and notes.
        begin: Row of the array files at which this dataset or split begins.

    Raises:
        DatasetError: If the folder is not a packed dataset, is damaged, or has a newer format.
        ImportError: If pyarrow is missing.

    Example:
        >>> data = PackedDataset("packed/waterbirds")  # doctest: +SKIP
        >>> train = data.split("train")  # doctest: +SKIP
        >>> loader = MixLoader(train.source(), train.groups(), policies.group_balanced(), 64)  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self._open(checks.path(path, "path"))

    @classmethod
    def open_incomplete(cls, folder: Path) -> PackedDataset:
        """Open a folder in which a dataset is being packed, for the packing code only."""
        opened = object.__new__(cls)
        opened._open(folder, incomplete=True)
        return opened

    def _open(self, path: Path, incomplete: bool = False) -> None:
        self.path = path
        self._description = read_description(path, incomplete)
        self.kind = self._description["kind"]
        self.provenance: Provenance = self._description["made"]
        for name, record in self._description["files"].items():
            check_size(path / name, record["size"])
        self.metadata: Metadata = read_metadata(path, self._description)
        check_provenance(path, self.kind, self.provenance, self.metadata)
        check_arrays(path, self.kind, len(self.metadata))
        self.begin = 0

    def __len__(self) -> int:
        return len(self.metadata)

    made = renamed_attribute("provenance")
    mapped = renamed_attribute("memory_map")
    others = renamed_attribute("extra_files")
    unfinished = renamed_attribute("open_incomplete")

    @property
    def splits(self) -> dict[str, int]:
        """Number of examples of each split, in the order of the files."""
        counts: dict[str, int] = {}
        for name in self.metadata.splits:
            counts[name] = counts.get(name, 0) + 1
        return counts

    def split(self, name: str) -> PackedDataset:
        """Return the examples of one split.

        Args:
            name: Name of the split.

        Returns:
            A view of the dataset. No data is copied.

        Raises:
            ValueError: If the dataset has no such split.
        """
        splits = self.splits
        checks.choice(name, "split", splits)
        begin = self.metadata.splits.index(name)
        return self.part(begin, begin + splits[name])

    def part(self, begin: int, end: int) -> PackedDataset:
        """Return the examples [begin, end).

        Args:
            begin: First example, in [0, end].
            end: Example after the last one, at most the number of examples.

        Returns:
            A view of the dataset. No data is copied.

        Raises:
            IndexError: If the range is outside the dataset.
        """
        begin, end = checks.integer(begin, "begin"), checks.integer(end, "end")
        if not 0 <= begin <= end <= len(self):
            raise IndexError(f"part must be within [0, {len(self)}], got [{begin}, {end})")
        part = object.__new__(PackedDataset)
        part.__dict__.update(self.__dict__)
        part.metadata = self.metadata.select(np.arange(begin, end))
        part.begin = self.begin + begin
        return part

    def digest(self) -> str:
        """Return a hex digest of the checksums of all files. It is equal for equal files."""
        files = {name: record["checksums"] for name, record in sorted(self._description["files"].items())}
        return hashlib.blake2b(json.dumps([self.kind, files]).encode(), digest_size=16).hexdigest()

    def memory_map(self, number: int) -> NDArray[Any]:
        """Return array file `number` of the dataset, memory-mapped, with the rows of all splits."""
        return np.load(self.path / ARRAY_FILES[self.kind][number], mmap_mode="r", allow_pickle=False)

    @property
    def array(self) -> NDArray[Any]:
        """The images, uint8 `[N, H, W, C]`, or features, float `[N, D]`, of this split, memory-mapped.

        Raises:
            ValueError: If the dataset contains tokens. Use `source()`.
        """
        if self.kind == "tokens":
            raise ValueError("array: a dataset of texts has no array of examples; use source()")
        path = self.path / ARRAY_FILES[self.kind][0]
        shape, dtype, offset = read_array_header(path)
        skipped = self.begin * math.prod(shape[1:]) * dtype.itemsize
        # Map the rows of this split only: other rows would count against a limit on the address space.
        return np.memmap(path, dtype, "r", offset + skipped, (len(self), *shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes of the images, features or tokens of this split."""
        if self.kind == "tokens":
            begin, end = (int(self.memory_map(1)[n]) for n in (self.begin, self.begin + len(self)))
            return (end - begin) * self.memory_map(0).itemsize
        shape, dtype, _ = read_array_header(self.path / ARRAY_FILES[self.kind][0])
        return len(self) * math.prod(shape[1:]) * dtype.itemsize

    @renamed_argument(room="reserve")
    def source(
        self,
        window: int | None = None,
        *,
        tier: str | None = None,
        device: torch.device | str | None = None,
        memory: int | None = None,
        reserve: int | None = None,
    ) -> Source:
        """Return the examples as a source for `MixLoader`.

        Do not shorten a file while it is memory-mapped: the operating system ends the process (SIGBUS).

        Args:
            window: Images only: number of batches to read in advance, each row once, in the order of the file. Use
                it for datasets larger than memory. 0 maps the file into memory, which is faster if the file fits.
            tier: Where the examples are read from: "device" (GPU memory), "pinned" (page-locked host memory that the GPU
                reads), "cache" (memory-mapped file), "disk" (windows), or "auto" for the first of these that fits. The
                source's `tier` and repr name the choice and the reason. Default: "disk" with a window, else "cache".
            device: Device of the loader's batches. Default: the CPU.
            memory: Maximum host memory to use, in bytes. Default: the available memory.
            reserve: Bytes of GPU memory that "device" leaves free for the model. Default: half of the free memory for
                "auto", 0 for "device".

        Returns:
            An `ImageSource`, `TokenSource` or `FeatureSource`.

        Raises:
            ValueError: If the dataset or the device does not support the tier.
            MemoryError: If the examples do not fit into the requested tier.
        """
        from spurmix.data.sources.open import open_source

        return open_source(self, window, tier, device, memory, reserve)

    def tokenizer(self) -> TokenizerLike:
        """Load the tokenizer that made the tokens. Its files are part of the dataset.

        Returns:
            A tokenizer of transformers or of tokenizers.

        Raises:
            ValueError: If the dataset has no tokenizer.
            DatasetError: If the tokenizer's files have changed.
        """
        from spurmix.data.dataset.tokenize import tokenizer_fingerprint
        from spurmix.data.dataset.tokenizer_files import TOKENIZER_FILE, load_tokenizer

        if TOKENIZER_FILE not in self.extra_files:
            raise ValueError(f"{self.path} has no tokenizer: it contains {self.kind} and no {TOKENIZER_FILE}")
        expected = self.provenance["tokens"]["tokenizer"]
        # transformers adds its own rules to a tokenizer that was made without it.
        for tokenizers_only in (False, True):
            tokenizer = load_tokenizer(self.path, tokenizers_only=tokenizers_only)
            if tokenizer_fingerprint(tokenizer) == expected:
                return tokenizer
        raise DatasetError(f"{self.path / TOKENIZER_FILE} is damaged: it is not the tokenizer that made the tokens")

    @property
    def extra_files(self) -> tuple[str, ...]:
        """Names of the files besides arrays and metadata, such as the tokenizer's."""
        usual = (*ARRAY_FILES[self.kind], METADATA_FILE, UNREADABLE_FILE)
        return tuple(name for name in self._description["files"] if name not in usual)

    def cells(self) -> tuple[NDArray[np.bool_], tuple[str, ...]] | None:
        """Return the overlapping cells to evaluate, as `membership` and `cell_names` of `spurmix.evaluate`.

        Cell K k + y, with K classes, contains the examples of label y with attribute k equal to 1. For CivilComments, these
        are the comments that mention an identity.

        Returns:
            Membership, bool `[N, cells]`, and the names of the cells. None if the dataset defines no cells.
        """
        names: list[str] = self.provenance.get("cells", [])
        if not names:
            return None
        classes = self.metadata.class_names
        by_label = self.metadata.labels[:, None] == np.arange(len(classes))
        has_attribute = np.stack([self.metadata.attributes[name] == 1 for name in names], axis=1)
        membership = (has_attribute[:, :, None] & by_label[:, None, :]).reshape(len(self), -1)
        return membership, tuple(f"{name}, {label}" for name in names for label in classes)

    def groups(self, attribute: str | None = None) -> GroupIndex:
        """Return the groups (label, attribute) of the examples.

        Args:
            attribute: Name of the attribute. Default: the first one. A dataset without attributes has a group for each
                class.

        Returns:
            The group of each example.

        Raises:
            ValueError: If the dataset has no such attribute.
        """
        known = self.metadata.attributes
        names = list(self.metadata.attribute_names)
        if attribute is None and not names:
            return GroupIndex(self.metadata.labels, class_names=self.metadata.class_names)
        chosen = attribute if attribute is not None else names[0]
        if not isinstance(chosen, str) or chosen not in known:
            raise ValueError(f"attribute must be one of {listed(names, [str(chosen)]) or 'none'}, got {chosen!r}")
        values = known[chosen]
        return GroupIndex(
            self.metadata.labels,
            np.ma.MaskedArray(values, mask=values == UNKNOWN),
            class_names=self.metadata.class_names,
            attribute_names=self.metadata.attribute_names[chosen],
        )

    def verify(self, progress: bool | None = None) -> list[Damage]:
        """Read every byte of all files and compare it with the checksums.

        Args:
            progress: Whether to show a progress bar. Default: only on a terminal.

        Returns:
            The damaged chunks. The list is empty if there is no damage.
        """
        return find_damage(self.path, self._description["files"], self._description["chunk"], progress)

    def check(self, progress: bool | None = None) -> None:
        """Compare the rows of this split, and all small files, with the checksums.

        Args:
            progress: Whether to show a progress bar. Default: only on a terminal.

        Raises:
            DatasetError: If bytes are damaged. The message names the file and the bytes.
        """
        within = {}
        if self.kind != "tokens":
            name = ARRAY_FILES[self.kind][0]
            shape, dtype, offset = read_array_header(self.path / name)
            row_bytes = math.prod(shape[1:]) * dtype.itemsize
            within[name] = offset + self.begin * row_bytes, offset + (self.begin + len(self)) * row_bytes
        damage = find_damage(self.path, self._description["files"], self._description["chunk"], progress, within)
        if damage:
            more = f", and {len(damage) - 1} more chunks" if len(damage) > 1 else ""
            raise DatasetError(f"{damage[0]}{more}; pack the dataset again")

    def __repr__(self) -> str:
        return f"PackedDataset({str(self.path)!r}, {len(self):,} examples, {self.kind})"
