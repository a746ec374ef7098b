"""Decoding of image files with Pillow: upright, RGB, resized. Errors name the reason."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from spurmix.core.files import FileError, read_limited
from spurmix.core.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_PROFILE_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image

FITS = ("crop", "exact")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats that are opened. Pillow would hand other formats, such as PostScript, to further programs."""

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif",
)  # fmt: skip
"""Suffixes of files in these formats, in lower case."""

FORMATS_OPENED_AS_32_BIT = ("PNG", "PPM")
"""Formats with 16-bit images that Pillow may open as 32-bit images."""

WHITE = (255, 255, 255)
MAX_ROUNDING = 2
"""Largest change by a color profile that counts as sRGB."""
ORIENTATION_TAG = 0x0112
"""EXIF tag of the camera's orientation."""
BITS_TAG, PHOTOMETRIC_TAG = 258, 262
"""TIFF tags of the bits per sample, and of the meaning of the value 0."""

TRANSPARENT, DEEP, UNKNOWN_PROFILE = "transparent", "deep", "unknown profile"
"""What `decode_image` reports about an image."""
Report: TypeAlias = Callable[[str], None]


class ImageError(FileError):
    """An image cannot be used."""


def file_fingerprint(status: os.stat_result) -> int:
    """Return a non-negative fingerprint that changes when the file changes: size and modification time."""
    return (status.st_mtime_ns * 1_000_003 ^ status.st_size) & (1 << 63) - 1


def read_file_with_fingerprint(path: str) -> tuple[bytes, int]:
    """Read a local file. The fingerprint is taken before reading.

    Raises the errors of `read_limited`.
    """
    data, status = read_limited(path, MAX_IMAGE_BYTES)
    return data, file_fingerprint(status)


def read_file(path: str) -> bytes:
    """Read a local file. Raises the same errors as `read_file_with_fingerprint`."""
    return read_file_with_fingerprint(path)[0]


@functools.cache
def import_pillow() -> tuple[ModuleType, ModuleType]:
    """Return `PIL.Image` and `PIL.ImageOps`. The readers of `FORMATS` are loaded, and no others.

    Raises `ImportError` if Pillow is missing. The message names the extra to install.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise ImportError("reading images needs the package 'pillow': pip install 'spurmix[data]'") from error
    for name in ("Jpeg", "Png", "WebP", "Bmp", "Gif", "Tiff", "Ppm", "Avif"):
        with contextlib.suppress(ImportError):  # Pillow before 11.3 does not read AVIF
            importlib.import_module(f"PIL.{name}ImagePlugin")
    return Image, ImageOps


def parse_background(color: object) -> tuple[int, int, int]:
    """Return a color as (red, green, blue), each in [0, 255].

    Args:
        color: A name such as "white", "#rrggbb", or (red, green, blue).

    Returns:
        The color.

    Raises:
        ValueError: If it is not an opaque color.
    """
    import_pillow()
    from PIL import ImageColor

    try:
        found = ImageColor.getrgb(color) if isinstance(color, str) else color
    except ValueError:
        found = None
    if (
        isinstance(found, (tuple, list))
        and len(found) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in found)
    ):
        return found[0], found[1], found[2]
    raise ValueError(f"background must be a color such as 'white', '#ff0000' or (255, 0, 0), got {color!r}")


def decode(data: bytes, size: tuple[int, int], fit: str = "crop") -> NDArray[np.uint8]:
    """Decode an image file to uint8 `[height, width, 3]`. Arguments and errors are those of `decode_image`."""
    return np.asarray(decode_image(data, size, fit))


def decode_image(
    data: bytes,
    size: tuple[int, int],
    fit: str = "crop",
    background: tuple[int, int, int] = WHITE,
    report: Report = lambda _: None,
) -> Image:
    """Decode an image file to an RGB Pillow image.

    EXIF orientation is applied. Color profiles are converted to sRGB. Palettes, gray and CMYK become RGB. Transparent
    images are placed over `background`. 16-bit values keep their upper 8 bits. The first image of an animation is read.

    Args:
        data: Content of the file, in one of `FORMATS`.
        size: (height, width) in pixels.
        fit: "crop" resizes the image until it covers `size` and keeps the center. "exact" resizes both sides
            and ignores the proportions. Both are bilinear with Pillow's antialiasing.
        background: Color behind transparent pixels.
        report: Called with `TRANSPARENT`, `DEEP` or `UNKNOWN_PROFILE` if the image is transparent, has more than 8 bits per
            channel, or has a color profile that cannot be used.

    Returns:
        The image, (width, height) = `size[::-1]`.

    Raises:
        ImageError: If the data is empty, truncated or damaged, has an unknown format or 32-bit values, or the image has
            more than `MAX_IMAGE_PIXELS` pixels.
    """
    image_module, operations = import_pillow()
    if not data:
        raise ImageError("the file is empty")
    known = [name for name in FORMATS if name in image_module.OPEN]
    try:
        with image_module.open(io.BytesIO(data), formats=known) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise ImageError(f"has {width} x {height} pixels, the maximum is {MAX_IMAGE_PIXELS:,}")
            if image.mode == "F" or (image.mode == "I" and image.format not in FORMATS_OPENED_AS_32_BIT):
                raise ImageError("32-bit and signed images are not supported, because their range is unknown")
            # Pillow itself reduces 16-bit colors to 8 bits. "BGR;16" has 16 bits per pixel.
            layouts = [str(tile[3]) for tile in image.tile]
            if is_deep(image) or any(";16" in layout and "BGR" not in layout for layout in layouts):
                report(DEEP)
            tags = getattr(image, "tag_v2", {})
            depth, inverted = tags.get(BITS_TAG, (16,))[0], tags.get(PHOTOMETRIC_TAG) == 0
            if image.getexif().get(ORIENTATION_TAG, 1) != 1:  # exif_transpose copies the image even if upright
                image = operations.exif_transpose(image)
            if is_deep(image):
                image = _to_8_bits(image, depth, inverted)
            return to_rgb_of_size(image, size, fit, background, report)
    except ImageError:
        raise
    except image_module.UnidentifiedImageError:
        raise ImageError(f"is not an image of a known format ({', '.join(known)})") from None
    except Exception as error:  # decoders raise exceptions of any type on damaged data
        raise ImageError(f"cannot be read: {error}") from None


def is_deep(image: Image) -> bool:
    """Whether an image has one channel of 16 bits, or of 16 bits in 32."""
    return image.mode.startswith("I;16") or image.mode == "I"


def _to_8_bits(image: Image, depth: int = 16, inverted: bool = False) -> Image:
    """Convert an image of one deep channel to gray with the upper 8 bits, and transparency if it has a transparent value."""
    image_module, _ = import_pillow()
    values = np.asarray(image).astype(np.uint32)
    gray = (values >> (depth - 8)).clip(0, 255).astype(np.uint8)
    reduced = image_module.fromarray(255 - gray if inverted else gray)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        reduced.putalpha(image_module.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if "icc_profile" in image.info:
        reduced.info["icc_profile"] = image.info["icc_profile"]
    return reduced


def to_rgb_of_size(
    image: Image,
    size: tuple[int, int],
    fit: str,
    background: tuple[int, int, int] = WHITE,
    report: Report = lambda _: None,
) -> Image:
    """Convert a Pillow image to RGB and resize it as `decode_image` does."""
    image_module, operations = import_pillow()
    if is_deep(image):
        report(DEEP)
        image = _to_8_bits(image)
    profile = image.info.get("icc_profile")
    image, alpha = _split_alpha(image)
    if profile:
        image = _to_srgb(image, profile, report)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        report(TRANSPARENT)
        canvas = image_module.new("RGB", image.size, background)
        canvas.paste(image, mask=alpha)
        image = canvas
    target = (size[1], size[0])
    if image.size != target:
        method = image_module.Resampling.BILINEAR
        image = operations.fit(image, target, method=method) if fit == "crop" else image.resize(target, method)
    image.load()  # decode now: the file is closed after this
    return image


def _split_alpha(image: Image) -> tuple[Image, Image | None]:
    """Return the colors of an image, and its opacity unless all pixels are opaque."""
    transparent = image.info.get("transparency")
    if transparent is None and "A" not in image.getbands() and "a" not in image.getbands():
        return image, None
    if isinstance(transparent, tuple) and max(transparent) > 255:  # a color of 16 bits per channel
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    colors = image.convert("L") if image.mode == "LA" else rgba.convert("RGB")
    return colors, alpha if alpha.getextrema()[0] != 255 else None


def _to_srgb(image: Image, profile: bytes, report: Report) -> Image:
    """Convert the colors of an image from its profile to sRGB. A profile that cannot be used is ignored."""
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    conversion = _conversion(profile, image.mode)
    if conversion is None and image.mode == "L":  # gray images often have a profile of RGB
        image = image.convert("RGB")
        conversion = _conversion(profile, "RGB")
    if conversion is None:
        report(UNKNOWN_PROFILE)
        return image
    return conversion(image)


@functools.lru_cache(maxsize=64)
def _conversion(profile: bytes, mode: str) -> Callable[[Image], Image] | None:
    """Return a function that converts images of a mode from a profile to sRGB, or None if the profile does not fit.

    Most profiles are sRGB already. They are recognized by their effect, and their images are not changed.
    """
    try:
        from PIL import ImageCms
    except ImportError:  # Pillow was built without color management
        return None
    image_module, _ = import_pillow()
    if len(profile) > MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        spaces = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
        if spaces.get(source.profile.xcolor_space.strip()) != mode:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
        sample = image_module.fromarray(colors).convert(mode)
        change = np.asarray(ImageCms.applyTransform(sample, transform)).astype(int) - np.asarray(sample.convert("RGB"))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode != "CMYK" and abs(change).max() <= MAX_ROUNDING:
        return lambda image: image
    return lambda image: cast("Image", ImageCms.applyTransform(image, transform))
