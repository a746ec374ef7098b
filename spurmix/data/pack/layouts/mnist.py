"""Layout `mnist`: MNIST, Fashion-MNIST and other datasets in the same idx format."""

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
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from spurmix.core.files import FileError
from spurmix.core.limits import MAX_IDX_BYTES
from spurmix.data.dataset.format import Metadata
from spurmix.data.pack.manifest import Manifest
from spurmix.data.pack.remote import list_files, open_root, read_remote
from spurmix.data.pack.strays import LinkTargets, is_stray

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_IMAGE_FILE = re.compile(r"(.*)images([-.])idx3-ubyte(\.gz)?")


class _PixelArrays:
    """`SampleSource` of arrays of images, concatenated."""

    def __init__(self, parts: Sequence[NDArray[np.uint8]]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, n: int, /) -> NDArray[np.uint8]:
        part = int(np.searchsorted(self.ends, n, side="right"))
        image: NDArray[np.uint8] = self.parts[part][n - int(self.ends[part])]
        return image

    def digest(self) -> str:
        """See `SampleSource.digest`."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self.parts:
            digest.update(repr(part.shape).encode())
            digest.update(part.data)
        return digest.hexdigest()


def from_mnist(root: str | Path) -> Manifest:
    """Read `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same files of `t10k`, gzipped or not.

    Args:
        root: Folder or fsspec URL of the files.

    Returns:
        The images of splits "train" and "test", or of one of them.

    Raises:
        ValueError: If a file is missing, truncated or damaged. The message names the file.
    """
    system, base = open_root(str(root))
    links = LinkTargets(str(root))
    files = _find_splits([path for path in list_files(system, base) if not links.is_stray(path)], root)
    images, labels, sources, splits = [], [], [], list[str]()
    for split in sorted(files, reverse=True):
        image_file, label_file = files[split]
        pixels = _read_idx(system, base, image_file, root, rank=3)
        values = _read_idx(system, base, label_file, root, rank=1)
        if len(pixels) != len(values):
            raise ValueError(f"{root}/{label_file} has {len(values):,} labels, {image_file} has {len(pixels):,} images")
        images.append(pixels)
        labels.append(values)
        sources += [f"{image_file}#{n}" for n in range(len(pixels))]
        splits += [split] * len(pixels)
    all_labels = np.concatenate(labels).astype(np.int64)
    names = tuple(str(k) for k in range(int(all_labels.max()) + 1))
    return Manifest(str(root), Metadata(all_labels, splits, sources, {}, names, {}), (), _PixelArrays(images))


def _find_splits(paths: Sequence[str], root: str | Path) -> dict[str, tuple[str, str]]:
    """Return the paths of images and labels of each split."""
    path_of = {posixpath.basename(path): path for path in paths if not is_stray(path)}
    found: dict[str, tuple[str, str]] = {}
    for name, path in path_of.items():
        if (match := _IMAGE_FILE.fullmatch(name)) is None:
            continue
        split = "test" if "t10k" in name or "test" in name else "train"
        candidates = [f"{match[1]}labels{dot}idx1-ubyte{end}" for dot in "-." for end in (".gz", "")]
        labels = next((path_of[candidate] for candidate in candidates if candidate in path_of), None)
        if labels is None:
            raise ValueError(f"root: {path} has no labels, such as {candidates[1]}, in {root}")
        if split in found:
            raise ValueError(f"root: {found[split][0]} and {path} are both images of split {split}; keep one of them")
        found[split] = path, labels
    if not found:
        raise ValueError(f"root: no files such as train-images-idx3-ubyte.gz in {root}")
    return found


def _read_idx(system: AbstractFileSystem, base: str, path: str, root: str | Path, rank: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes with the given number of dimensions."""
    location = f"{root}/{path}"
    try:
        data = read_remote(system, base, path, MAX_IDX_BYTES)
    except FileError as error:
        raise ValueError(f"{location} {error}") from None
    is_zipped = data[:2] == b"\x1f\x8b"
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=io.BytesIO(data)) if is_zipped else io.BytesIO(data))
    try:
        head = stream.read(4 + 4 * rank)
        if len(head) < 4 + 4 * rank or head[:4] != bytes((0, 0, 8, rank)):
            raise ValueError(f"{location} is not an idx file of bytes with {rank} dimensions")
        shape = tuple(int.from_bytes(head[k : k + 4], "big") for k in range(4, len(head), 4))
        size = math.prod(shape)
        if not 0 < size <= MAX_IDX_BYTES:
            raise ValueError(
                f"{location} is damaged: its header claims a size of {list(shape)} bytes, the maximum is {MAX_IDX_BYTES:,}"
            )
        body = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{location} is truncated or damaged: {error}") from None
    if len(body) != size:
        found = f"more than {size:,}" if len(body) > size else f"{len(body):,} of {size:,}"
        raise ValueError(f"{location} is truncated or damaged: {found} bytes follow its header of shape {list(shape)}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)
