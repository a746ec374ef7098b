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
from spurmix.kernels.draw import draw_kernel
from spurmix.kernels.images import mix_image_batch_kernel, mix_images_kernel
from spurmix.kernels.loss import cross_entropy_backward_kernel, cross_entropy_kernel, group_counts_kernel
from spurmix.kernels.rows import mix_labels_kernel, mix_rows_kernel
from torch import Tensor

import triton
import triton.language as tl
from spurmix.core.tables import KEEP_LABELS

NONE, MEAN = 0, 1
DRAW_BLOCK, COLUMN_BLOCK = 128, 1024
PIXEL_BLOCK, CROP_BLOCK = 1024, 256  # bilinear taps take many registers

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
    if device.type == "cpu" or os.environ.get("SPURMIX_DEBUG") == "1":
        check(device, op)


def _wide(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _block(size: int, most: int = COLUMN_BLOCK) -> int:
    return min(most, triton.next_power_of_2(max(1, size)))


def _last(out: Tensor) -> bool:
    """Whether [B, C, h, w] is channels last; contiguous memory is not."""
    return not out.is_contiguous()


def _check_size(images: Tensor, height: int, width: int) -> None:
    if images.shape[1] * images.shape[2] * images.shape[3] >= 1 << 31 or height * width >= 1 << 31:
        raise ValueError(f"images of shape {list(images.shape[1:])} are too large for the Triton kernels")
    if max(height, width) > 32767:
        raise ValueError(f"size must be at most 32767 a side for the Triton kernels, got {(height, width)}")


def draw_out(tables: Tensor, members: Tensor, seed: int, start: int, counter: Tensor | None, *out: Tensor) -> None:
    index, partner, lam, group = out
    count = index.numel()
    if count:
        draw_kernel[(triton.cdiv(count, DRAW_BLOCK),)](
            tables, tables.numel(), members, seed, start, counter, index, partner, lam, group, flag_of(tables.device),
            count, HAS_MEMBERS=members.numel() > 0, HAS_COUNTER=counter is not None, BLOCK=DRAW_BLOCK,
        )  # fmt: skip
    _finish(tables.device, "draw")


def draw(
    tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kinds = (torch.int64, torch.int64, torch.float32, torch.int64)
    out = tuple(torch.empty(count, dtype=kind, device=tables.device) for kind in kinds)
    draw_out(tables, members, seed, start, counter, *out)
    return out  # type: ignore[return-value]


def mix_images_out(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, mean: Tensor, std: Tensor, boxes: Tensor | None,
    flips: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    total, height, width, channels = images.shape
    batch, _, out_height, out_width = out.shape
    _check_size(images, out_height, out_width)
    if batch:
        block = _block(out_height * out_width, PIXEL_BLOCK if boxes is None else CROP_BLOCK)
        flips = flips.view(torch.uint8) if flips is not None else None
        mix_images_kernel[(batch, triton.cdiv(out_height * out_width, block))](
            images, images.stride(0), total, index, partner, lam, mean, std, boxes, flips, out, flag_of(images.device),
            height, width, out_height, out_width, CROP=boxes is not None, FLIP=flips is not None, LAST=_last(out),
            CHANNELS=channels, BLOCK=block,
        )  # fmt: skip
    _finish(images.device, "mix_images")


def _images(like: Tensor, batch: int, height: int, width: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, like.shape[3], height, width)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)


def mix_images(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, mean: Tensor, std: Tensor, boxes: Tensor | None,
    flips: Tensor | None, height: int, width: int, dtype: torch.dtype, channels_last: bool,
) -> Tensor:  # fmt: skip
    out = _images(images, index.shape[0], height, width, dtype, channels_last)
    mix_images_out(images, index, partner, lam, mean, std, boxes, flips, out)
    return out


def mix_image_batch_out(
    images: Tensor, labels: Tensor, tables: Tensor, members: Tensor, mean: Tensor, std: Tensor, crop: bool,
    scale_min: float, scale_max: float, ratio_min: float, ratio_max: float, flip: bool, seed: int, start: int,
    counter: Tensor | None, *out: Tensor,
) -> None:  # fmt: skip
    mixed = out[0]
    batch, _, out_height, out_width = mixed.shape
    _check_size(images, out_height, out_width)
    if batch:
        block = _block(out_height * out_width, CROP_BLOCK if crop else PIXEL_BLOCK)
        mix_image_batch_kernel[(batch, triton.cdiv(out_height * out_width, block))](
            images, images.stride(0), labels, tables, tables.numel(), members, mean, std, scale_min, scale_max,
            math.log(ratio_min), math.log(ratio_max), seed, start, counter, *out, flag_of(images.device),
            images.shape[1], images.shape[2], out_height, out_width, HAS_MEMBERS=members.numel() > 0,
            HAS_COUNTER=counter is not None, KEEP_LABELS=KEEP_LABELS, CROP=crop, FLIP=flip, LAST=_last(mixed),
            CHANNELS=images.shape[3], BLOCK=block,
        )  # fmt: skip
    _finish(images.device, "mix_image_batch")


def mix_image_batch(*inputs: Any, counter: Tensor | None = None) -> tuple[Tensor, ...]:
    images, batch = inputs[0], inputs[14]
    kinds = (torch.int64, torch.int64, torch.float32, torch.int64, torch.int64, torch.int64)
    out = [_images(images, *inputs[14:19])]
    out += [torch.empty(batch, dtype=kind, device=images.device) for kind in kinds]
    mix_image_batch_out(*inputs[:14], inputs[19] if len(inputs) > 19 else counter, *out)
    return tuple(out)


def mix_rows_out(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> None:
    batch, columns = out.shape
    if batch and columns:
        block = _block(columns)
        mix_rows_kernel[(batch, triton.cdiv(columns, block))](
            rows, rows.stride(0), rows.shape[0], index, partner, lam, out, columns, flag_of(rows.device),
            WIDE=_wide(rows.dtype), BLOCK=block,
        )  # fmt: skip
    _finish(rows.device, "mix_rows")


def mix_rows(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(index.shape[0], rows.shape[1], dtype=dtype, device=rows.device)
    mix_rows_out(rows, index, partner, lam, out)
    return out


def mix_labels_out(label: Tensor, partner_label: Tensor, lam: Tensor, out: Tensor) -> None:
    batch, classes = out.shape
    if batch:
        block = _block(classes)
        mix_labels_kernel[(batch, triton.cdiv(classes, block))](
            label, partner_label, lam, out, classes, flag_of(label.device), WIDE=_wide(out.dtype), BLOCK=block
        )
    _finish(label.device, "mix_labels")


def mix_labels(label: Tensor, partner_label: Tensor, lam: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty(label.shape[0], num_classes, dtype=dtype, device=label.device)
    mix_labels_out(label, partner_label, lam, out)
    return out


def mixed_cross_entropy(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    batch, classes = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss, logsumexp = (torch.empty(batch, dtype=wide, device=logits.device) for _ in range(2))
    if batch:
        block = _block(classes, 4096)
        cross_entropy_kernel[(batch,)](
            logits, logits.stride(0), classes, label, partner_label, lam, label_smoothing, loss, logsumexp,
            flag_of(logits.device), WIDE=_wide(wide), STEPS=triton.cdiv(classes, block), BLOCK=block,
        )  # fmt: skip
    _finish(logits.device, "mixed_cross_entropy")
    return (loss if reduction == NONE else loss.mean() if reduction == MEAN else loss.sum()), logsumexp


def mixed_cross_entropy_backward(
    grad: Tensor, logits: Tensor, logsumexp: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int,
    label_smoothing: float,
) -> Tensor:  # fmt: skip
    batch, classes = logits.shape
    out = torch.empty(batch, classes, dtype=logits.dtype, device=logits.device)
    if batch:
        block = _block(classes)
        cross_entropy_backward_kernel[(batch, triton.cdiv(classes, block))](
            grad, grad.stride(0) if reduction == NONE else 0, 1.0 / batch if reduction == MEAN else 1.0, logits,
            logits.stride(0), classes, logsumexp, label, partner_label, lam, label_smoothing, out,
            flag_of(logits.device), WIDE=_wide(logsumexp.dtype), BLOCK=block,
        )  # fmt: skip
    _finish(logits.device, "mixed_cross_entropy")
    return out


def mixed_cross_entropy_with_grad(*inputs: Any) -> tuple[Tensor, Tensor]:
    loss, logsumexp = mixed_cross_entropy(*inputs)
    return loss, mixed_cross_entropy_backward(torch.ones_like(loss), inputs[0], logsumexp, *inputs[1:])


def group_counts(logits: Tensor, label: Tensor, group: Tensor, counts: Tensor) -> None:
    batch, classes = logits.shape
    if batch:
        membership, block = group.dtype == torch.bool, _block(classes)
        group_counts_kernel[(batch,)](
            logits, logits.stride(0), classes, label, group.view(torch.uint8) if membership else group, counts,
            counts.shape[0], flag_of(logits.device), WIDE=_wide(logits.dtype), MEMBERSHIP=membership,
            STEPS=triton.cdiv(classes, block), BLOCK=block, GROUP_STEPS=triton.cdiv(counts.shape[0], 16), GROUP_BLOCK=16,
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
