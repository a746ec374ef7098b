"""Image files to arrays, through Pillow: upright, RGB, of one size. What cannot be read says why."""

from __future__ import annotations

import functools
import io
import os
import stat
from typing import Any

import numpy as np
from numpy.typing import NDArray

FITS = ("crop", "exact")
MAX_PIXELS = 1 << 27
"""Pixels above which an image is refused: a small file can claim any size."""

MAX_BYTES = 1 << 30
"""Bytes above which a file is refused before it is read: no image of that many pixels takes more."""

DEEP = ("PNG", "PPM")
"""Formats whose 16-bit images Pillow may open as 32-bit ones."""

ORIENTATION = 0x0112
"""EXIF's number for how a camera was held."""


class ImageError(ValueError):
    """An image that cannot be used."""


def stamp_of(found: os.stat_result) -> int:
    """A number, 0 or more, that is another once the file is."""
    return (found.st_mtime_ns * 1_000_003 ^ found.st_size) & (1 << 63) - 1


def stamped_bytes(path: str) -> tuple[bytes, int]:
    """What a file of this machine holds, and its stamp from before it was read.

    Raises:
        ImageError: for a pipe, a device and the like, which might never end, and more than 2^30 bytes. OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # not to wait for a writer where it is a pipe
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("is no regular file")
        if found.st_size > MAX_BYTES:
            raise ImageError(f"{found.st_size:,} bytes are more than {MAX_BYTES:,}")
        data = os.read(handle, found.st_size)
        while len(data) < found.st_size and (more := os.read(handle, found.st_size - len(data))):
            data += more
        return data, stamp_of(found)
    finally:
        os.close(handle)


def file_bytes(path: str) -> bytes:
    """What a file of this machine holds; errors as of `stamped_bytes`."""
    return stamped_bytes(path)[0]


@functools.cache
def pillow() -> tuple[Any, Any]:
    """PIL.Image and PIL.ImageOps, or an error that names the extra."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise ImportError("reading images needs the package 'pillow': pip install 'spurmix[data]'") from error
    return Image, ImageOps


def decode(data: bytes, size: tuple[int, int], fit: str = "crop") -> NDArray[np.uint8]:
    """The image in the bytes of a file, uint8 `[height, width, 3]`; arguments and errors as of `decoded`."""
    return np.asarray(decoded(data, size, fit))


def decoded(data: bytes, size: tuple[int, int], fit: str = "crop") -> Any:
    """The image in the bytes of a file, an RGB image of Pillow's of that size.

    EXIF's orientation is applied, palettes, grey and CMYK become RGB, 16-bit values keep their upper 8 bits, an alpha
    channel is dropped.

    Args:
        size: (height, width). fit: "crop" resizes the image until it covers `size` and cuts out the centre; "exact" resizes
            both sides, whatever the proportions. Bilinear, with Pillow's antialiasing.

    Raises:
        ImageError: for empty, unknown, truncated or damaged data, 32-bit images, and more than 2^27 pixels.
    """
    library, operations = pillow()
    if not data:
        raise ImageError("the file is empty")
    try:
        with library.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
            if image.mode == "F" or (image.mode == "I" and image.format not in DEEP):
                raise ImageError("32-bit and signed images are not supported: their range is unknown")
            if image.getexif().get(ORIENTATION, 1) != 1:  # turning copies the image, which most need not
                image = operations.exif_transpose(image)
            return fitted(image, size, fit)
    except ImageError:
        raise
    except library.UnidentifiedImageError:
        raise ImageError("no image of a known format") from None
    except Exception as error:  # decoders raise whatever broken data lead them to
        raise ImageError(f"cannot be read: {error}") from None


def fitted(image: Any, size: tuple[int, int], fit: str) -> Any:
    """A Pillow image as RGB of that size, see `decoded`."""
    library, operations = pillow()
    if image.mode.startswith("I;16") or image.mode == "I":
        image = library.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGB")
    target = (size[1], size[0])
    if image.size != target:
        method = library.Resampling.BILINEAR
        image = operations.fit(image, target, method=method) if fit == "crop" else image.resize(target, method)
    image.load()  # now, as its file is closed after this
    return image
