"""Rows written to a file by stripes: past the page cache, while the next ones are made, their checksums taken on the way."""

from __future__ import annotations

import errno
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core.cells import host_module
from spurmix.core.memory import HAS_PAGES, pages
from spurmix.data import checksums

PAGE = 4096
DIRECT_FROM = 1 << 18
"""Bytes of a stripe from which it is worth to wait for the disk itself."""


class StripeWriter:
    """Writes rows of `row_bytes` bytes that begin at byte `begin` of a file, several at a time.

    Copying into the page cache costs the CPU about as much as a tenth of a JPEG's decoding; the disk takes whole pages
    from our own memory. What does not fill a page, and file systems that refuse this, go through the cache.

    Args:
        most: rows of a stripe, at most. stripes: how many may be in work or on their way.

    Raises:
        OSError: on leaving, and in `take`, for the first write that failed.
    """

    def __init__(self, path: Path, begin: int, row_bytes: int, most: int, stripes: int) -> None:
        self._path, self._begin, self._row_bytes = path, begin, row_bytes
        self._plain = os.open(path, os.O_RDWR)
        self._direct = -1
        try:
            if hasattr(os, "O_DIRECT") and most * row_bytes >= DIRECT_FROM:
                self._direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError:
            pass
        self._free: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        size = most * row_bytes + PAGE
        for _ in range(stripes):
            self._free.put(pages(size) if HAS_PAGES else np.empty(size, dtype=np.uint8))
        self._pool = ThreadPoolExecutor(2, "spurmix-stripes")
        self._queued: list[Future[None]] = []
        self._failed: BaseException | None = None
        self._pieces: dict[int, tuple[int, int]] = {}  # size and CRC-32 of what was written, by the byte it begins at

    def take(self, first: int, count: int) -> Stripe:
        """Memory for `count` rows from `first` on, as soon as there is some."""
        memory = self._free.get()
        if self._failed is not None:
            self._free.put(memory)
            raise self._failed
        at = self._begin + first * self._row_bytes
        return Stripe(memory, at, count, self._row_bytes)

    def put(self, stripe: Stripe, then: Callable[[], None]) -> None:
        """Write a stripe in the background, and call `then`."""

        def write() -> None:
            try:
                self._write(stripe.bytes, stripe.at)
                self._pieces.update(stripe.pieces())
                then()
            except BaseException as error:
                self._failed = self._failed or error
            finally:
                self._free.put(stripe.memory)

        self._queued = [future for future in self._queued if not future.done()]
        self._queued.append(self._pool.submit(write))

    def give_back(self, stripe: Stripe) -> None:
        """Take the memory of a stripe that is not to be written."""
        self._free.put(stripe.memory)

    def _write(self, data: NDArray[np.uint8], at: int) -> None:
        end = at + data.size
        head, tail = min(-(-at // PAGE) * PAGE, end), end // PAGE * PAGE
        if self._direct < 0 or tail - head < DIRECT_FROM:
            _write_all(self._plain, data, at)
            return
        _write_all(self._plain, data[: head - at], at)
        _write_all(self._plain, data[tail - at :], tail)
        try:
            _write_all(self._direct, data[head - at : tail - at], head)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _write_all(self._plain, data[head - at : tail - at], head)

    def known(self) -> dict[int, str]:
        """The checksums of chunks of the file that were written here as a whole, by their number."""
        host, size, found = host_module(), os.fstat(self._plain).st_size, dict[int, str]()
        if host is None:
            return found
        pieces = {0: (self._begin, host.file_crc32(self._plain, 0, self._begin)[0]), **self._pieces}
        for number, begin in enumerate(range(0, size, checksums.CHUNK)):
            at, crc, end = begin, 0, min(begin + checksums.CHUNK, size)
            while at < end and at in pieces:
                crc = host.crc32_joined(crc, pieces[at][1], pieces[at][0])
                at += pieces[at][0]
            if at == end:
                found[number] = f"{crc:08x}"
        return found

    def __enter__(self) -> StripeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        self.sums = self.known() if error is None and self._failed is None else {}
        for handle in (self._plain, self._direct):
            if handle >= 0:
                os.close(handle)
        if error is None and self._failed is not None:
            raise self._failed


class Stripe:
    """Rows in memory that lies in its pages as the rows lie in those of the file.

    Attributes:
        memory: what holds them. at: the byte of the file they begin at. bytes: their own.
    """

    def __init__(self, memory: NDArray[np.uint8], at: int, count: int, row_bytes: int) -> None:
        skip = at % PAGE
        self.memory, self.at, self._row_bytes = memory, at, row_bytes
        self.bytes = memory[skip : skip + count * row_bytes]
        self._sums: dict[int, int] = {}  # CRC-32 of what lies in a chunk of the file, by its number

    def set(self, k: int, image: Any | None) -> None:
        """Row k, the one after the last one set, becomes an RGB image of Pillow's, or zeros."""
        host, pack = host_module(), getattr(image, "__arrow_c_array__", None)
        begin, end = k * self._row_bytes, (k + 1) * self._row_bytes
        if host is not None and pack is not None:
            number, to = (self.at + begin) // checksums.CHUNK, (self.at + end - 1) // checksums.CHUNK
            try:
                crc = host.pack_rgb(pack()[1], self._row_bytes // 3, self.bytes, begin, self._sums.get(number, 0))
            except ValueError:
                pass  # an image that Pillow holds in several pieces
            else:
                if number == to:
                    self._sums[number] = crc
                else:
                    self._sum(begin, end)
                return
        self.bytes[begin:end] = 0 if image is None else np.asarray(image).reshape(-1)
        self._sum(begin, end)

    def _sum(self, begin: int, end: int) -> None:
        host = host_module()
        if host is None:
            return
        for number in range((self.at + begin) // checksums.CHUNK, (self.at + end - 1) // checksums.CHUNK + 1):
            first, last = (max(0, (number + k) * checksums.CHUNK - self.at) for k in (0, 1))
            part = self.bytes[max(begin, first) : min(end, last)]
            self._sums[number] = host.crc32(part, self._sums.get(number, 0))

    def pieces(self) -> dict[int, tuple[int, int]]:
        """Size and CRC-32 of what lies in each chunk of the file, by the byte it begins at."""
        end, found = self.at + self.bytes.size, {}
        for number, crc in self._sums.items():
            begin = max(self.at, number * checksums.CHUNK)
            found[begin] = (min(end, (number + 1) * checksums.CHUNK) - begin, crc)
        return found


def _write_all(handle: int, data: NDArray[np.uint8], at: int) -> None:
    left = memoryview(data.data)
    while left:
        done = os.pwrite(handle, left, at)
        left, at = left[done:], at + done
