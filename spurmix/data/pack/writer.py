"""Rows written to a file by stripes: past the page cache, while the next ones are made, their checksums taken on the way."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix.core.cells import host_module
from spurmix.core.memory import HAS_PAGES, pages
from spurmix.core.ranges import chunks
from spurmix.data.dataset import checksums

PAGE = 4096
DIRECT_FROM = 1 << 18
"""Bytes of a stripe from which it is worth to wait for the disk itself."""


class StripeWriter:
    """Writes rows of `row_bytes` bytes that begin at byte `begin` of a file, a stripe of them at once.

    Copying into the page cache costs the CPU about as much as a tenth of a JPEG's decoding; the disk takes whole pages
    from our own memory. What does not fill a page, and file systems that refuse this, go through the cache. A write costs
    the system some time whatever its size, so stripes are large; several workers fill one, a part each.

    Args:
        most: rows of a stripe, at most. stripes: how many may be in work or on their way.

    Raises:
        OSError: on leaving, and in `parts`, for the first write that failed.
    """

    def __init__(self, path: Path, begin: int, row_bytes: int, most: int, stripes: int) -> None:
        self._begin, self._row_bytes, self._most = begin, row_bytes, most
        self._plain = os.open(path, os.O_RDWR)
        self._direct = -1
        try:
            if hasattr(os, "O_DIRECT") and most * row_bytes >= DIRECT_FROM:
                self._direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError:
            pass
        self._free: queue.LifoQueue[NDArray[np.uint8] | None] = queue.LifoQueue()  # what was used last is still near
        for _ in range(stripes):
            self._free.put(None)  # memory is made when it is first needed
        self._pool = ThreadPoolExecutor(2, "spurmix-stripes")
        self._guard = threading.Lock()
        self._failed: BaseException | None = None
        self._pieces: dict[int, tuple[int, int]] = {}  # size and CRC-32 of what was written, by the byte it begins at

    def parts(self, first: int, count: int, each: int) -> Iterator[Part]:
        """Memory for `count` rows from `first` on, by parts of `each` rows or less, as soon as there is some.

        Every part must come back, by `put` or `fail`.
        """
        for stripe_rows in chunks(count, self._most):
            memory = self._free.get()
            if self._failed is not None:
                self._free.put(memory)  # for the next one who waits
                raise self._failed
            if memory is None:
                size = self._most * self._row_bytes + PAGE
                memory = pages(size) if HAS_PAGES else np.empty(size, dtype=np.uint8)
            begin = first + stripe_rows.start
            stripe = _Stripe(memory, self._begin + begin * self._row_bytes, len(stripe_rows), self._row_bytes)
            for rows in chunks(len(stripe_rows), each):
                yield Part(stripe, begin, rows, self._row_bytes)

    def put(self, part: Part, then: Callable[[], None]) -> None:
        """A part is filled. Its stripe is written in the background once all its parts are, and `then` called."""
        stripe = part.stripe
        with self._guard:
            stripe.filled.append((part, then))
            stripe.left -= part.count
            if stripe.left:
                return
        self._pool.submit(self._finish, stripe)

    def fail(self, error: BaseException) -> None:
        """A part cannot be filled: its stripe is not written, and who waits for memory gets the error."""
        with self._guard:
            self._failed = self._failed or error
        self._free.put(None)

    def _finish(self, stripe: _Stripe) -> None:
        try:
            self._write(stripe.bytes, stripe.at)
            for part, then in stripe.filled:
                self._pieces.update(part.pieces())
                then()
        except BaseException as error:
            self.fail(error)
        finally:
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


class _Stripe:
    """Rows in memory that lies in its pages as the rows lie in those of the file: `bytes`, from byte `at` of it on."""

    def __init__(self, memory: NDArray[np.uint8], at: int, count: int, row_bytes: int) -> None:
        skip = at % PAGE
        self.memory, self.at, self.left = memory, at, count
        self.bytes = memory[skip : skip + count * row_bytes]
        self.filled: list[tuple[Part, Callable[[], None]]] = []


class Part:
    """Some rows of a stripe.

    Attributes:
        first, count: which rows of the file.
    """

    def __init__(self, stripe: _Stripe, begin: int, rows: range, row_bytes: int) -> None:
        self.stripe, self.first, self.count, self._row_bytes = stripe, begin + rows.start, len(rows), row_bytes
        self._bytes = stripe.bytes[rows.start * row_bytes : rows.stop * row_bytes]
        self._at = stripe.at + rows.start * row_bytes
        self._sums: dict[int, int] = {}  # CRC-32 of what lies in a chunk of the file, by its number
        self._host = host_module()

    def set(self, k: int, image: Any | None) -> None:
        """Row k, the one after the last one set, becomes an RGB image of Pillow's, or zeros."""
        host, pack = self._host, getattr(image, "__arrow_c_array__", None)
        begin, end = k * self._row_bytes, (k + 1) * self._row_bytes
        if host is not None and pack is not None:
            number, to = (self._at + begin) // checksums.CHUNK, (self._at + end - 1) // checksums.CHUNK
            try:
                crc = host.pack_rgb(pack()[1], self._row_bytes // 3, self._bytes, begin, self._sums.get(number, 0))
            except ValueError:
                pass  # an image that Pillow holds in several pieces
            else:
                if number == to:
                    self._sums[number] = crc
                else:
                    self._sum(begin, end)
                return
        self._bytes[begin:end] = 0 if image is None else np.asarray(image).reshape(-1)
        self._sum(begin, end)

    def _sum(self, begin: int, end: int) -> None:
        if self._host is None:
            return
        for number in range((self._at + begin) // checksums.CHUNK, (self._at + end - 1) // checksums.CHUNK + 1):
            first, last = (max(0, (number + k) * checksums.CHUNK - self._at) for k in (0, 1))
            part = self._bytes[max(begin, first) : min(end, last)]
            self._sums[number] = self._host.crc32(part, self._sums.get(number, 0))

    def pieces(self) -> dict[int, tuple[int, int]]:
        """Size and CRC-32 of what lies in each chunk of the file, by the byte it begins at."""
        end, found = self._at + self._bytes.size, {}
        for number, crc in self._sums.items():
            begin = max(self._at, number * checksums.CHUNK)
            found[begin] = (min(end, (number + 1) * checksums.CHUNK) - begin, crc)
        return found


def _write_all(handle: int, data: NDArray[np.uint8], at: int) -> None:
    left = memoryview(data.data)
    while left:
        done = os.pwrite(handle, left, at)
        left, at = left[done:], at + done
