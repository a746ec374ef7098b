"""Decoding of image files with Pillow: upright, RGB, resized. Errors name the reason."""

from __future__ import annotations

import functools
import io
import os
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spurmix.core.files import FileError, read_limited
from spurmix.core.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

FITS = ("crop", "exact")
FORMATS_OPENED_AS_32_BIT = ("PNG", "PPM")
"""Formats with 16-bit images that Pillow may open as 32-bit images."""

ORIENTATION_TAG = 0x0112
"""EXIF tag of the camera's orientation."""


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
    """Return `PIL.Image` and `PIL.ImageOps`.

    Raises `ImportError` if Pillow is missing. The message names the extra to install.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise ImportError("reading images needs the package 'pillow': pip install 'spurmix[data]'") from error
    return Image, ImageOps


def decode(data: bytes, size: tuple[int, int], fit: str = "crop") -> NDArray[np.uint8]:
    """Decode an image file to uint8 `[height, width, 3]`. Arguments and errors are those of `decode_image`."""
    return np.asarray(decode_image(data, size, fit))


def decode_image(data: bytes, size: tuple[int, int], fit: str = "crop") -> Image:
    """Decode an image file to an RGB Pillow image.

    EXIF orientation is applied. Palettes, gray and CMYK become RGB. 16-bit values keep their upper 8 bits. An alpha
    channel is dropped.

    Args:
        data: Content of the file.
        size: (height, width) in pixels.
        fit: "crop" resizes the image until it covers `size` and keeps the center. "exact" resizes both sides
            and ignores the proportions. Both are bilinear with Pillow's antialiasing.

    Returns:
        The image, (width, height) = `size[::-1]`.

    Raises:
        ImageError: If the data is empty, truncated or damaged, has an unknown format or 32-bit values, or the image has
            more than `MAX_IMAGE_PIXELS` pixels.
    """
    image_module, operations = import_pillow()
    if not data:
        raise ImageError("the file is empty")
    try:
        with image_module.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise ImageError(f"has {width} x {height} pixels, the maximum is {MAX_IMAGE_PIXELS:,}")
            if image.mode == "F" or (image.mode == "I" and image.format not in FORMATS_OPENED_AS_32_BIT):
                raise ImageError("32-bit and signed images are not supported, because their range is unknown")
            if image.getexif().get(ORIENTATION_TAG, 1) != 1:  # exif_transpose copies the image even if upright
                image = operations.exif_transpose(image)
            return to_rgb_of_size(image, size, fit)
    except ImageError:
        raise
    except image_module.UnidentifiedImageError:
        raise ImageError("is not an image of a known format") from None
    except Exception as error:  # decoders raise exceptions of any type on damaged data
        raise ImageError(f"cannot be read: {error}") from None


def to_rgb_of_size(image: Image, size: tuple[int, int], fit: str) -> Image:
    """Convert a Pillow image to RGB and resize it as `decode_image` does."""
    image_module, operations = import_pillow()
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image_module.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGB")
    target = (size[1], size[0])
    if image.size != target:
        method = image_module.Resampling.BILINEAR
        image = operations.fit(image, target, method=method) if fit == "crop" else image.resize(target, method)
    image.load()  # decode now: the file is closed after this
    return image
