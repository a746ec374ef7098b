"""Checksums, pixels and stripes: what packing writes, and how it knows that it did."""

from __future__ import annotations

import errno
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spurmix.core.cells import host_module
from spurmix.data import checksums, stripes


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
        for first in (16, 0, 8, 24, 32, 40):
            stripe = writer.take(first, min(8, 41 - first))
            for k, row in enumerate(rows[first : first + 8]):
                stripe.set(k, Image.fromarray(row.reshape(1, -1, 3)) if k % 3 else row)
            writer.put(stripe, lambda first=first: done.append(first))
    assert sorted(done) == [0, 8, 16, 24, 32, 40] and (tmp_path / "f").read_bytes() == content
    sums = checksums.of_file(tmp_path / "f")
    assert [writer.sums[k] for k in range(len(sums))] == sums
    with stripes.StripeWriter(tmp_path / "f", 100, row_bytes, 8, 1) as writer:
        stripe = writer.take(8, 8)
        for k, row in enumerate(rows[8:16]):
            stripe.set(k, row)
        writer.put(stripe, lambda: None)
    assert len(writer.sums) < len(sums) and all(sums[k] == v for k, v in writer.sums.items())
    assert checksums.of_file(tmp_path / "f", writer.sums) == sums


def test_a_stripe_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(bytes(1000))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(stripes.os, "pwrite", full)
    with pytest.raises(OSError, match="full"), stripes.StripeWriter(tmp_path / "f", 0, 100, 2, 1) as writer:
        writer.put(writer.take(0, 2), lambda: None)
        writer.take(2, 2)
