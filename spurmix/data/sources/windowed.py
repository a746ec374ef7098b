"""Images that are read from their file in advance. The draws are known before, so each row of a window is read once."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spurmix.core import checks
from spurmix.core.cells import host_module
from spurmix.core.memory import HAS_PAGES, pages
from spurmix.data.dataset.format import DatasetError, read_array_header
from spurmix.data.sources.arrays import ChannelValues, ImageSource, as_tensor
from spurmix.data.sources.tiers import repr_suffix
from spurmix.ops import functional

THREADS = 16
"""Number of concurrent reads. Disks answer many requests at once faster than one after the other."""
PAGE = 4096
DIRECT_BYTES = 1 << 15
"""Minimum size of rows that are read directly, past the page cache. Direct reads of smaller rows waste most of a page."""
DEFAULT_MEMORY = 1 << 30
"""Default size of two windows in bytes. Larger windows do not make random reads faster."""


class WindowedImages(ImageSource):
    """Images `[N, H, W, C]` in an `.npy` file, read one window of batches at a time.

    While the batches of a window are mixed, the rows of the next window are read: all rows that its samples need as index
    or partner, in the order of the file, each once. Large images are read directly into the memory they are mixed from,
    past the page cache. Two windows are in memory, at most `4 * window * batch_size` images. Batches are equal, bit by
    bit, to those of an `ImageSource`.

    Args:
        path: The file.
        begin: First row of the source.
        count: Number of rows of the source.
        window: Number of batches that are read at a time, 1 or more. Default: as many as fit into `memory`.
        memory: Maximum size of the images of two windows in bytes. Default: no limit with a `window`, else 2^30.
        mean: Mean per channel, as for `ImageSource`.
        std: Standard deviation per channel, as for `ImageSource`.

    Raises:
        DatasetError: If the file is not an `.npy` file of uint8 images, or has too few rows.
        TypeError: If `window` is not an integer.
        ValueError: If `window` is less than 1.
    """

    def __init__(
        self,
        path: Path,
        begin: int,
        count: int,
        window: int | None = None,
        *,
        memory: int | None = None,
        mean: ChannelValues | None = None,
        std: ChannelValues | None = None,
    ) -> None:
        window = None if window is None else checks.integer(window, "window", 1)
        shape, dtype, data = read_array_header(path)
        if len(shape) != 4 or dtype != np.uint8 or 0 in shape or not 0 <= begin < begin + count <= shape[0]:
            raise DatasetError(
                f"{path} must contain uint8 images [N, H, W, C] at rows {begin} to {begin + count - 1}, "
                f"got {dtype} {list(shape)}"
            )
        self.path, self.window, self.memory = path, window, memory
        self._first, self._count, self._extent = begin, count, (shape[1], shape[2], shape[3])
        self._row_bytes = shape[1] * shape[2] * shape[3]
        self._begin = data + begin * self._row_bytes
        self._direct = self._row_bytes >= DIRECT_BYTES and hasattr(os, "O_DIRECT") and HAS_PAGES
        self._set_normalization(mean, std, shape[3], torch.device("cpu"))

    def batches(self, size: int, steps: int) -> int:
        """Return the number of batches of a window.

        Args:
            size: Number of samples per batch.
            steps: Number of batches of the run.

        Returns:
            The number of batches, at most `steps`.

        Raises:
            ValueError: If two windows do not fit into memory.
        """
        if self.window is not None:
            batches = min(self.window, steps)
            required = 2 * self._max_bytes(min(2 * size * batches, self._count))
            if self.memory is not None and required > self.memory:
                raise ValueError(
                    f"window: two windows of {batches} batches of {size} images require {required:,} bytes, memory is "
                    f"{self.memory:,} bytes; reduce window or increase memory"
                )
            return batches
        memory = self.memory if self.memory is not None else DEFAULT_MEMORY
        required = 2 * self._max_bytes(min(2 * size, self._count))
        if required > memory:
            raise ValueError(
                f"memory: two batches of {size} images require {required:,} bytes, memory is {memory:,} bytes; reduce the "
                "batch size or increase memory"
            )
        return min(memory // required, steps)

    def _max_bytes(self, rows: int) -> int:
        """Maximum number of bytes that reading `rows` rows needs."""
        return rows * (self._row_bytes + (2 * PAGE if self._direct else 0))

    def buffer(self, rows: int) -> NDArray[np.uint8]:
        """Allocate memory for reading any `rows` of the images. Pages that are not used take no memory."""
        size = self._max_bytes(max(1, min(rows, self._count)))
        return pages(size) if HAS_PAGES else np.empty(size, dtype=np.uint8)

    @cached_property
    def images(self) -> Tensor:  # type: ignore[override]  # an attribute of ImageSource, mapped here on first use
        """The images, memory-mapped."""
        mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return as_tensor(mapped[self._first : self._first + self._count], "images")

    def __getstate__(self) -> dict[str, object]:
        # A pickled memory map would contain all images.
        return {name: value for name, value in self.__dict__.items() if name != "images"}

    @property
    def device(self) -> torch.device:
        """Device of the images: the CPU."""
        return torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self._extent

    def __len__(self) -> int:
        return self._count

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, int]]:
        """Open the file, and again for direct reads, -1 if not supported."""
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(self.path.open("rb", buffering=0)).fileno(), -1]
            if self._direct:
                with contextlib.suppress(OSError):
                    opened[1] = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
                    stack.callback(os.close, opened[1])
            yield opened[0], opened[1]

    def read(self, rows: NDArray[np.int64], memory: NDArray[np.uint8] | None = None) -> tuple[Tensor, Tensor]:
        """Read images in parallel.

        Args:
            rows: Numbers of the images, int64 `[R]`, in ascending order.
            memory: Memory to read into, from `buffer`. None allocates it.

        Returns:
            Images, uint8 `[K, H, W, C]`, as overlapping views of `memory` at every possible position of an image; and the
            position of each row in them, int64 `[R]`.

        Raises:
            OSError: If the file cannot be read. If it is too short, the message names the first missing row.
        """
        flat = memory if memory is not None else self.buffer(rows.size)
        host = host_module()
        with self._opened() as (plain, direct):
            try:
                if host is not None:
                    offsets = host.read_rows(plain, direct, self._begin, self._row_bytes, rows, flat, THREADS)
                else:
                    offsets = self._read_rows(plain, rows, flat)
            except OSError as error:
                ends = self._begin + (rows + 1) * self._row_bytes
                missing = rows[ends > os.fstat(plain).st_size]
                reason = f"ends before row {self._first + int(missing[0])}" if missing.size else error.strerror
                raise OSError(error.errno, f"{self.path}: {reason}") from None
        # Direct reads keep the offset of a row in its page, so offsets are multiples of `step`, not of a row.
        step = math.gcd(self._row_bytes, self._begin, PAGE) if self._direct else self._row_bytes
        _, width, channels = self._extent
        images = torch.from_numpy(flat).as_strided(
            ((flat.size - self._row_bytes) // step + 1, *self._extent), (step, width * channels, channels, 1)
        )
        return images, torch.from_numpy(offsets // step)

    def _read_rows(self, plain: int, rows: NDArray[np.int64], flat: NDArray[np.uint8]) -> NDArray[np.int64]:
        offsets = np.arange(rows.size) * self._row_bytes
        for offset, row in zip(offsets.tolist(), rows.tolist(), strict=True):
            content = os.pread(plain, self._row_bytes, self._begin + row * self._row_bytes)
            if len(content) < self._row_bytes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            flat[offset : offset + self._row_bytes] = np.frombuffer(content, dtype=np.uint8)
        return offsets

    def _read_examples(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Read each image of `index` once. Returns the images and the position of each example in them."""
        numbers = index.numpy()
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self._count):
            raise IndexError(f"index must be in [0, {self._count}), got {numbers.min()} to {numbers.max()}")
        rows, inverse = np.unique(numbers, return_inverse=True)
        images, positions = self.read(rows)
        return images, positions[torch.from_numpy(inverse)]

    def gather(self, index: Tensor) -> Tensor:
        """Return unmixed, normalized images.

        Args:
            index: Numbers of the images, int64 `[B]`, in [0, N).

        Returns:
            Images, float32 `[B, C, H, W]`.
        """
        images, positions = self._read_examples(index)
        ones = torch.ones(index.shape[0], dtype=torch.float32)
        return functional.mix_images(images, positions, positions, ones, mean=self.mean, std=self.std)

    def raw(self, index: Tensor) -> Tensor:
        """Return images as they are stored.

        Args:
            index: Numbers of the images, int64 `[B]`, in [0, N).

        Returns:
            Images, uint8 `[B, H, W, C]`.
        """
        images, positions = self._read_examples(index)
        return images[positions]

    def __repr__(self) -> str:
        height, width, channels = self.shape
        memory = DEFAULT_MEMORY if self.memory is None else self.memory
        window = f"{self.window} batches" if self.window is not None else f"{memory / 2**20:,.0f} MiB"
        about = f"{len(self):,} images of {height} x {width} x {channels}, {window} at a time"
        return f"WindowedImages({about}{repr_suffix(self.tier)})"
