"""Argument checks of the public calls: a clear error before anything is computed or written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SEED_LIMIT = 1 << 63


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def tensor(value: Any, name: str, dtypes: Sequence[torch.dtype], shape: Sequence[int | str | None]) -> Tensor:
    """Check that `value` is a tensor of one of `dtypes` and of `shape` (None or a letter: any size)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must have dtype {_names(dtypes)}, got {_names([value.dtype])}")
    wanted = "[" + ", ".join("*" if s is None else str(s) for s in shape) + "]"
    if value.dim() != len(shape):
        raise ValueError(f"{name} must have shape {wanted}, got {list(value.shape)}")
    for size, expected in zip(value.shape, shape, strict=True):
        if isinstance(expected, int) and size != expected:
            raise ValueError(f"{name} must have shape {wanted}, got {list(value.shape)}")
    return value


def output(
    out: Any, shape: Sequence[int], dtypes: Sequence[torch.dtype], device: torch.device, name: str = "out"
) -> Tensor:
    """Check a buffer that an op writes into: dtype, shape, device, dense layout, and that no gradient flows into it."""
    tensor(out, name, dtypes, list(shape))
    if out.device != device:
        raise ValueError(f"{name} must be on {device} like the inputs, got {out.device}")
    dense = out.is_contiguous() or (out.dim() == 4 and out.is_contiguous(memory_format=torch.channels_last))
    if not dense:
        layouts = "contiguous or channels_last" if out.dim() == 4 else "contiguous"
        raise ValueError(f"{name} must be {layouts}, got strides {list(out.stride())}")
    if out.requires_grad:
        raise ValueError(f"{name} must not require grad: the op overwrites it")
    return out


def apart(out: Sequence[Tensor]) -> None:
    """Check that no two of several dense outputs share memory; a graph that is being traced has none yet."""
    if torch.compiler.is_compiling():
        return
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, k) for k, t in enumerate(out) if t.numel())
    for (_, end, k), (begin, _, other) in pairwise(spans):
        if begin < end:
            raise ValueError(f"out[{max(k, other)}] shares memory with out[{min(k, other)}]")


def unshared(out: Tensor, inputs: Sequence[Any]) -> None:
    """Check that a dense output lies beside the tensors among `inputs`: kernels read them while they write it."""
    if torch.compiler.is_compiling() or out.numel() == 0:
        return
    begin, end = out.data_ptr(), out.data_ptr() + out.nbytes
    for value in inputs:
        if not isinstance(value, Tensor) or value.device != out.device or value.numel() == 0:
            continue
        first = value.data_ptr()
        last = first + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) * value.itemsize
        if begin < last + value.itemsize and first < end:
            raise ValueError(f"out shares memory with an input of shape {list(value.shape)}; give it memory of its own")


def same_device(device: torch.device, **tensors: Tensor | None) -> None:
    """Check that all tensors are on `device`."""
    for name, value in tensors.items():
        if value is not None and value.device != device:
            raise ValueError(f"{name} is on {value.device}, the first argument on {device}; move them together")


def no_grad_input(**tensors: Tensor | None) -> None:
    """Check that none of the tensors requires grad: the op has no gradient for them."""
    for name, value in tensors.items():
        if value is not None and value.requires_grad:
            raise ValueError(f"{name} requires grad, but no gradient flows through it here; detach it")


def float_dtype(dtype: Any, name: str = "dtype", allowed: Sequence[torch.dtype] = FLOATS) -> torch.dtype:
    """Check an output dtype."""
    if dtype not in allowed:
        raise TypeError(f"{name} must be {_names(allowed)}, got {dtype}")
    return dtype


def integer(value: Any, name: str, low: int) -> int:
    """Check an integer of any kind that is `low` or more; a Python one."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    number = int(value)
    if number < low:
        raise ValueError(f"{name} must be {low} or more, got {number}")
    return number


def sequence_position(seed: int, start: int, count: int) -> None:
    """Check seed, start and count of a draw."""
    for name, value in (("seed", seed), ("start", start), ("count", count)):
        if isinstance(value, (bool, float)):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed must lie in [0, 2^63), got {seed}")
    if not 0 <= start < SEED_LIMIT:
        raise ValueError(f"start must lie in [0, 2^63), got {start}")
    if count < 0 or start + count > SEED_LIMIT:
        raise ValueError(f"count must be 0 or more and end below 2^63, got {count} from {start}")


def images(value: Any) -> Tensor:
    """Check uint8 images `[N, H, W, C]` whose rows are dense."""
    tensor(value, "images", (torch.uint8,), ("N", "H", "W", "C"))
    _, height, width, channels = value.shape
    if 0 in (height, width, channels):
        raise ValueError(f"images must have height, width and channels of 1 or more, got {list(value.shape)}")
    if value.shape[0] > 0 and value[0].stride() != (width * channels, channels, 1):
        raise ValueError("images: each image must be contiguous [H, W, C]; call .contiguous() or pass NHWC memory")
    return value


def store_device(images: Tensor, beside: Any) -> torch.device:
    """Where a mix of `images` takes place: their device, or that of `beside` where they lie in pinned memory.

    Raises:
        ValueError: for images on another device, or on the CPU without being pinned.
    """
    if not isinstance(beside, Tensor) or beside.device == images.device:
        return images.device
    if images.is_cpu and beside.is_cuda:
        if images.is_pinned():
            return beside.device
        raise ValueError(
            f"images are on the CPU and not pinned, the other tensors on {beside.device}: move the images "
            f"({images.nbytes / 2**30:.2f} GiB) there, or pin them so that kernels read them from the host"
        )
    raise ValueError(f"images are on {images.device}, the other tensors on {beside.device}; move them together")


def normalisation(value: Any, name: str, channels: int, device: torch.device) -> Tensor:
    """`mean` or `std` as float32 `[C]` on the device: a tensor as it is, a sequence or number converted."""
    if isinstance(value, Tensor):
        tensor(value, name, (torch.float32,), (channels,))
        same_device(device, **{name: value})
        return value
    numbers = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * channels
    if len(numbers) != channels:
        raise ValueError(f"{name} has {len(numbers)} entries for images of {channels} channels")
    if name == "std" and not all(v > 0 for v in numbers):
        raise ValueError(f"std must be positive, got {numbers}")
    return torch.tensor(numbers, dtype=torch.float32, device=device)
