"""Checksums of files."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from image_samples import birds

from spurmix.core.cells import host_module
from spurmix.data.dataset import checksums
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.waterbirds import from_waterbirds


def test_checksums_equal_zlib() -> None:
    host = host_module()
    assert host is not None
    data = np.random.default_rng(5).integers(0, 256, 70_000, dtype=np.uint8).tobytes()
    for size in (*range(1100), 65_537, 70_000):
        cut = size // 3
        assert host.crc32(data[:size]) == zlib.crc32(data[:size]) == host.crc32(data[cut:size], host.crc32(data[:cut]))


def test_checksum_of_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 1200  # longer than one read
    (tmp_path / "f").write_bytes(data)
    for host in (host_module(), None):
        monkeypatch.setattr(checksums, "host_module", lambda host=host: host)
        for begin, size in ((0, len(data)), (7, 300_000), (100, 0), (len(data) - 5, 99), (len(data) + 1, 4)):
            part = data[begin : begin + size]
            assert checksums.range_checksum(tmp_path / "f", begin, size) == (f"{zlib.crc32(part):08x}", len(part))
    with (tmp_path / "f").open("wb") as file, pytest.raises(OSError):
        host_module().file_crc32(file.fileno(), 0, 4)  # not open for reading


def test_verify_finds_a_flipped_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "CHUNK", 256)
    pack_images(from_waterbirds(birds(tmp_path / "birds", 12)), tmp_path / "t", size=8)
    path = tmp_path / "t" / "images.npy"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    (damage,) = PackedDataset(tmp_path / "t").verify()
    assert (damage.begin, damage.end) == (512, 768) and "bytes 512 to 768 are damaged" in str(damage)
