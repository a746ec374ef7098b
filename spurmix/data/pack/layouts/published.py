"""Datasets as published that are no image files: MNIST and its kin in idx files, CivilComments."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import posixpath
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.data.dataset.packed import Metadata
from spurmix.data.pack.job import counted
from spurmix.data.pack.layouts.civilcomments import CLASS_NAMES, FILE, IDENTITIES, SPLITS, read_civilcomments
from spurmix.data.pack.manifest import Listing, digest_of_texts, files_below, local, open_root

_LARGEST = 1 << 34  # bytes: more than any set in this format has
_IMAGES = re.compile(r"(.*)images([-.])idx3-ubyte(\.gz)?")


class _Pixels:
    """`Content` of images of one set after another."""

    def __init__(self, parts: Sequence[NDArray[np.uint8]]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, n: int) -> NDArray[np.uint8]:
        part = int(np.searchsorted(self.ends, n, side="right"))
        return self.parts[part][n - int(self.ends[part])]

    def digest(self) -> str:
        """See `Content`."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self.parts:
            digest.update(repr(part.shape).encode())
            digest.update(part.data)
        return digest.hexdigest()


def mnist(root: str | Path) -> Listing:
    """MNIST, Fashion-MNIST and their kin: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, the same of `t10k`,
    gzipped or not; splits "train" and "test" as far as they are there.

    Raises:
        ValueError: naming a file that is missing, truncated or damaged.
    """
    system, base = open_root(str(root))
    names = {posixpath.basename(name): name for name in files_below(system, base)}
    sets: dict[str, tuple[str, str]] = {}
    for name, place in names.items():
        if (match := _IMAGES.fullmatch(name)) is None:
            continue
        split = "test" if "t10k" in name or "test" in name else "train"
        stems = [f"{match[1]}labels{dot}idx1-ubyte{end}" for dot in "-." for end in (".gz", "")]
        labels = next((names[stem] for stem in stems if stem in names), None)
        if labels is None:
            raise ValueError(f"{place}: its labels, such as {stems[1]}, are missing in {root}")
        if split in sets:
            raise ValueError(f"root: {sets[split][0]} and {place} are both images of split {split}; keep one in {root}")
        sets[split] = place, labels
    if not sets:
        raise ValueError(f"root: no files such as train-images-idx3-ubyte.gz in {root}")
    images, labels_of, sources, splits = [], [], [], list[str]()
    for split in sorted(sets, reverse=True):
        image_file, label_file = sets[split]
        pixels, values = (
            _read_idx(system.cat_file(f"{base}/{place}"), f"{root}/{place}", rank)
            for place, rank in ((image_file, 3), (label_file, 1))
        )
        if len(pixels) != len(values):
            raise ValueError(f"{root}/{label_file} has {len(values):,} labels, {image_file} {len(pixels):,} images")
        images.append(pixels)
        labels_of.append(values)
        sources += [f"{image_file}#{n}" for n in range(len(pixels))]
        splits += [split] * len(pixels)
    labels_array = np.concatenate(labels_of).astype(np.int64)
    classes = tuple(str(k) for k in range(int(labels_array.max()) + 1))
    return Listing(str(root), Metadata(labels_array, splits, sources, {}, classes, {}), content=_Pixels(images))


def _read_idx(data: bytes, where: str, rank: int) -> NDArray[np.uint8]:
    """The array in an idx file of bytes, uint8 of that rank."""
    zipped = data[:2] == b"\x1f\x8b"
    stream: Any = gzip.GzipFile(fileobj=io.BytesIO(data)) if zipped else io.BytesIO(data)
    try:
        head = stream.read(4 + 4 * rank)
        if len(head) < 4 + 4 * rank or head[:4] != bytes((0, 0, 8, rank)):
            raise ValueError(f"{where} is no idx file of bytes with {rank} dimensions")
        shape = tuple(int.from_bytes(head[k : k + 4], "big") for k in range(4, len(head), 4))
        size = math.prod(shape)
        if not 0 < size <= _LARGEST:
            raise ValueError(f"{where} is damaged: it claims to hold {list(shape)} bytes")
        body = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{where} is truncated or damaged: {error}") from None
    if len(body) != size:
        found = f"more than {size:,}" if len(body) > size else f"{len(body):,} of {size:,}"
        raise ValueError(f"{where} is truncated or damaged: {found} bytes follow its header, which says {list(shape)}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


class _Texts(list[str]):
    """`Content` of a list of texts."""

    def digest(self) -> str:
        """See `Content`."""
        return digest_of_texts(self)


def civilcomments(
    path: str | Path, *, attribute: str = "any", identities: Sequence[str] = IDENTITIES, drop_empty: bool = False
) -> Listing:
    """CivilComments in the layout of WILDS, for `pack_texts`; arguments as of `read_civilcomments`.

    The first attribute is the one that is trained on ("any identity", or `attribute`), then come all `identities`, 0 or 1;
    `PackedDataset.cells` gives the overlapping cells of identity and label.
    """
    data = read_civilcomments(local(path), attribute=attribute, identities=identities, drop_empty=drop_empty)
    mentioned = {name: data.identities[:, k].astype(np.int64) for k, name in enumerate(data.identity_names)}
    values = {data.attribute_name: data.attributes.astype(np.int64), **mentioned}
    names: dict[str, tuple[str, ...]] = {name: (f"no {name}", name) for name in values}
    names[data.attribute_name] = data.value_names
    sources = [f"{FILE}#{n}" for n in data.rows.tolist()]
    metadata = Metadata(
        data.labels.astype(np.int64), [SPLITS[k] for k in data.splits], sources, values, CLASS_NAMES, names
    )
    notes = []
    if data.left_out.size:
        shown = ", ".join(map(str, data.left_out[:5])) + (", ..." if data.left_out.size > 5 else "")
        notes.append(f"{counted(data.left_out.size, 'comment')} without any text left out: rows {shown}")
    return Listing(
        str(path), metadata, tuple(notes), _Texts(data.texts), kind="texts", cells=tuple(data.identity_names)
    )
