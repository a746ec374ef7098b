"""Sources of images and features in tensors, NumPy arrays and memory maps, which are not copied."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spurmix.core.deprecation import renamed_attribute
from spurmix.core.memory import available
from spurmix.data.memory import host_tensor
from spurmix.data.sources.tiers import Tier, repr_suffix
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops import functional, validate
from spurmix.ops.reference.checks import check_normalization

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ArrayOrTensor: TypeAlias = Tensor | NDArray[Any]
ChannelValues: TypeAlias = Sequence[float] | float
"""One number for each channel, or one for all."""


def as_tensor(values: object, name: str) -> Tensor:
    """Return `values` as a tensor that shares memory with an array or memory map.

    Args:
        values: Tensor, NumPy array or memory map.
        name: Name of the argument, for errors.

    Returns:
        The tensor.

    Raises:
        TypeError: If `values` is neither an array nor a tensor, or has a dtype that torch does not support.
    """
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{name} must be a tensor, a NumPy array or a memory map, got {type(values).__name__}")
    with warnings.catch_warnings():
        # Sources only read, so read-only memory maps are safe.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            return torch.from_numpy(values)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: {error}") from None


def free_memory(device: torch.device) -> tuple[int, int]:
    """Return the free bytes of a GPU, including memory that torch keeps cached, and its total bytes."""
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


def check_fits(values: Tensor, device: torch.device) -> None:
    """Check that a GPU has enough free memory for `values`.

    Raises `MemoryError` if it has not. The message names the sizes and the alternatives.
    """
    if values.device == device:
        return
    if values.nbytes > free_memory(device)[0]:
        raise _too_large(values, device)


def _too_large(values: Tensor, device: torch.device) -> MemoryError:
    free, total = free_memory(device)
    host = available()
    pinned = "source.pinned(), which the GPU reads directly, or with " if values.nbytes < host else ""
    return MemoryError(
        f"the data take {values.nbytes / 2**30:.1f} GiB, but {device} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB "
        f"free; keep them on the host ({host / 2**30:.1f} GiB free there) with {pinned}"
        f'MixLoader(source, ..., device="cuda"), which mixes on the CPU and copies the batches'
    )


def move_to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy `values` to `device`.

    Raises `MemoryError` if they do not fit, or if the free memory is too fragmented.
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
        self, images: ArrayOrTensor, *, mean: ChannelValues | None = None, std: ChannelValues | None = None
    ) -> None:
        self.images = validate.images(as_tensor(images, "images"))
        if self.images.shape[0] == 0:
            raise ValueError("images must contain at least one image, got an empty array")
        self._set_normalization(mean, std, self.images.shape[3], self.images.device)

    def _set_normalization(
        self, mean: ChannelValues | None, std: ChannelValues | None, channels: int, device: torch.device
    ) -> None:
        is_rgb = channels == 3
        self.mean = validate.normalization(
            mean if mean is not None else (IMAGENET_MEAN if is_rgb else 0.5), "mean", channels, device
        )
        self.std = validate.normalization(
            std if std is not None else (IMAGENET_STD if is_rgb else 0.5), "std", channels, device
        )
        check_normalization(self.mean, self.std)

    def normalized(self, mean: ChannelValues, std: ChannelValues) -> Self:
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
        """Device of the images."""
        return self.images.device

    def to(self, device: torch.device | str) -> ImageSource:
        """Copy the images to `device`, as bytes.

        Args:
            device: Device to copy to.

        Returns:
            A source of the copy.

        Raises:
            MemoryError: If the images do not fit.
        """
        return ImageSource(move_to_device(self.images, device), mean=self.mean.tolist(), std=self.std.tolist())

    def pinned(self) -> ImageSource:
        """Copy the images to pinned host memory, which GPU kernels read directly. For datasets larger than GPU memory.

        Returns:
            A source of the copy.

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
        """Return unmixed, normalized images.

        Args:
            index: Numbers of the images, int64 `[B]`, in [0, N).

        Returns:
            Images, float32 `[B, C, H, W]`, on the device of the source.
        """
        index = index.to(self.device)
        ones = torch.ones(index.shape[0], dtype=torch.float32, device=index.device)
        return functional.mix_images(self.images, index, index, ones, mean=self.mean, std=self.std)

    def raw(self, index: Tensor) -> Tensor:
        """Return images as they are stored.

        Args:
            index: Numbers of the images, int64 `[B]`, in [0, N).

        Returns:
            Images, uint8 `[B, H, W, C]`, on the device of the source.
        """
        return self.images[index.to(self.device)]

    def __repr__(self) -> str:
        height, width, channels = self.shape
        return f"ImageSource({len(self):,} images of {height} x {width} x {channels}{repr_suffix(self.tier)})"


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

    def __init__(self, features: ArrayOrTensor) -> None:
        self.features = validate.tensor(
            as_tensor(features, "features"), "features", (*validate.FLOATS, torch.float64), ("N", "D")
        )
        if self.features.shape[0] == 0 or self.features.shape[1] == 0:
            raise ValueError(
                f"features must have at least one example and one column, got shape {list(self.features.shape)}"
            )
        if self.features.shape[1] > 1 and self.features.stride(1) != 1:
            raise ValueError("features must have contiguous rows; call .contiguous() first")

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.features.device

    def to(self, device: torch.device | str) -> FeatureSource:
        """Copy the features to `device`.

        Args:
            device: Device to copy to.

        Returns:
            A source of the copy.

        Raises:
            MemoryError: If the features do not fit.
        """
        return FeatureSource(move_to_device(self.features, device))

    @property
    def shape(self) -> tuple[int]:
        """(D,) of an example."""
        return (int(self.features.shape[1]),)

    def gather(self, index: Tensor) -> Tensor:
        """Return unmixed features.

        Args:
            index: Numbers of the examples, int64 `[B]`, in [0, N).

        Returns:
            Features `[B, D]`, float64 if the source is float64, else float32, on the device of the source.
        """
        index = index.to(self.device)
        ones = torch.ones(index.shape[0], dtype=torch.float32, device=index.device)
        kind = torch.promote_types(self.features.dtype, torch.float32)
        return functional.mix_rows(self.features, index, index, ones, dtype=kind)

    def raw(self, index: Tensor) -> Tensor:
        """Return features as they are stored.

        Args:
            index: Numbers of the examples, int64 `[B]`, in [0, N).

        Returns:
            Features `[B, D]` in their own dtype, on the device of the source.
        """
        return self.features[index.to(self.device)]

    def __repr__(self) -> str:
        return f"FeatureSource({len(self):,} examples of {self.shape[0]} features{repr_suffix(self.tier)})"


Source: TypeAlias = ImageSource | FeatureSource | TokenSource
SourceLike: TypeAlias = Source | ArrayOrTensor
"""A source, or an array or tensor of uint8 images `[N, H, W, C]` or float features `[N, D]`."""


def as_source(source: object) -> Source:
    """Return `source` itself if it is a source, or wrap an array or tensor.

    Args:
        source: A source, or an array or tensor of uint8 images `[N, H, W, C]` or float features `[N, D]`.

    Returns:
        The source.

    Raises:
        TypeError: If `source` is anything else.
    """
    if isinstance(source, (ImageSource, FeatureSource, TokenSource)):
        return source
    values = as_tensor(source, "source")
    if values.dtype == torch.uint8:
        return ImageSource(values)
    if values.is_floating_point():
        return FeatureSource(values)
    raise TypeError(f"source must be uint8 images [N, H, W, C] or float features [N, D], got {values.dtype}")
