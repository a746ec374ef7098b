"""Checksums, pixels and stripes: what packing writes, and how it knows that it did."""

from __future__ import annotations

import errno
import itertools
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spurmix.core.cells import host_module
from spurmix.data.dataset import checksums
from spurmix.data.pack import job
from spurmix.data.pack import writer as stripes


def test_checksums_are_those_of_zlib() -> None:
    host = host_module()
    assert host is not None
    data = np.random.default_rng(5).integers(0, 256, 70_000, dtype=np.uint8).tobytes()
    for size in (*range(1100), 65_537, 70_000):
        cut = size // 3
        assert host.crc32(data[:size]) == zlib.crc32(data[:size]) == host.crc32(data[cut:size], host.crc32(data[:cut]))


def test_checksums_of_a_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 1200  # longer than what is read at a time
    (tmp_path / "f").write_bytes(data)
    for host in (host_module(), None):
        monkeypatch.setattr(checksums, "host_module", lambda host=host: host)
        for begin, size in ((0, len(data)), (7, 300_000), (100, 0), (len(data) - 5, 99), (len(data) + 1, 4)):
            part = data[begin : begin + size]
            assert checksums.of_bytes(tmp_path / "f", begin, size) == (f"{zlib.crc32(part):08x}", len(part))
    with (tmp_path / "f").open("wb") as file, pytest.raises(OSError):
        host_module().file_crc32(file.fileno(), 0, 4)  # not open for reading


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 1), (64, 33), (300, 300)])
def test_pixels_are_packed_as_they_are(size: tuple[int, int]) -> None:
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
        with pytest.raises(IndexError, match="no room"):
            host.pack_rgb(image.__arrow_c_array__()[1], count, out, at)
    with pytest.raises(TypeError, match="arrow_array"):
        host.pack_rgb(image.__arrow_c_schema__(), count, out, 0)


@pytest.mark.parametrize(("row_bytes", "direct"), [(3 * 5000, 1), (3 * 4096, 1), (3 * 50, 1 << 30)])
def test_stripes_are_written_with_their_checksums(
    row_bytes: int, direct: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, at odd offsets, past the page cache and through it; chunks that were not written whole are not known."""
    monkeypatch.setattr(stripes, "DIRECT_FROM", direct)
    monkeypatch.setattr(checksums, "CHUNK", 7000)
    rows = np.random.default_rng(2).integers(0, 256, (41, row_bytes), dtype=np.uint8)
    content = bytes(range(100)) + rows.tobytes()
    (tmp_path / "f").write_bytes(content[:100] + bytes(rows.size))
    done: list[int] = []
    with stripes.StripeWriter(tmp_path / "f", 100, row_bytes, 8, 3) as writer:
        for first, count in ((16, 25), (0, 16)):
            parts = writer.parts(first, count, 3)
            while batch := list(itertools.islice(parts, 3)):  # a stripe's parts, or what is left, the last one first
                for part in reversed(batch):
                    for k, row in enumerate(rows[part.first : part.first + part.count]):
                        part.set(k, Image.fromarray(row.reshape(1, -1, 3)) if k % 3 else row)
                    writer.put(part, lambda part=part: done.extend(range(part.first, part.first + part.count)))
    assert sorted(done) == list(range(41)) and (tmp_path / "f").read_bytes() == content
    sums = checksums.of_file(tmp_path / "f")
    assert [writer.sums[k] for k in range(len(sums))] == sums
    with stripes.StripeWriter(tmp_path / "f", 100, row_bytes, 8, 1) as writer:
        (part,) = writer.parts(8, 8, 8)
        for k, row in enumerate(rows[8:16]):
            part.set(k, row)
        writer.put(part, lambda: None)
    assert len(writer.sums) < len(sums) and all(sums[k] == v for k, v in writer.sums.items())
    assert checksums.of_file(tmp_path / "f", writer.sums) == sums


def test_a_stripe_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(bytes(1000))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(stripes.os, "pwrite", full)
    with pytest.raises(OSError, match="full"), stripes.StripeWriter(tmp_path / "f", 0, 100, 2, 1) as writer:
        for part in writer.parts(0, 4, 2):
            writer.put(part, lambda: None)


def test_a_part_that_fails_wakes_who_waits_for_memory(tmp_path: Path) -> None:
    """Its stripe is not written, nor said to be."""
    (tmp_path / "f").write_bytes(bytes(1000))
    done: list[int] = []
    with pytest.raises(KeyError, match="lost"), stripes.StripeWriter(tmp_path / "f", 0, 100, 4, 1) as writer:
        parts = writer.parts(0, 8, 2)
        first, second = next(parts), next(parts)
        first.set(0, np.full(100, 7, dtype=np.uint8))
        writer.put(first, lambda: done.append(0))
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
        writer.fail(KeyError("lost"))
        waiting.join(10)
        assert not waiting.is_alive() and str(raised[0]) == "'lost'"
        assert second.count == 2
    assert done == [] and (tmp_path / "f").read_bytes() == bytes(1000)


def test_workers_take_what_is_next() -> None:
    """Each block once, by as many workers as there are, none after an error; the error is the one that came first."""
    seen: list[int] = []
    assert len(list(job.in_threads(seen.append, iter(range(100)), 3))) == 100 and sorted(seen) == list(range(100))
    assert list(job.in_threads(seen.append, iter(()), 2)) == []
    both = threading.Barrier(2, timeout=10)

    def meet(_: int) -> None:
        both.wait()

    assert len(list(job.in_threads(meet, range(4), 2))) == 4
    taken: list[int] = []

    def third(k: int) -> None:
        taken.append(k)
        if k == 3:
            raise KeyError("third")

    with pytest.raises(KeyError, match="third"):
        list(job.in_threads(third, itertools.count(), 2))
    assert sorted(taken) == list(range(len(taken)))

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(job.in_threads(seen.append, broken(), 3))
    started = job.in_threads(seen.append, itertools.count(1000), 2)
    next(started)
    started.close()  # as when a progress bar is interrupted
    count = len(seen)
    time.sleep(0.02)
    assert len(seen) == count
