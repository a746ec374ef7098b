"""`DirectWriter`: writes rows to a file past the page cache, in the background, and computes their checksums."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spurmix.core.cells import host_module
from spurmix.core.memory import HAS_PAGES, pages
from spurmix.core.ranges import chunks
from spurmix.data.dataset import checksums

if TYPE_CHECKING:
    from PIL.Image import Image

PAGE = 4096
MIN_DIRECT_BYTES = 1 << 18
"""Minimum size of a direct write. Smaller writes are faster through the page cache."""


class DirectWriter:
    """Writes rows of a file in large blocks, which several workers fill together.

    A copy into the page cache costs about a tenth of decoding a JPEG. With O_DIRECT the disk reads whole pages from the
    memory of the process. The rest, and file systems without O_DIRECT, go through the page cache. Each write has a fixed
    cost, so blocks are large.

    Args:
        path: The file. It must have its final size.
        offset: Offset of row 0 in the file, in bytes.
        row_bytes: Bytes of a row.
        block_rows: Maximum number of rows of a block.
        num_blocks: Number of blocks that may be in use at a time.

    Attributes:
        known_checksums: After the context ends: checksums of the chunks of the file that were written completely, by
            number.

    Raises:
        OSError: At the end of the context, and in `ranges`: the first write that failed.
    """

    def __init__(self, path: Path, offset: int, row_bytes: int, block_rows: int, num_blocks: int) -> None:
        self.known_checksums: dict[int, str] = {}
        self._offset, self._row_bytes, self._block_rows = offset, row_bytes, block_rows
        self._cached = os.open(path, os.O_RDWR)
        self._direct = -1
        try:
            if hasattr(os, "O_DIRECT") and block_rows * row_bytes >= MIN_DIRECT_BYTES:
                self._direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError:
            pass
        self._free: queue.LifoQueue[NDArray[np.uint8] | None] = queue.LifoQueue()  # last in, first out: likely cached
        for _ in range(num_blocks):
            self._free.put(None)  # the memory is allocated on first use
        self._pool = ThreadPoolExecutor(2, "spurmix-writer")
        self._guard = threading.Lock()
        self._error: BaseException | None = None
        self._written: dict[int, tuple[int, int]] = {}  # size and CRC-32 of written bytes, by their offset in the file

    def ranges(self, first: int, count: int, range_rows: int) -> Iterator[WriteRange]:
        """Yield memory for rows [first, first + count), at most `range_rows` at a time. Waits until memory is free.

        Pass every range to `submit`, or call `abort`.
        """
        for block_rows in chunks(count, self._block_rows):
            memory = self._free.get()
            if self._error is not None:
                self._free.put(memory)  # wakes up the next thread that waits
                raise self._error
            if memory is None:
                size = self._block_rows * self._row_bytes + PAGE
                memory = pages(size) if HAS_PAGES else np.empty(size, dtype=np.uint8)
            begin = first + block_rows.start
            block = _Block(memory, self._offset + begin * self._row_bytes, len(block_rows), self._row_bytes)
            for rows in chunks(len(block_rows), range_rows):
                yield WriteRange(block, begin, rows, self._row_bytes)

    def submit(self, filled: WriteRange, on_written: Callable[[], None]) -> None:
        """Submit a filled range. Its block is written when all ranges are filled; then `on_written` is called."""
        block = filled.block
        with self._guard:
            block.filled.append((filled, on_written))
            block.rows_left -= filled.count
            if block.rows_left:
                return
        self._pool.submit(self._finish, block)

    def abort(self, error: BaseException) -> None:
        """Report that a range cannot be filled. Its block is not written, and `ranges` raises the error."""
        with self._guard:
            self._error = self._error or error
        self._free.put(None)

    def _finish(self, block: _Block) -> None:
        try:
            self._write(block.data, block.offset)
            for filled, on_written in block.filled:
                self._written.update(filled.chunk_checksums())
                on_written()
        except BaseException as error:  # raised by `ranges`, because this is a thread of a pool
            self.abort(error)
        finally:
            self._free.put(block.memory)

    def _write(self, data: NDArray[np.uint8], offset: int) -> None:
        end = offset + data.size
        head, tail = min(-(-offset // PAGE) * PAGE, end), end // PAGE * PAGE
        if self._direct < 0 or tail - head < MIN_DIRECT_BYTES:
            _write_all(self._cached, data, offset)
            return
        _write_all(self._cached, data[: head - offset], offset)
        _write_all(self._cached, data[tail - offset :], tail)
        try:
            _write_all(self._direct, data[head - offset : tail - offset], head)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _write_all(self._cached, data[head - offset : tail - offset], head)

    def _complete_checksums(self) -> dict[int, str]:
        """Return the checksums of chunks that were written completely, by number."""
        host, size, found = host_module(), os.fstat(self._cached).st_size, dict[int, str]()
        if host is None:
            return found
        written = {0: (self._offset, host.file_crc32(self._cached, 0, self._offset)[0]), **self._written}
        for number, begin in enumerate(range(0, size, checksums.CHUNK)):
            at, crc, end = begin, 0, min(begin + checksums.CHUNK, size)
            while at < end and at in written:
                crc = host.crc32_joined(crc, written[at][1], written[at][0])
                at += written[at][0]
            if at == end:
                found[number] = f"{crc:08x}"
        return found

    def __enter__(self) -> DirectWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None and self._error is None:
            self.known_checksums = self._complete_checksums()
        for handle in (self._cached, self._direct):
            if handle >= 0:
                os.close(handle)
        if error is None and self._error is not None:
            raise self._error


class _Block:
    """Rows in memory, aligned within pages as in the file. `data` is written at byte `offset` of the file."""

    def __init__(self, memory: NDArray[np.uint8], offset: int, count: int, row_bytes: int) -> None:
        skip = offset % PAGE
        self.memory, self.offset, self.rows_left = memory, offset, count
        self.data = memory[skip : skip + count * row_bytes]
        self.filled: list[tuple[WriteRange, Callable[[], None]]] = []


class WriteRange:
    """`count` consecutive rows of a block. The first one is row `first` of the file."""

    def __init__(self, block: _Block, block_first: int, rows: range, row_bytes: int) -> None:
        self.block, self.first, self.count, self._row_bytes = block, block_first + rows.start, len(rows), row_bytes
        self._data = block.data[rows.start * row_bytes : rows.stop * row_bytes]
        self._offset = block.offset + rows.start * row_bytes
        self._crcs: dict[int, int] = {}  # CRC-32 of the bytes in each chunk of the file, by chunk number
        self._host = host_module()

    def set_row(self, k: int, image: Image | NDArray[np.uint8] | None) -> None:
        """Fill row k with an RGB image, or with zeros. Fill the rows in order."""
        host, to_arrow = self._host, getattr(image, "__arrow_c_array__", None)
        begin, end = k * self._row_bytes, (k + 1) * self._row_bytes
        if host is not None and to_arrow is not None:
            number = (self._offset + begin) // checksums.CHUNK
            last_number = (self._offset + end - 1) // checksums.CHUNK
            try:
                crc = host.pack_rgb(to_arrow()[1], self._row_bytes // 3, self._data, begin, self._crcs.get(number, 0))
            except ValueError:
                pass  # Pillow stores large images in several pieces
            else:
                if number == last_number:
                    self._crcs[number] = crc
                else:
                    self._add_checksums(begin, end)
                return
        self._data[begin:end] = 0 if image is None else np.asarray(image).reshape(-1)
        self._add_checksums(begin, end)

    def _add_checksums(self, begin: int, end: int) -> None:
        if self._host is None:
            return
        numbers = range((self._offset + begin) // checksums.CHUNK, (self._offset + end - 1) // checksums.CHUNK + 1)
        for number in numbers:
            first, last = (max(0, (number + k) * checksums.CHUNK - self._offset) for k in (0, 1))
            part = self._data[max(begin, first) : min(end, last)]
            self._crcs[number] = self._host.crc32(part, self._crcs.get(number, 0))

    def chunk_checksums(self) -> dict[int, tuple[int, int]]:
        """Return size and CRC-32 of the range's bytes in each chunk of the file, by offset of the first byte."""
        end, found = self._offset + self._data.size, {}
        for number, crc in self._crcs.items():
            begin = max(self._offset, number * checksums.CHUNK)
            found[begin] = (min(end, (number + 1) * checksums.CHUNK) - begin, crc)
        return found


def _write_all(handle: int, data: NDArray[np.uint8], offset: int) -> None:
    left = memoryview(data.data)
    while left:
        count = os.pwrite(handle, left, offset)
        left, offset = left[count:], offset + count
