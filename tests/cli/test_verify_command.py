"""`spurmix verify`: valid and damaged datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_verify_finds_damaged_bytes(packed: Path, command: Any) -> None:
    assert "all checksums match" in command("verify", packed).stdout
    data = bytearray((packed / "images.npy").read_bytes())
    data[-1] ^= 255
    (packed / "images.npy").write_bytes(data)
    done = command("verify", packed)
    assert done.returncode == 2 and "images.npy: bytes" in done.stdout and "is damaged in 1 place;" in done.stderr
