"""Checks of tensor arguments. They raise an error that names the argument, before anything is computed or written.

Each function returns its first argument, converted to the right type if necessary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from spurmix.core import checks
from spurmix.ops.reference.checks import NORMALIZATION, normalization_range

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOATS_AND_DOUBLE = (*FLOATS, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SEED_LIMIT = 1 << 63


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def tensor(value: object, name: str, dtypes: Sequence[torch.dtype], shape: Sequence[int | str]) -> Tensor:
    """Check the dtype and shape of a tensor. A size that is a string, such as "N", accepts any size.

    Raises TypeError if `value` is not a tensor of one of the dtypes, and ValueError if it has another shape.
    """
    if isinstance(value, Tensor) and value.dtype in dtypes:
        sizes = value.shape
        if len(sizes) == len(shape):
            for size, expected in zip(sizes, shape):  # noqa: B905  # strict=True takes as long as the rest of the loop
                # Compare with str, not int: inside torch.compile, sizes are symbols.
                if not isinstance(expected, str) and size != expected:
                    break
            else:
                return value
    raise _tensor_error(value, name, dtypes, shape)


def _tensor_error(
    value: object, name: str, dtypes: Sequence[torch.dtype], shape: Sequence[int | str]
) -> TypeError | ValueError:
    if not isinstance(value, Tensor):
        return TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        return TypeError(f"{name} must have dtype {_names(dtypes)}, got {_names([value.dtype])}")
    return ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], got {list(value.shape)}")


def output(
    out: object, shape: Sequence[int | str], dtypes: Sequence[torch.dtype], device: torch.device, name: str = "out"
) -> Tensor:
    """Check a tensor that an operator writes to: dtype, shape, device, dense layout, no gradient.

    Raises TypeError if it is not a tensor of one of the dtypes, and ValueError if something else does not fit.
    """
    out = tensor(out, name, dtypes, shape)
    if out.device != device:
        raise ValueError(f"{name} must be on {device} like the inputs, got {out.device}")
    dense = out.is_contiguous() or (out.dim() == 4 and out.is_contiguous(memory_format=torch.channels_last))
    if not dense:
        layouts = "contiguous or channels_last" if out.dim() == 4 else "contiguous"
        raise ValueError(f"{name} must be {layouts}, got strides {list(out.stride())}")
    if out.requires_grad:
        raise ValueError(f"{name} must not require grad, because the operator overwrites it")
    return out


def _byte_range(value: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and behind the last byte. (0, 0) for tensors without memory: empty and fake ones."""
    if value.numel() == 0:
        return 0, 0
    try:
        begin = value.data_ptr()
    except RuntimeError:
        return 0, 0
    if value.is_contiguous():
        return begin, begin + value.nbytes
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return begin, begin + (last + 1) * value.itemsize


def no_overlap(out: Tensor | Sequence[Tensor], **inputs: Tensor | None) -> None:
    """Check that outputs share no memory with each other or with the inputs. torch.compile does not know addresses.

    Raises ValueError if two share memory.
    """
    if torch.compiler.is_compiling():
        return
    if isinstance(out, Tensor):
        written = [("out", *_byte_range(out))]
    else:
        written = [(f"out[{k}]", *_byte_range(t)) for k, t in enumerate(out)]
        ordered = sorted((begin, end, k) for k, (_, begin, end) in enumerate(written) if begin < end)
        for (_, end, k), (begin, _, other) in pairwise(ordered):
            if begin < end:
                raise ValueError(f"out[{max(k, other)}] shares memory with out[{min(k, other)}]; use separate tensors")
    for name, value in inputs.items():
        if value is None:
            continue
        first, last = _byte_range(value)
        for target, begin, end in written:
            if first < end and begin < last:
                raise ValueError(f"{target} shares memory with {name}; use separate tensors")


def same_device(device: torch.device, **tensors: Tensor | None) -> None:
    """Check that all tensors are on `device`, the device of the first argument.

    Raises ValueError if one is on another device.
    """
    for name, value in tensors.items():
        if value is not None and value.device != device:
            raise ValueError(f"{name} must be on {device} like the first argument, got {value.device}")


def no_grad_input(**tensors: Tensor | None) -> None:
    """Check that no tensor requires grad, because the operator has no gradient for it.

    Raises ValueError if one requires grad.
    """
    for name, value in tensors.items():
        if value is not None and value.requires_grad:
            raise ValueError(f"{name} must not require grad, because it gets no gradient here; detach it")


def float_dtype(dtype: object, name: str = "dtype", allowed: Sequence[torch.dtype] = FLOATS) -> torch.dtype:
    """Check the dtype of a result.

    Raises TypeError if it is not one of `allowed`.
    """
    if isinstance(dtype, torch.dtype) and dtype in allowed:
        return dtype
    raise TypeError(f"{name} must be {_names(allowed)}, got {dtype}")


def size(value: object, name: str, low: int) -> int:
    """Check an integer of at least `low`. Inside torch.compile it may be a symbol.

    Raises TypeError if it is not an integer, and ValueError if it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        return checks.integer(value, name, low)
    if value < low:
        raise ValueError(f"{name} must be {low} or more, got {value}")
    return value  # type: ignore[return-value]  # a symbol acts as an integer


def sequence_position(seed: int, start: int, count: int) -> None:
    """Check the seed, the first sample number and the number of samples of a draw.

    Raises TypeError if one is not an integer, and ValueError if the seed or a sample number is outside [0, 2^63).
    """
    for name, value in (("seed", seed), ("start", start), ("count", count)):
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            checks.integer(value, name)
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    if not 0 <= start < SEED_LIMIT:
        raise ValueError(f"start must be in [0, 2^63), got {start}")
    if count < 0 or start + count > SEED_LIMIT:
        raise ValueError(f"count must be 0 or more, and start + count at most 2^63, got start={start}, count={count}")


def height_width(value: object, name: str = "size") -> tuple[int, int]:
    """Check a pair (height, width) of positive integers.

    Raises TypeError if it is not a pair of integers, and ValueError if one is not positive.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (height, width), got {value!r}")
    return size(value[0], name, 1), size(value[1], name, 1)


def device(value: object, name: str = "device") -> torch.device:
    """Check a device: a `torch.device`, a name, or the number of a GPU.

    Raises TypeError if `value` has another type, and ValueError if there is no such device.
    """
    try:
        # torch.device raises TypeError for other types.
        return value if isinstance(value, torch.device) else torch.device(value)  # type: ignore[call-overload]
    except (RuntimeError, TypeError, ValueError):
        kind = ValueError if isinstance(value, (str, int)) else TypeError
        raise kind(f'{name} must be a device such as "cpu" or "cuda:0", got {value!r}') from None


def outputs(value: object) -> Sequence[Tensor]:
    """Check that `out` is a sequence. `output` checks its tensors.

    Raises TypeError if it is not a sequence.
    """
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"out must be a sequence of tensors, got {type(value).__name__}")
    return value


def images(value: object) -> Tensor:
    """Check uint8 images `[N, H, W, C]`, each of them contiguous.

    Raises TypeError if it is not a uint8 tensor, and ValueError if the shape or the layout does not fit.
    """
    checked = tensor(value, "images", (torch.uint8,), ("N", "H", "W", "C"))
    _, height, width, channels = checked.shape
    if 0 in (height, width, channels):
        raise ValueError(f"images must have a positive height, width and number of channels, got {list(checked.shape)}")
    if checked.shape[0] > 0 and checked[0].stride() != (width * channels, channels, 1):
        raise ValueError("images must have contiguous pixels [H, W, C]; call .contiguous() or pass channels last")
    return checked


def images_device(images: Tensor, other: object) -> torch.device:
    """Return the device on which `images` are mixed: their own, or the GPU of `other` for images in pinned memory.

    Raises ValueError if the images are on another device and not pinned.
    """
    if not isinstance(other, Tensor) or other.device == images.device:
        return images.device
    if images.is_cpu and other.is_cuda:
        if images.is_pinned():
            return other.device
        raise ValueError(
            f"images must be on {other.device} like the other tensors, or in pinned memory, got memory that is not pinned "
            f"({images.nbytes / 2**30:.2f} GiB); call .pin_memory() or .to({str(other.device)!r})"
        )
    raise ValueError(f"images must be on {other.device} like the other tensors, got {images.device}")


def normalization(value: object, name: str, channels: int, device: torch.device) -> Tensor:
    """Return `mean` or `std` as a float32 tensor `[C]`: a tensor as it is, a sequence or a number converted.

    The kernels check the values of a tensor. On a GPU, `check` raises the error later.

    Raises TypeError if it has another type, and ValueError if it does not have one value per channel, or a number is
    outside the range of `NORMALIZATION`.
    """
    if isinstance(value, Tensor):
        tensor(value, name, (torch.float32,), (channels,))
        same_device(device, **{name: value})
        return value
    values: Iterable[object] = [value] * channels
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)):
        values = value
    numbers = [checks.number(v, name) for v in values]
    if len(numbers) != channels:
        raise ValueError(f"{name} must have one value for each of the {channels} channels, got {len(numbers)}")
    low, high = NORMALIZATION[name]
    if not all(low <= v <= high for v in numbers):
        raise ValueError(f"{name} = {value!r} must be {normalization_range(name)}")
    return torch.tensor(numbers, dtype=torch.float32, device=device)
