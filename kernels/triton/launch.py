"""Launches the Triton kernels with the arguments of the schemas in `spurmix/ops/schema.py`, as the reference takes them.

An index out of range or a damaged table is not followed: the sample becomes NaN and a flag on the device is set. `check`
raises it; launches do so at once under SPURMIX_DEBUG=1 and where tensors are on the CPU (in Triton's interpreter).
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
from spurmix.kernels import inputs
from spurmix.kernels.draw import draw_kernel
from spurmix.kernels.images import mix_image_batch_kernel, mix_images_kernel
from spurmix.kernels.loss import cross_entropy_backward_kernel, cross_entropy_kernel, group_counts_kernel
from spurmix.kernels.rows import mix_labels_kernel, mix_rows_kernel
from spurmix.kernels.tuned import Tuned, size_class

NONE, MEAN = 0, 1


def _configs(names: str, *options: tuple[int, ...]) -> list[triton.Config]:
    """Configurations of constants, each followed by its number of warps; the first is the default."""
    return [triton.Config(dict(zip(names.split(), o[:-1], strict=True)), num_warps=o[-1]) for o in options]


_FLAT = _configs(
    "BLOCK VECTOR STEPS ROWS COLUMNS",
    (2048, 16, 4, 1, 1, 4),
    (2048, 8, 4, 1, 1, 4),
    (4096, 16, 2, 1, 1, 4),
    (2048, 8, 16, 1, 1, 4),
    (4096, 8, 4, 1, 1, 8),
)
_TILES = _configs(
    "BLOCK VECTOR STEPS ROWS COLUMNS",
    (1, 0, 1, 8, 32, 4),
    (1, 0, 1, 4, 64, 4),
    (1, 0, 1, 4, 128, 8),
    (1, 0, 1, 16, 32, 4),
)
_COLUMNS = _configs("BLOCK", (1024, 4), (2048, 4), (4096, 8), (512, 2))
_DRAW = Tuned(draw_kernel, _configs("BLOCK", (128, 4), (64, 2), (256, 4)))
_IMAGES = {flat: Tuned(mix_images_kernel, _FLAT if flat else _TILES) for flat in (True, False)}
_IMAGE_BATCH = {flat: Tuned(mix_image_batch_kernel, _FLAT if flat else _TILES) for flat in (True, False)}
_ROWS, _LABELS = Tuned(mix_rows_kernel, _COLUMNS), Tuned(mix_labels_kernel, _COLUMNS)
_LOSS = Tuned(cross_entropy_kernel, _configs("BLOCK", (1024, 4), (1024, 8), (2048, 8), (4096, 16), (256, 1)))
_LOSS_BACKWARD = Tuned(cross_entropy_backward_kernel, _COLUMNS)
_COUNTS = Tuned(group_counts_kernel, _configs("BLOCK GROUP_BLOCK", (1024, 16, 4)))

_flags: dict[torch.device, Tensor] = {}


def flag_of(device: torch.device) -> Tensor:
    """The flag of a device, int32 `[1]`: 0, or 1 once something out of range was met."""
    if device not in _flags:
        _flags[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return _flags[device]


def check(device: torch.device, what: str = "an earlier call") -> None:
    """Wait for the device and raise what its kernels flagged.

    Raises:
        IndexError: where an index or class id lay out of range, or a table was damaged.
    """
    flag = flag_of(device)
    if int(flag.item()):
        flag.zero_()
        raise IndexError(f"{what}: an index or class id is out of range, or the draw tables are damaged")


def _finish(device: torch.device, op: str) -> None:
    if device.type == "meta":
        return
    debug = os.environ.get("SPURMIX_DEBUG") == "1" and device.type == "cuda"
    if device.type == "cpu" or (debug and not torch.cuda.is_current_stream_capturing()):
        check(device, op)


def _wide(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _align(*sizes: int) -> int:
    """The largest power of two up to 16 that divides all `sizes`: rows of that many elements start on wide loads."""
    return math.gcd(16, *sizes)


def _last(out: Tensor) -> bool:
    """Whether [B, C, h, w] is channels last; contiguous memory is not."""
    return not out.is_contiguous()


_BLOCKS = 65535  # of a grid's second axis
_LARGEST = _BLOCKS * min(c.kwargs["BLOCK"] * c.kwargs["STEPS"] for c in _FLAT)
_WIDEST = _BLOCKS * min(c.kwargs["BLOCK"] for c in _COLUMNS)


def _check_size(images: Tensor, height: int, width: int) -> None:
    most = max(images.shape[1] * images.shape[2], height * width) * images.shape[3]
    if most > _LARGEST:
        shapes = f"{list(images.shape[1:])}, output {(height, width)}"
        raise ValueError(f"images of shape {shapes} have more than {_LARGEST:,} values each, the Triton kernels' limit")
    if max(height, width) > 32767:
        raise ValueError(f"size must be at most 32767 a side for the Triton kernels, got {(height, width)}")


def _check_columns(columns: int, name: str) -> None:
    if columns > _WIDEST:
        raise ValueError(f"{columns:,} {name} are more than {_WIDEST:,}, the Triton kernels' limit")


def draw_out(tables: Tensor, members: Tensor, seed: int, start: int, counter: Tensor | None, *out: Tensor) -> None:
    index, partner, lam, group = out
    count, device = index.numel(), tables.device
    inputs.vectors("draw", tables, count, index=index, partner=partner, lam=lam, group=group)
    inputs.sequence("draw", tables, members, seed, start, count, counter)
    if count:
        _DRAW(
            device, (size_class(count), members.dtype, members.numel() > 0), lambda c: (triton.cdiv(count, c["BLOCK"]),),
            tables, tables.numel(), members, members.numel(), seed, start, counter, index, partner, lam, group,
            flag_of(device), count,
            HAS_MEMBERS=members.numel() > 0, HAS_COUNTER=counter is not None,
        )  # fmt: skip
    _finish(device, "draw")


def draw(
    tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kinds = (torch.int64, torch.int64, torch.float32, torch.int64)
    out = tuple(torch.empty(count, dtype=kind, device=tables.device) for kind in kinds)
    draw_out(tables, members, seed, start, counter, *out)
    return out  # type: ignore[return-value]


def _parts(out: Tensor, crop: bool, channels: int) -> tuple[bool, Callable[[dict[str, Any]], tuple[int, int]]]:
    """Whether a batch is a flat pass over bytes, and the grid of a configuration."""
    batch, _, height, width = out.shape
    if not crop and channels <= 4 and (_last(out) or channels == 1):
        return True, lambda c: (batch, triton.cdiv(height * width * channels, c["BLOCK"] * c["STEPS"]))
    return False, lambda c: (batch, triton.cdiv(height, c["ROWS"]))


def mix_images_out(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, mean: Tensor, std: Tensor, boxes: Tensor | None,
    flips: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    inputs.images("mix_images", index, images, mean, std, out, index.numel(), boxes is not None)
    inputs.vectors("mix_images", index, index.numel(), index=index, partner=partner, lam=lam)
    inputs.crops("mix_images", index, index.numel(), boxes, flips)
    total, height, width, channels = images.shape
    batch, _, out_height, out_width = out.shape
    _check_size(images, out_height, out_width)
    device, crop, flip = index.device, boxes is not None, flips is not None
    if batch:
        flat, grid = _parts(out, crop, channels)
        size = out_height * out_width * channels
        _IMAGES[flat](
            device, (size_class(batch), size_class(size), channels, crop, flip, _last(out), out.dtype), grid, images,
            images.stride(0), total, index, partner, lam, mean, std, boxes, _bytes(flips), out, flag_of(device), height,
            width, out_height, out_width, size, CROP=crop, FLIP=flip, LAST=_last(out), CHANNELS=channels,
        )  # fmt: skip
    _finish(device, "mix_images")


def _bytes(mask: Tensor | None) -> Tensor | None:
    return mask.view(torch.uint8) if mask is not None else None


def _images(
    like: Tensor, channels: int, batch: int, height: int, width: int, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((batch, channels, height, width), dtype=dtype, device=like.device, memory_format=layout)


def mix_images(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, mean: Tensor, std: Tensor, boxes: Tensor | None,
    flips: Tensor | None, height: int, width: int, dtype: torch.dtype, channels_last: bool,
) -> Tensor:  # fmt: skip
    out = _images(index, images.shape[3], index.shape[0], height, width, dtype, channels_last)
    mix_images_out(images, index, partner, lam, mean, std, boxes, flips, out)
    return out


def mix_image_batch_out(
    images: Tensor, labels: Tensor, tables: Tensor, members: Tensor, mean: Tensor, std: Tensor, crop: bool,
    scale_min: float, scale_max: float, ratio_min: float, ratio_max: float, flip: bool, seed: int, start: int,
    counter: Tensor | None, *out: Tensor,
) -> None:  # fmt: skip
    op, mixed, device, count = "mix_image_batch", out[0], labels.device, out[1].numel()
    inputs.images(op, tables, images, mean, std, mixed, count, crop)
    inputs.sequence(op, tables, members, seed, start, count, counter)
    inputs.check(op, "labels", labels, tables, inputs.LABELS, images.shape[0])
    names = ("label", "partner_label", "lam", "index", "partner", "group")
    inputs.vectors(op, tables, count, **dict(zip(names, out[1:], strict=True)))
    batch, channels, out_height, out_width = mixed.shape
    _check_size(images, out_height, out_width)
    if batch:
        flat, grid = _parts(mixed, crop, channels)
        size = out_height * out_width * channels
        _IMAGE_BATCH[flat](
            device, (size_class(batch), size_class(size), channels, crop, flip, _last(mixed), mixed.dtype), grid,
            images, images.stride(0), images.shape[0], labels, tables, tables.numel(), members, members.numel(), mean,
            std, scale_min, scale_max, math.log(ratio_min), math.log(ratio_max), seed, start, counter, *out,
            flag_of(device), images.shape[1], images.shape[2], out_height, out_width, size, HAS_MEMBERS=members.numel() > 0,
            HAS_COUNTER=counter is not None, KEEP_LABELS=FLAG_KEEP_LABELS, CROP=crop, FLIP=flip, LAST=_last(mixed),
            CHANNELS=channels,
        )  # fmt: skip
    _finish(device, op)


def mix_image_batch(*given: Any, counter: Tensor | None = None) -> tuple[Tensor, ...]:
    images, labels, batch = given[0], given[1], given[14]
    kinds = (torch.int64, torch.int64, torch.float32, torch.int64, torch.int64, torch.int64)
    out = [_images(labels, images.shape[3], *given[14:19])]
    out += [torch.empty(batch, dtype=kind, device=labels.device) for kind in kinds]
    mix_image_batch_out(*given[:14], given[19] if len(given) > 19 else counter, *out)
    return tuple(out)


def mix_rows_out(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> None:
    inputs.rows("mix_rows", "rows", rows, rows)
    batch, columns = index.numel(), rows.shape[1]
    inputs.vectors("mix_rows", rows, batch, index=index, partner=partner, lam=lam)
    inputs.check("mix_rows", "out", out, rows, inputs.FLOATS, batch, columns)
    _check_columns(columns, "columns")
    if batch and columns:
        _ROWS(
            index.device, (size_class(batch), size_class(columns), rows.dtype, out.dtype),
            lambda c: (batch, triton.cdiv(columns, c["BLOCK"])), rows, rows.stride(0), rows.shape[0], index, partner,
            lam, out, columns, flag_of(index.device), WIDE=_wide(rows.dtype), ALIGN=_align(rows.stride(0), columns),
        )  # fmt: skip
    _finish(index.device, "mix_rows")


def mix_rows(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(index.shape[0], rows.shape[1], dtype=dtype, device=index.device)
    mix_rows_out(rows, index, partner, lam, out)
    return out


def mix_labels_out(label: Tensor, partner_label: Tensor, lam: Tensor, out: Tensor) -> None:
    inputs.rows("mix_labels", "out", out, label)
    batch, classes = label.numel(), out.shape[1]
    inputs.vectors("mix_labels", label, batch, label=label, partner_label=partner_label, lam=lam)
    inputs.check("mix_labels", "out", out, label, inputs.FLOATS, batch, classes)
    _check_columns(classes, "classes")
    if batch:
        _LABELS(
            label.device, (size_class(batch), size_class(classes), out.dtype),
            lambda c: (batch, triton.cdiv(classes, c["BLOCK"])), label, partner_label, lam, out, classes,
            flag_of(label.device), WIDE=_wide(out.dtype), ALIGN=_align(classes),
        )  # fmt: skip
    _finish(label.device, "mix_labels")


def mix_labels(label: Tensor, partner_label: Tensor, lam: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty(label.shape[0], num_classes, dtype=dtype, device=label.device)
    mix_labels_out(label, partner_label, lam, out)
    return out


def _check_loss(logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor) -> None:
    op = "mixed_cross_entropy"
    inputs.rows(op, "logits", logits, logits)
    inputs.need(logits.shape[1] >= 1, op, "logits", "of one class or more")
    inputs.vectors(op, logits, logits.shape[0], label=label, partner_label=partner_label, lam=lam)


def _losses(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The reduced loss, and logsumexp or the gradient for an upstream gradient of 1."""
    _check_loss(logits, label, partner_label, lam)
    batch, classes = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = torch.empty(batch, dtype=wide, device=logits.device)
    other = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) if with_grad else torch.empty_like(loss)
    if batch:
        _LOSS(
            logits.device, (size_class(batch), size_class(classes), logits.dtype, with_grad), lambda c: (batch,), logits,
            logits.stride(0), classes, label, partner_label, lam, label_smoothing, loss, other, other,
            batch if reduction == MEAN else 1, flag_of(logits.device), WIDE=_wide(wide),
            ALIGN=_align(logits.stride(0), classes), GRAD=with_grad,
        )  # fmt: skip
    _finish(logits.device, "mixed_cross_entropy")
    return (loss if reduction == NONE else loss.mean() if reduction == MEAN else loss.sum()), other


def mixed_cross_entropy(*given: Any) -> tuple[Tensor, Tensor]:
    return _losses(*given, with_grad=False)


def mixed_cross_entropy_with_grad(*given: Any) -> tuple[Tensor, Tensor]:
    return _losses(*given, with_grad=True)


def mixed_cross_entropy_backward(
    grad: Tensor, logits: Tensor, logsumexp: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int,
    label_smoothing: float,
) -> Tensor:  # fmt: skip
    _check_loss(logits, label, partner_label, lam)
    inputs.loss_gradient("mixed_cross_entropy", grad, logits, logsumexp, reduction != NONE)
    batch, classes = logits.shape
    _check_columns(classes, "classes")
    out = torch.empty(batch, classes, dtype=logits.dtype, device=logits.device)
    if batch:
        _LOSS_BACKWARD(
            logits.device, (size_class(batch), size_class(classes), logits.dtype),
            lambda c: (batch, triton.cdiv(classes, c["BLOCK"])), grad, grad.stride(0) if reduction == NONE else 0,
            batch if reduction == MEAN else 1, logits, logits.stride(0), classes, logsumexp, label, partner_label, lam,
            label_smoothing, out, flag_of(logits.device), WIDE=_wide(logsumexp.dtype),
            ALIGN=_align(logits.stride(0), classes),
        )  # fmt: skip
    _finish(logits.device, "mixed_cross_entropy")
    return out


def group_counts(logits: Tensor, label: Tensor, group: Tensor, counts: Tensor) -> None:
    inputs.rows("group_counts", "logits", logits, logits)
    inputs.need(logits.shape[1] >= 1, "group_counts", "logits", "of one class or more")
    inputs.counts("group_counts", logits, label, group, counts)
    batch, classes = logits.shape
    if batch:
        membership = group.dtype == torch.bool
        _COUNTS(
            logits.device, (), lambda c: (batch,), logits, logits.stride(0), classes, label,
            group.view(torch.uint8) if membership else group, counts, counts.shape[0], flag_of(logits.device),
            WIDE=_wide(logits.dtype), ALIGN=_align(logits.stride(0), classes), MEMBERSHIP=membership,
        )  # fmt: skip
    _finish(logits.device, "group_counts")


KERNELS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        draw, draw_out, mix_images, mix_images_out, mix_image_batch, mix_image_batch_out, mix_rows, mix_rows_out,
        mix_labels, mix_labels_out, mixed_cross_entropy, mixed_cross_entropy_backward, mixed_cross_entropy_with_grad,
        group_counts,
    )
}  # fmt: skip
