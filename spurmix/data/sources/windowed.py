"""Images read from their file as the draw needs them: the future is known, so rows are read ahead, in order, each once."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spurmix.core import checks
from spurmix.core.cells import host_module
from spurmix.core.memory import HAS_PAGES, pages
from spurmix.data.dataset.format import DatasetError, read_array_header
from spurmix.data.sources.arrays import ImageSource, as_tensor
from spurmix.data.sources.placement import shown
from spurmix.ops import functional

THREADS = 16
"""Reads under way at once: a disk answers many sooner than one after the other."""
PAGE = 4096
DIRECT_BYTES = 1 << 15
"""Rows from this size on are read past the page cache: for smaller ones, whole pages are much more than is wanted."""
MEMORY = 1 << 30
"""Bytes of two windows, where nobody says how many: more make no disk quicker that answers rows in any order."""


class WindowedImages(ImageSource):
    """Images `[N, H, W, C]` in an `.npy` file that are read for some batches at a time, a window, and never mapped for that.

    While a window's batches are mixed, the rows of the next one are read: all that its samples need as index or partner,
    in the order of the file, each once however often it is used. Large images go straight from the disk to where they are
    mixed: the page cache, which cannot hold them, is neither copied from nor filled. Two windows are in memory, at most
    `4 * window * batch size` images. Batches are those of an `ImageSource`, to the bit.

    Args:
        path: the file. begin, count: which of its rows are the source.
        window: batches read at a time, 1 or more; None: as many as `memory` holds.
        memory: bytes the images of two windows may take; default: 2^30, with a `window` whatever it takes.
        mean, std: as in `ImageSource`.
    """

    def __init__(
        self,
        path: Path,
        begin: int,
        count: int,
        window: int | None = None,
        *,
        memory: int | None = None,
        mean: Any = None,
        std: Any = None,
    ) -> None:
        window = None if window is None else checks.integer(window, "window", 1)
        shape, dtype, data = read_array_header(path)
        if len(shape) != 4 or dtype != np.uint8 or 0 in shape or not 0 <= begin < begin + count <= shape[0]:
            raise DatasetError(f"{path}: rows {begin} to {begin + count} are not images of a file of {list(shape)}")
        self.path, self.window, self.memory = path, window, memory
        self._first, self._count, self._extent = begin, count, (shape[1], shape[2], shape[3])
        self._row_bytes = shape[1] * shape[2] * shape[3]
        self._begin = data + begin * self._row_bytes
        self._direct = self._row_bytes >= DIRECT_BYTES and hasattr(os, "O_DIRECT") and HAS_PAGES
        self._set_normalization(mean, std, shape[3], torch.device("cpu"))

    def batches(self, size: int, steps: int) -> int:
        """Batches of `size` that a window holds, in a run of `steps`.

        Raises:
            ValueError: where the memory does not hold them.
        """
        if self.window is not None:
            wanted = min(self.window, steps)
            both = 2 * self._room(min(2 * size * wanted, self._count))
            if self.memory is not None and both > self.memory:
                raise ValueError(
                    f"window: two of {wanted} batches of {size} images take {both:,} bytes, {self.memory:,} may be used; "
                    "make it smaller or allow more memory"
                )
            return wanted
        memory = self.memory if self.memory is not None else MEMORY
        each = 2 * self._room(min(2 * size, self._count))
        if each > memory:
            raise ValueError(
                f"memory: batches of {size} images are read into {each:,} bytes, {memory:,} may be used; make batches "
                "smaller or allow more"
            )
        return min(memory // each, steps)

    def _room(self, rows: int) -> int:
        """Bytes that reading `rows` of them takes at most."""
        return rows * (self._row_bytes + (2 * PAGE if self._direct else 0))

    def buffer(self, rows: int) -> NDArray[np.uint8]:
        """Memory that any `rows` of the images can be read into; what is not used takes none."""
        size = self._room(max(1, min(rows, self._count)))
        return pages(size) if HAS_PAGES else np.empty(size, dtype=np.uint8)

    @cached_property
    def images(self) -> Tensor:  # type: ignore[override]  # what ImageSource holds is mapped here when it is asked for
        """The images, memory-mapped."""
        mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return as_tensor(mapped[self._first : self._first + self._count], "images")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "images"}  # a map is not copied

    @property
    def device(self) -> torch.device:
        """Where the images are: on the host."""
        return torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self._extent

    def __len__(self) -> int:
        return self._count

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, int]]:
        """Descriptors of the file, and of the file past the page cache, or -1 where the system does not do that."""
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(self.path.open("rb", buffering=0)).fileno(), -1]
            if self._direct:
                with contextlib.suppress(OSError):
                    opened[1] = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
                    stack.callback(os.close, opened[1])
            yield opened[0], opened[1]

    def read(self, rows: NDArray[np.int64], memory: NDArray[np.uint8] | None = None) -> tuple[Tensor, Tensor]:
        """Read the images `rows`, ascending, in parallel.

        Returns:
            images, uint8 `[K, H, W, C]`, overlapping views of all that begins in `memory` where an image may; and the
            place of each row in them, int64 `[len(rows)]`.

        Raises:
            OSError: where the file cannot be read, naming the row where it ends too early.
        """
        flat = memory if memory is not None else self.buffer(rows.size)
        host = host_module()
        with self._opened() as (plain, direct):
            try:
                if host is not None:
                    places = host.read_rows(plain, direct, self._begin, self._row_bytes, rows, flat, THREADS)
                else:
                    places = self._read_rows(plain, rows, flat)
            except OSError as error:
                ends = self._begin + (rows + 1) * self._row_bytes
                short = rows[ends > os.fstat(plain).st_size]
                what = f"ends before row {self._first + int(short[0])}" if short.size else error.strerror
                raise OSError(error.errno, f"{self.path}: {what}") from None
        # Reads past the page cache keep a row's offset in its page, so places are multiples of this, not of a row.
        step = math.gcd(self._row_bytes, self._begin, PAGE) if self._direct else self._row_bytes
        _, width, channels = self._extent
        images = torch.from_numpy(flat).as_strided(
            ((flat.size - self._row_bytes) // step + 1, *self._extent), (step, width * channels, channels, 1)
        )
        return images, torch.from_numpy(places // step)

    def _read_rows(self, plain: int, rows: NDArray[np.int64], flat: NDArray[np.uint8]) -> NDArray[np.int64]:
        places = np.arange(rows.size) * self._row_bytes
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            found = os.pread(plain, self._row_bytes, self._begin + row * self._row_bytes)
            if len(found) < self._row_bytes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            flat[place : place + self._row_bytes] = np.frombuffer(found, dtype=np.uint8)
        return places

    def _gathered(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images and the place of each of `index` in them."""
        wanted = index.numpy()
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._count):
            raise IndexError(f"index must lie in [0, {self._count}), got {wanted.min()} to {wanted.max()}")
        rows, place = np.unique(wanted, return_inverse=True)
        images, places = self.read(rows)
        return images, places[torch.from_numpy(place)]

    def gather(self, index: Tensor) -> Tensor:
        """Unmixed, normalised images, float32 `[B, C, H, W]`; index int64 `[B]`."""
        images, places = self._gathered(index)
        ones = torch.ones(index.shape[0], dtype=torch.float32)
        return functional.mix_images(images, places, places, ones, mean=self.mean, std=self.std)

    def raw(self, index: Tensor) -> Tensor:
        """The stored images, uint8 `[B, H, W, C]`; index int64 `[B]`."""
        images, places = self._gathered(index)
        return images[places]

    def __repr__(self) -> str:
        height, width, channels = self.shape
        memory = MEMORY if self.memory is None else self.memory
        window = f"{self.window} batches" if self.window is not None else f"{memory / 2**20:,.0f} MiB"
        about = f"{len(self):,} images of {height} x {width} x {channels}, {window} at a time"
        return f"WindowedImages({about}{shown(self.tier)})"
