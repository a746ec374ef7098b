"""Checksums of files, in chunks, so that a report of damage names the bytes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from spurmix.core.cells import host_module
from spurmix.core.names import printable
from spurmix.core.progress import bar

CHUNK = 1 << 24
"""Bytes that one checksum covers."""


class FileRecord(TypedDict):
    """Size of a file in bytes and the CRC-32 of each chunk, as `dataset.json` stores them."""

    size: int
    checksums: list[str]


@dataclass(frozen=True)
class Damage:
    """Bytes [begin, end) of a file do not match their checksum.

    Args:
        file: Path of the file.
        begin: First byte of the damaged chunk.
        end: Byte after the last one of the damaged chunk.
    """

    file: Path
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{printable(self.file)}: bytes {self.begin:,} to {self.end:,} are damaged"


def range_checksum(path: Path, begin: int, size: int) -> tuple[str, int]:
    """Return the CRC-32 of bytes [begin, begin + size) of a file, and how many of these bytes the file has."""
    host = host_module()
    with path.open("rb", buffering=0) as file:
        if host is not None:
            crc, count = host.file_crc32(file.fileno(), begin, size)
        else:
            data = os.pread(file.fileno(), size, begin)
            crc, count = zlib.crc32(data), len(data)
    return f"{crc:08x}", count


def file_checksums(path: Path, known: Mapping[int, str] | None = None) -> list[str]:
    """Return the checksum of every chunk of a file.

    Args:
        path: The file.
        known: Checksums that need not be computed, by chunk number.

    Returns:
        Hex digits of the CRC-32 of each chunk.
    """
    count = -(-path.stat().st_size // CHUNK)
    found = dict(known or {})
    missing = [number for number in range(count) if number not in found]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found.update(zip(missing, pool.map(lambda n: range_checksum(path, n * CHUNK, CHUNK)[0], missing), strict=True))
    return [found[number] for number in range(count)]


def find_damage(
    folder: Path,
    files: Mapping[str, FileRecord],
    chunk: int,
    progress: bool | None,
    within: Mapping[str, tuple[int, int]] | None = None,
) -> list[Damage]:
    """Compare files with their checksums.

    Args:
        folder: Folder of the files.
        files: Record of each file, by name.
        chunk: Bytes that one checksum covers.
        progress: Whether to show a progress bar. Default: only on a terminal.
        within: Bytes [begin, end) to check, by file name. Default: the whole file.

    Returns:
        The damaged chunks. The list is empty if there is no damage.
    """
    work: list[tuple[str, int, str]] = []
    for name, record in files.items():
        begins = range(0, record["size"], chunk)
        low, high = (within or {}).get(name, (0, record["size"]))
        pairs = zip(begins, record["checksums"], strict=True)
        work += [(name, begin, expected) for begin, expected in pairs if low < begin + chunk and begin < high]
    damaged = []
    for name, begin, expected in bar(work, "verifying", total=len(work), size=chunk >> 20, unit="MiB", shown=progress):
        path = folder / name
        found, count = range_checksum(path, begin, chunk)
        if found != expected:
            damaged.append(Damage(path, begin, begin + count))
    return damaged
