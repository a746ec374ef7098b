"""Image augmentation inside the fused pass: random resized crop and horizontal flip, part of the draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spurmix.core import checks


@dataclass(frozen=True)
class Augment:
    """Random resized crop and horizontal flip of each image of a pair by itself, before they are mixed.

    Args:
        size: output (height, width) or one number for both; None keeps the images' size.
        crop: whether to crop at random; False resizes nothing and needs `size` to be the images' own.
        scale: range of the crop's area relative to the image, 0 < low <= high <= 1.
        ratio: range of its aspect ratio (width / height), 0 < low <= high.
        flip: whether to mirror with probability 1/2.

    The parameters are those of torchvision's RandomResizedCrop; a crop is drawn in one shot and clamped to the image
    where it would leave it, instead of being drawn again. Pixels are bilinear, without antialiasing.
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
        """(height, width) of the output for images of this size.

        Raises:
            ValueError: where `size` asks for another size without `crop`.
        """
        if self.size is None:
            return height, width
        assert isinstance(self.size, tuple)
        if not self.crop and self.size != (height, width):
            raise ValueError(f"augment: size {self.size} differs from the images' {(height, width)}, which needs crop")
        return self.size


NO_AUGMENT = Augment(crop=False, flip=False)
