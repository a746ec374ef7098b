"""Sources of images and features: tensors, NumPy arrays and memory maps, which are not copied."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from spurmix.core.deprecation import renamed_attribute
from spurmix.core.memory import available
from spurmix.data.memory import host_tensor
from spurmix.data.sources.placement import Tier, shown
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops import functional, validate

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def as_tensor(values: Any, name: str) -> Tensor:
    """`values` as a tensor that shares memory with an array or memory map.

    Raises:
        TypeError: for anything that is neither an array nor a tensor, or of a dtype torch does not have.
    """
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{name} must be a tensor, a NumPy array or a memory map, got {type(values).__name__}")
    with warnings.catch_warnings():
        # Read-only memory maps are welcome: sources only ever read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            return torch.from_numpy(values)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: {error}") from None


def free_on(device: torch.device) -> tuple[int, int]:
    """Bytes of a CUDA device that can be had, those torch keeps to use again included, and its total."""
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


def check_fits(values: Tensor, device: torch.device) -> None:
    """Check that a CUDA device has room for `values`.

    Raises:
        MemoryError: saying how large they are, what is free and which way of reading them would fit.
    """
    if values.device == device:
        return
    if values.nbytes > free_on(device)[0]:
        raise _too_large(values, device)


def _too_large(values: Tensor, device: torch.device) -> MemoryError:
    free, total = free_on(device)
    host = available()
    pinned = "source.pinned(), which a GPU reads over the bus; or " if values.nbytes < host else ""
    return MemoryError(
        f"the data take {values.nbytes / 2**30:.1f} GiB, {device} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free: "
        f"keep them on the host ({host / 2**30:.1f} GiB free there) with {pinned}"
        f'MixLoader(source, ..., device="cuda"), which mixes on the CPU and copies the batches'
    )


def moved(values: Tensor, device: torch.device | str) -> Tensor:
    """`values` on `device`.

    Raises:
        MemoryError: as of `check_fits`, also where the room is there but in pieces.
    """
    target = validate.device(device)
    if target.type != "cuda":
        return values.to(target)
    check_fits(values, target)
    try:
        return values.to(target)
    except torch.OutOfMemoryError:
        raise _too_large(values, target) from None


class ImageSource:
    """uint8 images with the normalization that a model expects.

    Args:
        images: Tensor, NumPy array or memory map, uint8 `[N, H, W, C]`, each image contiguous. Not copied.
        mean: Mean per channel, in units of 0 to 1. Default: that of ImageNet for three channels, else 0.5.
        std: Standard deviation per channel. Default: that of ImageNet for three channels, else 0.5.

    Attributes:
        tier: Where the images of a packed dataset are read from, and why.

    Raises:
        TypeError: If the images are not a uint8 tensor or array.
        ValueError: If there are no images, or the shape, layout, mean or std is invalid.

    Example:
        >>> source = ImageSource(np.load("images.npy", mmap_mode="r"))  # doctest: +SKIP
        >>> loader = MixLoader(source, groups, policies.mixup(), 256)  # doctest: +SKIP
    """

    tier: Tier | None = None

    def __init__(
        self, images: Any, *, mean: Sequence[float] | float | None = None, std: Sequence[float] | float | None = None
    ) -> None:
        self.images = validate.images(as_tensor(images, "images"))
        if self.images.shape[0] == 0:
            raise ValueError("images: the dataset is empty, need at least one image")
        self._set_normalization(mean, std, self.images.shape[3], self.images.device)

    def _set_normalization(self, mean: Any, std: Any, channels: int, device: torch.device) -> None:
        is_rgb = channels == 3
        self.mean = validate.normalisation(
            mean if mean is not None else (IMAGENET_MEAN if is_rgb else 0.5), "mean", channels, device
        )
        self.std = validate.normalisation(
            std if std is not None else (IMAGENET_STD if is_rgb else 0.5), "std", channels, device
        )

    def normalized(self, mean: Sequence[float] | float, std: Sequence[float] | float) -> Self:
        """Return a source of the same images with another normalization.

        Args:
            mean: Mean per channel, in units of 0 to 1.
            std: Standard deviation per channel, in the same units.

        Returns:
            The source. It shares the images.

        Raises:
            TypeError: If an argument is not a number or a sequence of numbers.
            ValueError: If the numbers do not match the channels.
        """
        other = copy.copy(self)
        other._set_normalization(mean, std, self.shape[2], self.device)
        return other

    normalised = renamed_attribute("normalized")

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def to(self, device: torch.device | str) -> ImageSource:
        """Copy the images to `device`, as bytes.

        Raises:
            MemoryError: If they do not fit.
        """
        return ImageSource(moved(self.images, device), mean=self.mean.tolist(), std=self.std.tolist())

    def pinned(self) -> ImageSource:
        """Copy the images to pinned host memory, which GPU kernels read directly. For datasets larger than GPU memory.

        Raises:
            ValueError: If CUDA is not available or cannot pin the memory.
        """
        copy = host_tensor(tuple(self.images.shape), torch.uint8, pin_memory=True)
        copy.copy_(self.images)
        return ImageSource(copy, mean=self.mean.tolist(), std=self.std.tolist())

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def gather(self, index: Tensor) -> Tensor:
        """Unmixed, normalised images, float32 `[B, C, H, W]`, where the images are; index int64 `[B]`."""
        index = index.to(self.device)
        ones = torch.ones(index.shape[0], dtype=torch.float32, device=index.device)
        return functional.mix_images(self.images, index, index, ones, mean=self.mean, std=self.std)

    def raw(self, index: Tensor) -> Tensor:
        """The stored images, uint8 `[B, H, W, C]`; index int64 `[B]`."""
        return self.images[index.to(self.device)]

    def __repr__(self) -> str:
        height, width, channels = self.shape
        return f"ImageSource({len(self):,} images of {height} x {width} x {channels}{shown(self.tier)})"


class FeatureSource:
    """Feature vectors.

    Args:
        features: Tensor, NumPy array or memory map `[N, D]` of float32, float16, bfloat16 or float64, each row contiguous.
            Not copied.

    Attributes:
        tier: Where the features of a packed dataset are read from, and why.

    Raises:
        TypeError: If the features are not a float tensor or array.
        ValueError: If the features are empty, or the shape or layout is invalid.

    Example:
        >>> loader = MixLoader(FeatureSource(features), groups, policies.lisa(), 512)  # doctest: +SKIP
    """

    tier: Tier | None = None

    def __init__(self, features: Any) -> None:
        self.features = validate.tensor(
            as_tensor(features, "features"), "features", (*validate.FLOATS, torch.float64), ("N", "D")
        )
        if self.features.shape[0] == 0 or self.features.shape[1] == 0:
            raise ValueError(f"features: need at least one example and one column, got {list(self.features.shape)}")
        if self.features.shape[1] > 1 and self.features.stride(1) != 1:
            raise ValueError("features: each row must be contiguous")

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.features.device

    def to(self, device: torch.device | str) -> FeatureSource:
        """Copy the features to `device`.

        Raises:
            MemoryError: If they do not fit.
        """
        return FeatureSource(moved(self.features, device))

    @property
    def shape(self) -> tuple[int]:
        """(D,) of an example."""
        return (int(self.features.shape[1]),)

    def gather(self, index: Tensor) -> Tensor:
        """Unmixed features, float32 (float64 for float64) `[B, D]`, where the features are; index int64 `[B]`."""
        index = index.to(self.device)
        ones = torch.ones(index.shape[0], dtype=torch.float32, device=index.device)
        kind = torch.promote_types(self.features.dtype, torch.float32)
        return functional.mix_rows(self.features, index, index, ones, dtype=kind)

    def raw(self, index: Tensor) -> Tensor:
        """The stored features `[B, D]`; index int64 `[B]`."""
        return self.features[index.to(self.device)]

    def __repr__(self) -> str:
        return f"FeatureSource({len(self):,} examples of {self.shape[0]} features{shown(self.tier)})"


Source = ImageSource | FeatureSource | TokenSource


def as_source(source: Any) -> Source:
    """`source` itself (`ImageSource`, `FeatureSource`, `TokenSource`), or an array of uint8 images / float features wrapped.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(source, (ImageSource, FeatureSource, TokenSource)):
        return source
    values = as_tensor(source, "source")
    if values.dtype == torch.uint8:
        return ImageSource(values)
    if values.is_floating_point():
        return FeatureSource(values)
    raise TypeError(f"source must hold uint8 images [N, H, W, C] or float features [N, D], got {values.dtype}")
