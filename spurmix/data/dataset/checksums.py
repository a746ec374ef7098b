"""Checksums of files, by chunks: damage is found and said where."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spurmix.core.cells import host_module
from spurmix.core.progress import bar

CHUNK = 1 << 24
"""Bytes a checksum covers."""


@dataclass(frozen=True)
class Damage:
    """Bytes [begin, end) of a file that are not those that were written."""

    file: Path
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.file}: bytes {self.begin:,} to {self.end:,} are damaged"


def of_bytes(path: Path, begin: int, size: int) -> tuple[str, int]:
    """The CRC-32 of bytes [begin, begin + size) of a file, and how many of them it has: what finds damage, at many times
    the speed of a cryptographic digest."""
    host = host_module()
    with path.open("rb", buffering=0) as file:
        if host is not None:
            crc, count = host.file_crc32(file.fileno(), begin, size)
        else:
            data = os.pread(file.fileno(), size, begin)
            crc, count = zlib.crc32(data), len(data)
    return f"{crc:08x}", count


def of_file(path: Path, known: Mapping[int, str] | None = None) -> list[str]:
    """The checksum of every `CHUNK` bytes of a file; known: of some of them, by number."""
    count = -(-path.stat().st_size // CHUNK)
    found = dict(known or {})
    missing = [number for number in range(count) if number not in found]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found.update(zip(missing, pool.map(lambda n: of_bytes(path, n * CHUNK, CHUNK)[0], missing), strict=True))
    return [found[number] for number in range(count)]


def damages(
    folder: Path,
    files: Mapping[str, Any],
    chunk: int,
    progress: bool | None,
    within: Mapping[str, tuple[int, int]] | None = None,
) -> list[Damage]:
    """Where files differ from their checksums: files by name, {"size": bytes, "checksums": one for each `chunk`}.

    within: of these files only what covers the bytes [begin, end).
    """
    work: list[tuple[str, int, str]] = []
    for name, record in files.items():
        begins = range(0, record["size"], chunk)
        low, high = (within or {}).get(name, (0, record["size"]))
        pairs = zip(begins, record["checksums"], strict=True)
        work += [(name, begin, digest) for begin, digest in pairs if low < begin + chunk and begin < high]
    damaged = []
    for name, begin, digest in bar(work, "verifying", total=len(work), size=chunk >> 20, unit="MiB", shown=progress):
        path = folder / name
        found, count = of_bytes(path, begin, chunk)
        if found != digest:
            damaged.append(Damage(path, begin, begin + count))
    return damaged
