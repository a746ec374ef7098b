"""Decoding of image files."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_samples import class_folder, encoded, png_with_size
from PIL import Image

from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack import images
from spurmix.data.pack.decode import ImageError, decode
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.job import BrokenFiles
from spurmix.data.pack.layouts.folder import from_folder

RNG = np.random.default_rng(5)


def test_all_image_modes_become_upright_rgb() -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, :3] = (200, 30, 60)
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6  # rotate by 90 degrees clockwise
    assert decode(encoded(image, "PNG"), (4, 6)).tolist() == pixels.tolist()
    assert decode(encoded(image, "PNG", exif=turned), (6, 4)).tolist() == np.rot90(pixels, -1).tolist()
    assert decode(encoded(image.convert("P"), "GIF"), (4, 6)).shape == (4, 6, 3)
    assert abs(decode(encoded(image.convert("CMYK"), "TIFF"), (4, 6)).astype(int) - pixels).max() <= 2
    assert decode(encoded(image.convert("RGBA"), "PNG"), (4, 6)).tolist() == pixels.tolist()
    assert decode(encoded(image.convert("LA"), "PNG"), (4, 6)).shape == (4, 6, 3)
    deep = Image.fromarray(np.full((4, 6), 0x8123, dtype=np.uint16))
    assert (decode(encoded(deep, "PNG"), (4, 6)) == 0x81).all()
    wide = decode(
        encoded(
            Image.fromarray(np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2)), "PNG"
        ),
        (10, 10),
    )
    assert 95 < wide.mean() < 145 and wide.shape == (10, 10, 3)  # the center of an image 6 times as wide as high


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "is not an image of a known format"),
        (
            encoded(Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")[:700],
            "cannot be read: .*truncated",
        ),
    ],
)
def test_invalid_images_have_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data, (4, 4))


@pytest.mark.filterwarnings("ignore:Image size")
def test_image_with_too_many_pixels() -> None:
    header = encoded(Image.new("RGB", (8, 8)), "PNG")
    claim = header[12:16] + (12_000).to_bytes(4, "big") + (12_000).to_bytes(4, "big") + header[24:29]
    huge = header[:12] + claim + zlib.crc32(claim).to_bytes(4, "big") + header[33:]
    with pytest.raises(ImageError, match="has 12000 x 12000 pixels, the maximum is"):
        decode(huge, (4, 4))


def test_unreadable_and_unusual_images_in_a_folder(tmp_path: Path) -> None:
    class_folder(tmp_path, 2)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    odd = {
        "bomb.png": png_with_size(60_000, 60_000),
        "empty.png": b"",
        "flat.png": png_with_size(0, 8),
        "text.png": b"no image",
        "torn.jpg": encoded(noise, "JPEG")[:600],
        "cmyk.jpg": encoded(Image.new("CMYK", (6, 6)), "JPEG"),
        "deep.png": encoded(Image.fromarray(np.full((6, 6), 0x8123, dtype=np.uint16))),
    }
    for name, data in odd.items():
        (tmp_path / "images/cat" / name).write_bytes(data)
    report = pack_images(from_folder(tmp_path / "images"), tmp_path / "t", size=6, broken="skip")
    reasons = {Path(source).name: reason for source, reason in report.broken}
    assert set(reasons) == {"bomb.png", "empty.png", "flat.png", "text.png", "torn.jpg"} and report.count == 4
    assert "has 60000 x 60000 pixels, the maximum is" in reasons["bomb.png"] or "exceeds limit" in reasons["bomb.png"]
    assert reasons["empty.png"] == "the file is empty" and "truncated" in reasons["torn.jpg"].lower()
    data = PackedDataset(tmp_path / "t")
    kept = dict(zip([Path(s).name for s in data.metadata.sources], data.array[:, 0, 0].tolist(), strict=True))
    assert kept == {"00.png": [0] * 3, "01.png": [1] * 3, "cmyk.jpg": [255] * 3, "deep.png": [0x81] * 3}


def test_16_and_32_bit_images_and_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (np.float32, np.int32):
        with pytest.raises(ImageError, match="32-bit and signed images are not supported"):
            decode(encoded(Image.fromarray(np.full((4, 4), 70_000, dtype=kind)), "TIFF"), (4, 4))
    deep = Image.fromarray(np.full((4, 4), 0x8123, dtype=np.uint16))
    for form in ("TIFF", "PNG", "PPM"):
        assert (decode(encoded(deep, form), (4, 4)) == 0x81).all()
    found = class_folder(tmp_path)
    with (tmp_path / "images/cat/00.png").open("wb") as file:
        os.truncate(file.fileno(), 60 << 30)
    report = pack_images(found, tmp_path / "t", size=4, broken="skip")
    assert report.broken == (("cat/00.png", "has 64,424,509,440 bytes, the maximum is 1,073,741,824"),)
    with monkeypatch.context() as patch:
        patch.setattr(images, "decode_image", lambda *_: bytearray(1 << 62))
        with pytest.raises(BrokenFiles, match="needs more memory than is available"):
            pack_images(found, tmp_path / "u", size=4)
