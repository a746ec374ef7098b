"""`DirectWriter` and the native helpers that it uses."""

from __future__ import annotations

import errno
import itertools
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spurmix.core.cells import host_module
from spurmix.data.dataset import checksums
from spurmix.data.pack import writer as writer_module
from spurmix.data.pack.writer import DirectWriter


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 1), (64, 33), (300, 300)])
def test_pack_rgb(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    image, count, host = Image.fromarray(pixels), size[0] * size[1], host_module()
    out = np.full(3 * count + 9, 7, dtype=np.uint8)
    crc = host.pack_rgb(image.__arrow_c_array__()[1], count, out, 5, 3)
    assert crc == zlib.crc32(pixels.tobytes(), 3)
    assert out.tolist() == [7] * 5 + pixels.ravel().tolist() + [7] * 4
    for other, number in ((image, count + 1), (image.convert("L"), count)):
        with pytest.raises(ValueError, match="pixels of four bytes"):
            host.pack_rgb(other.__arrow_c_array__()[1], number, out, 0)
    for at in (-1, 10):
        with pytest.raises(IndexError, match="too small"):
            host.pack_rgb(image.__arrow_c_array__()[1], count, out, at)
    with pytest.raises(TypeError, match="arrow_array"):
        host.pack_rgb(image.__arrow_c_schema__(), count, out, 0)


@pytest.mark.parametrize(("row_bytes", "direct"), [(3 * 5000, 1), (3 * 4096, 1), (3 * 50, 1 << 30)])
def test_blocks_are_written_with_checksums(
    row_bytes: int, direct: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges in any order and at odd offsets, with and without the page cache. Partly written chunks have no checksum."""
    monkeypatch.setattr(writer_module, "MIN_DIRECT_BYTES", direct)
    monkeypatch.setattr(checksums, "CHUNK", 7000)
    rows = np.random.default_rng(2).integers(0, 256, (41, row_bytes), dtype=np.uint8)
    content = bytes(range(100)) + rows.tobytes()
    (tmp_path / "f").write_bytes(content[:100] + bytes(rows.size))
    done: list[int] = []
    with DirectWriter(tmp_path / "f", 100, row_bytes, 8, 3) as writer:
        for first, count in ((16, 25), (0, 16)):
            parts = writer.ranges(first, count, 3)
            while batch := list(itertools.islice(parts, 3)):  # the ranges of a block, the last one first
                for part in reversed(batch):
                    for k, row in enumerate(rows[part.first : part.first + part.count]):
                        part.set_row(k, Image.fromarray(row.reshape(1, -1, 3)) if k % 3 else row)
                    writer.submit(part, lambda part=part: done.extend(range(part.first, part.first + part.count)))
    assert sorted(done) == list(range(41)) and (tmp_path / "f").read_bytes() == content
    sums = checksums.file_checksums(tmp_path / "f")
    assert [writer.known_checksums[k] for k in range(len(sums))] == sums
    with DirectWriter(tmp_path / "f", 100, row_bytes, 8, 1) as writer:
        (part,) = writer.ranges(8, 8, 8)
        for k, row in enumerate(rows[8:16]):
            part.set_row(k, row)
        writer.submit(part, lambda: None)
    assert len(writer.known_checksums) < len(sums) and all(sums[k] == v for k, v in writer.known_checksums.items())
    assert checksums.file_checksums(tmp_path / "f", writer.known_checksums) == sums


def test_block_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(bytes(1000))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(writer_module.os, "pwrite", full)
    with pytest.raises(OSError, match="full"), DirectWriter(tmp_path / "f", 0, 100, 2, 1) as writer:
        for part in writer.ranges(0, 4, 2):
            writer.submit(part, lambda: None)


def test_abort_wakes_waiting_threads(tmp_path: Path) -> None:
    """The block is not written, and no callback is called."""
    (tmp_path / "f").write_bytes(bytes(1000))
    done: list[int] = []
    with pytest.raises(KeyError, match="lost"), DirectWriter(tmp_path / "f", 0, 100, 4, 1) as writer:
        parts = writer.ranges(0, 8, 2)
        first, second = next(parts), next(parts)
        first.set_row(0, np.full(100, 7, dtype=np.uint8))
        writer.submit(first, lambda: done.append(0))
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                next(parts)
            except KeyError as error:
                raised.append(error)

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        writer.abort(KeyError("lost"))
        waiting.join(10)
        assert not waiting.is_alive() and str(raised[0]) == "'lost'"
        assert second.count == 2
    assert done == [] and (tmp_path / "f").read_bytes() == bytes(1000)
