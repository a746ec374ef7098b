"""Launchers: they take the arguments of the schemas in `spurmix/ops/schema.py`, check them and launch the kernels.

Kernels read nothing at an index out of range or through damaged tables. They set the error flag, and the sample becomes
NaN (draws: lam is NaN, index and partner are 0). So does a sample with an invalid lam or box. Group counts and gradients
of embedding tables skip the entry. `check` raises the error. Launches call `check` themselves if SPURMIX_DEBUG=1, and for
CPU tensors, which Triton's interpreter takes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl
from spurmix.core.table_layout import FLAG_KEEP_LABELS
from spurmix.kernels import checks
from spurmix.kernels.cross_entropy import cross_entropy_backward_kernel, cross_entropy_kernel
from spurmix.kernels.draw import draw_kernel
from spurmix.kernels.errors import BAD_INDEX
from spurmix.kernels.group_counts import group_counts_kernel
from spurmix.kernels.mix_images import mix_image_batch_kernel, mix_images_kernel
from spurmix.kernels.mix_rows import mix_labels_kernel, mix_rows_kernel
from spurmix.kernels.tuned import Tuned, size_class

INVALID_VALUE = "lam must be in [0, 1], boxes must not be NaN, mean must be in [0, 1] and std in [0.001, 2]"
NONE, MEAN = 0, 1
"""Reductions of the loss, as in the schemas."""


def configs(names: str, *options: tuple[int, ...]) -> list[triton.Config]:
    """Return configurations: values of the constants `names` and the number of warps. The first one is the default."""
    return [triton.Config(dict(zip(names.split(), o[:-1], strict=True)), num_warps=o[-1]) for o in options]


# Image kernels have a flat pass (VECTOR > 0) and a tiled pass, which ignore each other's constants.
_FLAT = configs(
    "BLOCK VECTOR STEPS ROWS COLUMNS",
    (2048, 16, 4, 1, 1, 4),
    (2048, 8, 4, 1, 1, 4),
    (4096, 16, 2, 1, 1, 4),
    (2048, 8, 16, 1, 1, 4),
    (4096, 8, 4, 1, 1, 8),
)
_TILES = configs(
    "BLOCK VECTOR STEPS ROWS COLUMNS",
    (1, 0, 1, 8, 32, 4),
    (1, 0, 1, 4, 64, 4),
    (1, 0, 1, 4, 128, 8),
    (1, 0, 1, 16, 32, 4),
)
COLUMNS = configs("BLOCK", (1024, 4), (2048, 4), (4096, 8), (512, 2))
_DRAW = Tuned(draw_kernel, configs("BLOCK", (128, 4), (64, 2), (256, 4)))
_IMAGES = {flat: Tuned(mix_images_kernel, _FLAT if flat else _TILES) for flat in (True, False)}
_IMAGE_BATCH = {flat: Tuned(mix_image_batch_kernel, _FLAT if flat else _TILES) for flat in (True, False)}
_ROWS, _LABELS = Tuned(mix_rows_kernel, COLUMNS), Tuned(mix_labels_kernel, COLUMNS)
_LOSS = Tuned(cross_entropy_kernel, configs("BLOCK", (1024, 4), (1024, 8), (2048, 8), (4096, 16), (256, 1)))
_LOSS_BACKWARD = Tuned(cross_entropy_backward_kernel, COLUMNS)
_COUNTS = Tuned(group_counts_kernel, configs("BLOCK GROUP_BLOCK", (1024, 16, 4)))

_error_flags: dict[torch.device, Tensor] = {}


def error_flag(device: torch.device) -> Tensor:
    """Return the error flag of a device, int32 `[1]`. Kernels set the bits of `spurmix/kernels/errors.py`."""
    if device not in _error_flags:
        _error_flags[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return _error_flags[device]


def check(device: torch.device, what: str = "an earlier call") -> None:
    """Wait for the device, and raise the error that its kernels reported.

    Args:
        device: device of the launches.
        what: name of the operator for the error message.

    Raises:
        IndexError: an index or class id was out of range, or a table was damaged.
        ValueError: lam, a box, mean or std was invalid.
    """
    flag = error_flag(device)
    bits = int(flag.item())
    if not bits:
        return
    flag.zero_()
    if bits & BAD_INDEX.value:
        raise IndexError(f"{what}: an index or class id is out of range, or the draw tables are damaged")
    raise ValueError(f"{what}: {INVALID_VALUE}")


def check_if_synchronous(device: torch.device, op: str) -> None:
    """Call `check` after a launch on the CPU, or on a GPU if SPURMIX_DEBUG=1. A CUDA graph capture must not wait."""
    if device.type == "meta":
        return
    debug = os.environ.get("SPURMIX_DEBUG") == "1" and device.type == "cuda"
    if device.type == "cpu" or (debug and not torch.cuda.is_current_stream_capturing()):
        check(device, op)


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return the dtype of the arithmetic on `dtype`: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def alignment(*sizes: int) -> int:
    """Return the largest power of two up to 16 that divides all `sizes`. It decides the width of vectorized loads."""
    return math.gcd(16, *sizes)


def is_channels_last(out: Tensor) -> bool:
    """Return whether `[B, C, h, w]` is channels last. A tensor with both formats, as for C = 1, counts as contiguous."""
    return not out.is_contiguous()


_MAX_GRID_Y = 65535
_MAX_IMAGE_SIZE = _MAX_GRID_Y * min(c.kwargs["BLOCK"] * c.kwargs["STEPS"] for c in _FLAT)
_MAX_COLUMNS = _MAX_GRID_Y * min(c.kwargs["BLOCK"] for c in COLUMNS)


def _check_size(images: Tensor, height: int, width: int) -> None:
    size = max(images.shape[1] * images.shape[2], height * width) * images.shape[3]
    if size > _MAX_IMAGE_SIZE:
        shapes = f"{list(images.shape[1:])}, output {(height, width)}"
        limit = f"{_MAX_IMAGE_SIZE:,} values each, the Triton kernels' limit"
        raise ValueError(f"images of shape {shapes} have more than {limit}")
    if max(height, width) > 32767:
        raise ValueError(f"size must be at most 32767 a side for the Triton kernels, got {(height, width)}")


def _check_columns(columns: int, name: str) -> None:
    if columns > _MAX_COLUMNS:
        raise ValueError(f"{columns:,} {name} are more than {_MAX_COLUMNS:,}, the Triton kernels' limit")


def draw_out(tables: Tensor, members: Tensor, seed: int, start: int, counter: Tensor | None, *out: Tensor) -> None:
    """Launch the draw."""
    index, partner, lam, group = out
    count, device = index.numel(), tables.device
    checks.vectors("draw", tables, count, index=index, partner=partner, lam=lam, group=group)
    checks.sequence("draw", tables, members, seed, start, count, counter)
    if count:
        _DRAW(
            device, (size_class(count), members.dtype, members.numel() > 0),
            lambda c: (triton.cdiv(count, c["BLOCK"]),), tables, tables.numel(), members, members.numel(), seed, start,
            counter, index, partner, lam, group, error_flag(device), count, HAS_MEMBERS=members.numel() > 0,
            HAS_COUNTER=counter is not None,
        )  # fmt: skip
    check_if_synchronous(device, "draw")


def draw(
    tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the draw, into new tensors."""
    dtypes = (torch.int64, torch.int64, torch.float32, torch.int64)
    out = tuple(torch.empty(count, dtype=dtype, device=tables.device) for dtype in dtypes)
    draw_out(tables, members, seed, start, counter, *out)
    return out  # type: ignore[return-value]


def image_grid(out: Tensor, crop: bool, channels: int) -> tuple[bool, Callable[[dict[str, Any]], tuple[int, int]]]:
    """Return whether a batch takes the flat pass, and a function from a configuration to the grid."""
    batch, _, height, width = out.shape
    if not crop and channels <= 4 and (is_channels_last(out) or channels == 1):
        return True, lambda c: (batch, triton.cdiv(height * width * channels, c["BLOCK"] * c["STEPS"]))
    return False, lambda c: (batch, triton.cdiv(height, c["ROWS"]))


def mix_images_out(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, mean: Tensor, std: Tensor, boxes: Tensor | None,
    flips: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    """Launch the mix of given image pairs."""
    checks.images("mix_images", index, images, mean, std, out, index.numel(), boxes is not None)
    checks.vectors("mix_images", index, index.numel(), index=index, partner=partner, lam=lam)
    checks.crops("mix_images", index, index.numel(), boxes, flips)
    total, height, width, channels = images.shape
    batch, _, out_height, out_width = out.shape
    _check_size(images, out_height, out_width)
    device, crop, flip = index.device, boxes is not None, flips is not None
    if batch:
        flat, grid = image_grid(out, crop, channels)
        channels_last = is_channels_last(out)
        size = out_height * out_width * channels
        _IMAGES[flat](
            device, (size_class(batch), size_class(size), channels, crop, flip, channels_last, out.dtype), grid, images,
            images.stride(0), total, index, partner, lam, mean, std, boxes, as_bytes(flips), out, error_flag(device),
            height, width, out_height, out_width, size, CROP=crop, FLIP=flip, CHANNELS_LAST=channels_last,
            CHANNELS=channels,
        )  # fmt: skip
    check_if_synchronous(device, "mix_images")


def as_bytes(mask: Tensor | None) -> Tensor | None:
    """Return a boolean mask as uint8, which Triton can load."""
    return mask.view(torch.uint8) if mask is not None else None


def empty_images(
    like: Tensor, channels: int, batch: int, height: int, width: int, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """Return an empty batch `[B, C, h, w]` on the device of `like`."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((batch, channels, height, width), dtype=dtype, device=like.device, memory_format=layout)


def mix_images(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, mean: Tensor, std: Tensor, boxes: Tensor | None,
    flips: Tensor | None, height: int, width: int, dtype: torch.dtype, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Launch the mix of given image pairs, into a new tensor."""
    out = empty_images(index, images.shape[3], index.shape[0], height, width, dtype, channels_last)
    mix_images_out(images, index, partner, lam, mean, std, boxes, flips, out)
    return out


def mix_image_batch_out(
    images: Tensor, labels: Tensor, tables: Tensor, members: Tensor, mean: Tensor, std: Tensor, crop: bool,
    scale_min: float, scale_max: float, ratio_min: float, ratio_max: float, flip: bool, seed: int, start: int,
    counter: Tensor | None, *out: Tensor,
) -> None:  # fmt: skip
    """Launch the draw and mix of an image batch."""
    op, mixed, device, count = "mix_image_batch", out[0], labels.device, out[1].numel()
    checks.images(op, tables, images, mean, std, mixed, count, crop)
    checks.sequence(op, tables, members, seed, start, count, counter)
    checks.tensor(op, "labels", labels, tables, checks.LABELS, images.shape[0])
    names = ("label", "partner_label", "lam", "index", "partner", "group")
    checks.vectors(op, tables, count, **dict(zip(names, out[1:], strict=True)))
    batch, channels, out_height, out_width = mixed.shape
    _check_size(images, out_height, out_width)
    if batch:
        flat, grid = image_grid(mixed, crop, channels)
        channels_last = is_channels_last(mixed)
        size = out_height * out_width * channels
        _IMAGE_BATCH[flat](
            device, (size_class(batch), size_class(size), channels, crop, flip, channels_last, mixed.dtype), grid,
            images, images.stride(0), images.shape[0], labels, tables, tables.numel(), members, members.numel(), mean,
            std, scale_min, scale_max, math.log(ratio_min), math.log(ratio_max), seed, start, counter, *out,
            error_flag(device), images.shape[1], images.shape[2], out_height, out_width, size,
            HAS_MEMBERS=members.numel() > 0, HAS_COUNTER=counter is not None, FLAG_KEEP_LABELS=FLAG_KEEP_LABELS,
            CROP=crop, FLIP=flip, CHANNELS_LAST=channels_last, CHANNELS=channels,
        )  # fmt: skip
    check_if_synchronous(device, op)


def mix_image_batch(*args: Any, counter: Tensor | None = None) -> tuple[Tensor, ...]:
    """Launch the draw and mix of an image batch, into new tensors."""
    # Arguments 0 to 13 are those of `mix_image_batch_out`; then batch, height, width, dtype, channels_last and counter.
    images, labels, batch = args[0], args[1], args[14]
    dtypes = (torch.int64, torch.int64, torch.float32, torch.int64, torch.int64, torch.int64)
    out = [empty_images(labels, images.shape[3], *args[14:19])]
    out += [torch.empty(batch, dtype=dtype, device=labels.device) for dtype in dtypes]
    inputs: list[Any] = [*args[:14], args[19] if len(args) > 19 else counter]
    mix_image_batch_out(*inputs, *out)
    return tuple(out)


def mix_rows_out(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> None:
    """Launch the mix of feature rows."""
    checks.rows("mix_rows", "rows", rows, rows)
    batch, columns = index.numel(), rows.shape[1]
    checks.vectors("mix_rows", rows, batch, index=index, partner=partner, lam=lam)
    checks.tensor("mix_rows", "out", out, rows, checks.FLOATS, batch, columns)
    _check_columns(columns, "columns")
    if batch and columns:
        _ROWS(
            index.device, (size_class(batch), size_class(columns), rows.dtype, out.dtype),
            lambda c: (batch, triton.cdiv(columns, c["BLOCK"])), rows, rows.stride(0), rows.shape[0], index, partner,
            lam, out, columns, error_flag(index.device), COMPUTE=compute_dtype(rows.dtype),
            ALIGN=alignment(rows.stride(0), columns),
        )  # fmt: skip
    check_if_synchronous(index.device, "mix_rows")


def mix_rows(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch the mix of feature rows, into a new tensor."""
    out = torch.empty(index.shape[0], rows.shape[1], dtype=dtype, device=index.device)
    mix_rows_out(rows, index, partner, lam, out)
    return out


def mix_labels_out(label: Tensor, partner_label: Tensor, lam: Tensor, out: Tensor) -> None:
    """Launch the mix of labels."""
    checks.rows("mix_labels", "out", out, label)
    batch, classes = label.numel(), out.shape[1]
    checks.vectors("mix_labels", label, batch, label=label, partner_label=partner_label, lam=lam)
    checks.tensor("mix_labels", "out", out, label, checks.FLOATS, batch, classes)
    _check_columns(classes, "classes")
    if batch:
        _LABELS(
            label.device, (size_class(batch), size_class(classes), out.dtype),
            lambda c: (batch, triton.cdiv(classes, c["BLOCK"])), label, partner_label, lam, out, classes,
            error_flag(label.device), COMPUTE=compute_dtype(out.dtype), ALIGN=alignment(classes),
        )  # fmt: skip
    check_if_synchronous(label.device, "mix_labels")


def mix_labels(label: Tensor, partner_label: Tensor, lam: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Launch the mix of labels, into a new tensor."""
    out = torch.empty(label.shape[0], num_classes, dtype=dtype, device=label.device)
    mix_labels_out(label, partner_label, lam, out)
    return out


def _check_loss(logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor) -> None:
    op = "mixed_cross_entropy"
    checks.rows(op, "logits", logits, logits)
    checks.require(logits.shape[1] >= 1, op, "logits", "of one class or more")
    checks.vectors(op, logits, logits.shape[0], label=label, partner_label=partner_label, lam=lam)


def _cross_entropy(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The reduced loss, and logsumexp or the gradient for an upstream gradient of 1."""
    _check_loss(logits, label, partner_label, lam)
    batch, classes = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    loss = torch.empty(batch, dtype=dtype, device=logits.device)
    saved = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) if with_grad else torch.empty_like(loss)
    if batch:
        # GRAD selects the output: logsumexp or grad. `saved` is passed as both.
        _LOSS(
            logits.device, (size_class(batch), size_class(classes), logits.dtype, with_grad), lambda c: (batch,),
            logits, logits.stride(0), classes, label, partner_label, lam, label_smoothing, loss, saved, saved,
            batch if reduction == MEAN else 1, error_flag(logits.device), COMPUTE=compute_dtype(dtype),
            ALIGN=alignment(logits.stride(0), classes), GRAD=with_grad,
        )  # fmt: skip
    check_if_synchronous(logits.device, "mixed_cross_entropy")
    return (loss if reduction == NONE else loss.mean() if reduction == MEAN else loss.sum()), saved


def mixed_cross_entropy(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Launch the loss. Returns the reduced loss and logsumexp."""
    return _cross_entropy(logits, label, partner_label, lam, reduction, label_smoothing, with_grad=False)


def mixed_cross_entropy_with_grad(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Launch the loss. Returns the reduced loss and its gradient."""
    return _cross_entropy(logits, label, partner_label, lam, reduction, label_smoothing, with_grad=True)


def mixed_cross_entropy_backward(
    grad: Tensor, logits: Tensor, logsumexp: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int,
    label_smoothing: float,
) -> Tensor:  # fmt: skip
    """Launch the gradient of the loss."""
    _check_loss(logits, label, partner_label, lam)
    checks.loss_gradient("mixed_cross_entropy", grad, logits, logsumexp, reduction != NONE)
    batch, classes = logits.shape
    _check_columns(classes, "classes")
    out = torch.empty(batch, classes, dtype=logits.dtype, device=logits.device)
    if batch:
        _LOSS_BACKWARD(
            logits.device, (size_class(batch), size_class(classes), logits.dtype),
            lambda c: (batch, triton.cdiv(classes, c["BLOCK"])), grad, grad.stride(0) if reduction == NONE else 0,
            batch if reduction == MEAN else 1, logits, logits.stride(0), classes, logsumexp, label, partner_label, lam,
            label_smoothing, out, error_flag(logits.device), COMPUTE=compute_dtype(logsumexp.dtype),
            ALIGN=alignment(logits.stride(0), classes),
        )  # fmt: skip
    check_if_synchronous(logits.device, "mixed_cross_entropy")
    return out


def group_counts(logits: Tensor, label: Tensor, group: Tensor, counts: Tensor) -> None:
    """Launch the counts per group, which are added to `counts`."""
    checks.rows("group_counts", "logits", logits, logits)
    checks.require(logits.shape[1] >= 1, "group_counts", "logits", "of one class or more")
    checks.counts("group_counts", logits, label, group, counts)
    batch, classes = logits.shape
    if batch:
        membership = group.dtype == torch.bool
        _COUNTS(
            logits.device, (), lambda c: (batch,), logits, logits.stride(0), classes, label,
            group.view(torch.uint8) if membership else group, counts, counts.shape[0], error_flag(logits.device),
            COMPUTE=compute_dtype(logits.dtype), ALIGN=alignment(logits.stride(0), classes), MEMBERSHIP=membership,
        )  # fmt: skip
    check_if_synchronous(logits.device, "group_counts")


KERNELS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        draw, draw_out, mix_images, mix_images_out, mix_image_batch, mix_image_batch_out, mix_rows, mix_rows_out,
        mix_labels, mix_labels_out, mixed_cross_entropy, mixed_cross_entropy_backward, mixed_cross_entropy_with_grad,
        group_counts,
    )
}  # fmt: skip
