"""Formats, color profiles, transparency and bit depth of images."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_samples import encoded, png
from PIL import Image, ImageCms
from typer.testing import CliRunner

from spurmix.cli.app import app
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.decode import (
    DEEP,
    FORMATS,
    IMAGE_SUFFIXES,
    TRANSPARENT,
    UNKNOWN_PROFILE,
    ImageError,
    decode,
    decode_image,
    parse_background,
)  # fmt: skip
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.folder import from_folder

RNG = np.random.default_rng(3)
NOISE = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8))
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def decoded(data: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> tuple[Any, set[str]]:
    """Pixels of an image of 8 x 8, and what was reported."""
    reports: set[str] = set()
    return np.asarray(decode_image(data, (8, 8), "exact", background, reports.add)).astype(int), reports


def test_other_formats_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    samples = [POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + bytes(26) + POSTSCRIPT]
    samples += [
        encoded(NOISE, kind) for kind in ("ICO", "PCX", "TGA", "SGI", "PDF", "JPEG2000", "DDS", "ICNS", "MSP")[:7]
    ]
    Image.init()  # even if another package has loaded all readers
    for data in samples:
        with pytest.raises(ImageError, match=r"is not an image of a known format \(JPEG, PNG,"):
            decode(data, (4, 4))


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_are_opened(kind: str) -> None:
    assert decode(encoded(NOISE, kind), (8, 8)).shape == (8, 8, 3)


def test_suffixes_of_folders(tmp_path: Path) -> None:
    names = [f"cat/{n}{suffix}" for n, suffix in enumerate(IMAGE_SUFFIXES)] + ["cat/x.JFIF", "cat/x.Jpe", "cat/x.AVIF"]
    (tmp_path / "cat").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(encoded(NOISE, "AVIF" if name.lower().endswith("avif") else "JPEG"))
    assert sorted(from_folder(tmp_path).metadata.sources) == sorted(names)
    assert pack_images(from_folder(tmp_path), tmp_path / "t", size=8).count == len(names)


def swapped_profile() -> bytes:
    """A profile of RGB whose red and green primaries are exchanged, made from the sRGB profile."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    entries = {bytes(profile[132 + 12 * k : 136 + 12 * k]): 132 + 12 * k for k in range(count)}
    red, green = entries[b"rXYZ"] + 4, entries[b"gXYZ"] + 4
    profile[red : red + 8], profile[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_profiles_are_converted_to_srgb(kind: str) -> None:
    profile = swapped_profile()
    image = Image.new("RGB", (8, 8), (200, 40, 90))
    found, reports = decoded(encoded(image, kind, icc_profile=profile))
    assert not reports and abs(found - [40, 200, 90]).max() <= 6, found[0, 0]


def test_profile_with_orientation_transparency_and_palette() -> None:
    profile = swapped_profile()
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.new("RGBA", (8, 8), (200, 40, 90, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    found, reports = decoded(encoded(image, "PNG", icc_profile=profile, exif=turned), (1, 2, 3))
    assert reports == {TRANSPARENT} and found[0, 7].tolist() == [1, 2, 3]
    assert abs(found[4, 4] - [40, 200, 90]).max() <= 2
    palette = Image.new("RGB", (8, 8), (200, 40, 90)).quantize(4)
    assert abs(decoded(encoded(palette, "PNG", icc_profile=profile))[0] - [40, 200, 90]).max() <= 2


def test_srgb_profiles_change_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found, reports = decoded(encoded(NOISE, "PNG", icc_profile=profile))
    assert not reports and found.tolist() == np.asarray(NOISE).tolist()
    gray = NOISE.convert("L")  # a gray image with a profile of RGB
    found, reports = decoded(encoded(gray, "PNG", icc_profile=profile))
    assert not reports and found[..., 0].tolist() == np.asarray(gray).tolist()


def test_profiles_that_cannot_be_used_are_reported() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"no profile", lab, b"\0" * 200):
        found, reports = decoded(encoded(NOISE, "PNG", icc_profile=profile))
        assert reports == {UNKNOWN_PROFILE} and found.tolist() == np.asarray(NOISE).tolist()


def transparent_images() -> dict[str, bytes]:
    """Files whose left half is black and transparent, and whose right half is gray 100 and opaque."""
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[:, 4:] = (100, 100, 100, 255)
    gray = Image.fromarray(np.repeat(np.array([0, 100], dtype=np.uint8), 4)[None].repeat(8, 0))
    palette = gray.convert("P")
    deep = Image.fromarray(np.repeat(np.array([7, 0x6400], dtype=np.uint16), 4)[None].repeat(8, 0))
    return {
        "RGBA": encoded(Image.fromarray(rgba)),
        "LA": encoded(Image.fromarray(rgba[..., [0, 3]], "LA")),
        "WEBP": encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
        "GIF": encoded(palette, "GIF", transparency=0),
        "P": encoded(palette, "PNG", transparency=0),
        "P with opacities": encoded(palette, "PNG", transparency=bytes([0] + [255] * 255)),
        "L": encoded(gray, "PNG", transparency=0),
        "RGB": encoded(gray.convert("RGB"), "PNG", transparency=(0, 0, 0)),
        "I;16": encoded(deep, "PNG", transparency=7),
        "TIFF": encoded(Image.fromarray(rgba), "TIFF"),
    }


@pytest.mark.parametrize("name", transparent_images())
def test_transparent_pixels_show_the_background(name: str) -> None:
    data = transparent_images()[name]
    for background in ((255, 255, 255), (10, 20, 30)):
        found, reports = decoded(data, background)
        assert found[0, 0].tolist() == list(background) and found[0, 7].tolist() == [100] * 3
        assert TRANSPARENT in reports


def test_half_transparent_and_opaque_pixels() -> None:
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert abs(decoded(encoded(half))[0] - 127).max() <= 1
    opaque = NOISE.convert("RGBA")
    found, reports = decoded(encoded(opaque))
    assert not reports and found.tolist() == np.asarray(NOISE).tolist()


def tiff(values: np.ndarray[Any, np.dtype[np.uint16]], **tags: int) -> bytes:
    """A TIFF file of 16-bit gray with changed tags."""
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF", tiffinfo={262: tags.get("photometric", 1)})
    return stream.getvalue()


def test_deep_images_keep_their_upper_bits() -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    for data in (encoded(Image.fromarray(values), "PNG"), tiff(values), encoded(Image.fromarray(values), "PPM")):
        found, reports = decoded(data)
        assert reports == {DEEP} and found[..., 0].tolist() == (values >> 8).tolist()
    found, reports = decoded(tiff(values, photometric=0))
    assert found[..., 0].tolist() == (255 - (values >> 8)).tolist()


def test_notes_and_background_of_packing(tmp_path: Path) -> None:
    (tmp_path / "root/cat").mkdir(parents=True)
    images = transparent_images()
    for n, name in enumerate(("RGBA", "LA", "I;16")):
        (tmp_path / f"root/cat/{n}.png").write_bytes(images[name])
    (tmp_path / "root/cat/3.png").write_bytes(png(5))
    report = pack_images(from_folder(tmp_path / "root"), tmp_path / "t", size=8)
    assert report.notes == (
        "3 images with transparency placed over white (the option background changes it)",
        "1 image with 16 bits per channel reduced to the upper 8 bits",
    )
    assert PackedDataset(tmp_path / "t").array[0, 0, 0].tolist() == [255] * 3
    arguments = ["pack", str(tmp_path / "root"), str(tmp_path / "u"), "--size", "8", "--background", "#0a141e"]
    shown = CliRunner().invoke(app, arguments)
    assert "3 images with transparency placed over #0a141e" in shown.stdout
    data = PackedDataset(tmp_path / "u")
    assert data.array[0, 0, 0].tolist() == [10, 20, 30] and data.provenance["background"] == [10, 20, 30]


@pytest.mark.parametrize("color", ["wite", "#12", "#ffffff80", (1, 2), (1, 2, 256), (1.0, 2, 3), None, 5])
def test_invalid_backgrounds(color: Any) -> None:
    with pytest.raises(ValueError, match="background must be a color such as 'white'"):
        parse_background(color)
    assert parse_background("red") == parse_background([255, 0, 0]) == (255, 0, 0)


def test_tiff_with_12_bits() -> None:
    pixels = bytes((0x12, 0x3F, 0xFF, 0x80, 0x00, 0x01))  # the values 0x123, 0xFFF, 0x800 and 0x001
    tags = ((256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 8 * 12 + 4), (277, 1), (279, len(pixels)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels
    reports: list[str] = []
    found = np.asarray(decode_image(data, (1, 4), "exact", report=reports.append))
    assert found[0, :, 0].tolist() == [0x12, 0xFF, 0x80, 0x00] and reports == [DEEP]
