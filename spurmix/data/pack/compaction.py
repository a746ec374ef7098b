"""Leaving out rows of an array that fills the disk: the others move up in the file itself, and a kill at any moment loses
nothing."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spurmix.data.dataset.packed import DatasetError, array_header
from spurmix.data.pack.job import DONE

JOURNAL = "moved.json"
"""Rows that were moved; where it is there, `images.npy` is no longer what the plan says."""
BLOCK = 1 << 22
"""Bytes that are moved at a time."""


class Moving:
    """Rows of `images.npy` of uint8 `shape` that move up to where they belong once others are left out.

    Row k of what is kept comes from row `kept[k]`, further down, so those that are not moved yet stay as they are. Rows move
    in blocks no longer than the gap, so that a block can be moved again, and the journal counts them before the next.

    Attributes:
        began: whether a job that was killed had begun to move. kept: its rows, ascending, int64. failed: the others, why.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = folder, shape
        self.journal = folder / JOURNAL
        self.began = self.journal.is_file()
        if self.began:
            try:
                failed = json.loads(self.journal.read_text())
                self.failed = [(str(source), str(reason)) for source, reason in failed]
                state = np.load(folder / "state.npy", allow_pickle=False)
            except (OSError, ValueError, TypeError) as error:
                raise DatasetError(f"{folder} is damaged ({error}); remove it and pack again") from None
            self.kept = np.flatnonzero(state == DONE)

    def move(self, kept: NDArray[np.int64], failed: list[tuple[str, str]]) -> None:
        """Keep the rows `kept` alone, whether it was begun or not; failed: those that are left out, for the report."""
        images, row_bytes = self.folder / "images.npy", math.prod(self.shape[1:])
        head = io.BytesIO()
        shape = (kept.size, *self.shape[1:])
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        begin = head.tell()  # NumPy leaves room for any count
        if not self.began:
            assert array_header(images)[2] == begin
            temporary = self.journal.with_suffix(".part")
            temporary.write_text(json.dumps(failed))
            (self.folder / "moved.bin").write_bytes(bytes(8))
            temporary.replace(self.journal)
        with images.open("r+b", buffering=0) as file, (self.folder / "moved.bin").open("r+b", buffering=0) as counter:
            at = int.from_bytes(os.pread(counter.fileno(), 8, 0), "little")
            most = max(1, BLOCK // row_bytes)
            while at < kept.size:
                source = int(kept[at])
                if source == at:  # nothing before it is left out
                    at = int(np.argmax(kept != np.arange(kept.size))) if kept[-1] != kept.size - 1 else kept.size
                    continue
                count = min(most, source - at, kept.size - at)
                run = np.flatnonzero(np.diff(kept[at : at + count]) != 1)
                count = int(run[0]) + 1 if run.size else count
                _copy(file.fileno(), begin + source * row_bytes, begin + at * row_bytes, count * row_bytes)
                at += count
                os.pwrite(counter.fileno(), at.to_bytes(8, "little"), 0)
            os.truncate(file.fileno(), begin + kept.size * row_bytes)
            _write(file.fileno(), head.getvalue(), 0)


def _copy(descriptor: int, source: int, target: int, size: int) -> None:
    """Copy bytes of a file to another place of it."""
    data = bytearray()
    while len(data) < size:
        found = os.pread(descriptor, size - len(data), source + len(data))
        if not found:
            raise DatasetError("images.npy is shorter than it was; remove the folder and pack again")
        data += found
    _write(descriptor, data, target)


def _write(descriptor: int, data: bytes | bytearray, at: int) -> None:
    left = memoryview(data)
    while left:
        done = os.pwrite(descriptor, left, at)
        left, at = left[done:], at + done
