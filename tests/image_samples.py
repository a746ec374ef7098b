"""Small image files and folders for tests of packing."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spurmix.data.dataset.format import with_checksum
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.manifest import Manifest


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The content of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(value: int, size: tuple[int, int] = (6, 6)) -> bytes:
    """A PNG file whose pixels all have one value."""
    return encoded(Image.fromarray(np.full((*size, 3), value % 256, dtype=np.uint8)))


def save_image(path: Path, value: int = 0, size: tuple[int, int] = (20, 30)) -> None:
    """Write an image whose pixels all have one value, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value % 256, dtype=np.uint8)).save(path)


def birds(root: Path, count: int = 24) -> Path:
    """Write a folder in the layout of Waterbirds. The pixels of row n have the value 7 n."""
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    for n in range(count):
        name = f"{n % 3:03d}.Bird/Bird_{n:04d}.png"
        save_image(root / name, 7 * n)
        rows.append(f"{n},{name},{n % 2},{n % 3},{n // 2 % 2},x")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def class_folder(root: Path, count: int = 12, unreadable: tuple[int, ...] = ()) -> Manifest:
    """Write one class folder. The pixels of file n have the value n; unreadable files are empty."""
    (root / "images/cat").mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (root / f"images/cat/{n:02d}.png").write_bytes(b"" if n in unreadable else png(n))
    return from_folder(root / "images")


def png_with_size(width: int, height: int) -> bytes:
    """A PNG file whose header has a wrong size."""
    data = encoded(Image.new("RGB", (8, 8)))
    header = data[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def idx(array: NDArray[np.uint8]) -> bytes:
    """The content of an idx file."""
    head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


def edit_description(folder: Path, **changes: Any) -> None:
    """Change fields of `dataset.json`, with a valid checksum."""
    path = folder / "dataset.json"
    path.write_text(json.dumps(with_checksum(json.loads(path.read_text()) | changes)))
