"""Image augmentation in the fused pass: random resized crop and horizontal flip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spurmix.core import checks


@dataclass(frozen=True)
class Augment:
    """Random resized crop and horizontal flip of each image of a pair, before the two are mixed.

    The parameters are those of torchvision's RandomResizedCrop. A crop that exceeds the image is clamped, not drawn again.
    Sampling is bilinear, without antialiasing.

    Args:
        size: Height and width of the output, or one number for both. Default: the size of the images.
        crop: Whether to crop at random. If False, images are not resized, and `size` must be their size.
        scale: Range of the area of the crop relative to the image, 0 < low <= high <= 1.
        ratio: Range of the aspect ratio width / height of the crop, 0 < low <= high.
        flip: Whether to flip with probability 1/2.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> Augment(size=224, scale=(0.5, 1.0)).output_size(256, 256)
        (224, 224)

    Source:
        `docs/draw-specification.md`, section "Augmentation".
    """

    size: int | tuple[int, int] | None = None
    crop: bool = True
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        if self.size is not None:
            size = tuple(self.size) if isinstance(self.size, Sequence) else (self.size, self.size)
            if len(size) != 2:
                raise ValueError(f"augment: size must be one or two positive integers, got {self.size!r}")
            object.__setattr__(self, "size", tuple(checks.integer(v, "augment: size", 1) for v in size))
        for name in ("crop", "flip"):
            object.__setattr__(self, name, checks.flag(getattr(self, name), f"augment: {name}"))
        for name, top in (("scale", 1.0), ("ratio", math.inf)):
            given = getattr(self, name)
            if not isinstance(given, Sequence) or len(given) != 2:
                raise TypeError(f"augment: {name} must be a pair (low, high), got {given!r}")
            low, high = (checks.number(v, f"augment: {name}") for v in given)
            object.__setattr__(self, name, (low, high))
            if not (0 < low <= high <= top and math.isfinite(high)):
                raise ValueError(f"augment: {name} must satisfy 0 < low <= high <= {top:g}, got {(low, high)}")

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the output for images of a size.

        Args:
            height: Height of the images.
            width: Width of the images.

        Returns:
            Height and width.

        Raises:
            ValueError: If `size` is another size and `crop` is False.
        """
        if self.size is None:
            return height, width
        assert isinstance(self.size, tuple)
        if not self.crop and self.size != (height, width):
            raise ValueError(
                f"augment: size must be {(height, width)} like the images with crop=False, got {self.size}"
            )
        return self.size


NO_AUGMENT = Augment(crop=False, flip=False)
