"""Reference of mix_images and mix_image_batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spurmix.ops.reference import draw as reference_draw
from spurmix.ops.reference.checks import check_boxes, check_index, check_lam, check_normalization


def _axis_taps(start: Tensor, extent: Tensor, size: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear taps of one axis, each `[B, out]`: positions i0 and i1, int64, and the weight of i1, float32.

    `start` and `extent` are in units of 2^-16 pixels.
    """
    k = torch.arange(out, dtype=torch.int64, device=start.device)
    step = torch.div((2 * k + 1) * extent[:, None], 2 * out, rounding_mode="floor")
    p = (start[:, None] + step - 32768).clamp(0, (size - 1) << 16)
    i0 = p >> 16
    return i0, (i0 + 1).clamp(max=size - 1), (p & 65535).to(torch.float32) / 65536


def _fixed_point(boxes: Tensor) -> Tensor:
    """Boxes as integers in units of 2^-16 pixels, clamped to 2^20 pixels. NaN becomes 0."""
    limit = float(1 << 20)
    return torch.round(
        torch.nan_to_num(boxes, nan=0.0, posinf=limit, neginf=-limit).clamp(-limit, limit).double() * 65536
    ).long()


def _sampled(images: Tensor, index: Tensor, box: Tensor | None, flip: Tensor | None, height: int, width: int) -> Tensor:
    """Images `index`, cropped, resized and flipped, float32 `[B, height, width, C]` from 0 to 255."""
    rows = images[index].to(torch.float32)
    if box is not None:
        q = _fixed_point(box)
        y0, y1, fy = _axis_taps(q[:, 0], q[:, 2], images.shape[1], height)
        x0, x1, fx = _axis_taps(q[:, 1], q[:, 3], images.shape[2], width)
        b = torch.arange(rows.shape[0], device=rows.device)[:, None, None]
        fx, fy = fx[:, None, :, None], fy[:, :, None, None]

        def across(y: Tensor) -> Tensor:
            left, right = rows[b, y[:, :, None], x0[:, None, :]], rows[b, y[:, :, None], x1[:, None, :]]
            return left + fx * (right - left)

        top = across(y0)
        rows = top + fy * (across(y1) - top)
    if flip is not None:
        rows = torch.where(flip.to(torch.bool)[:, None, None, None], rows.flip(2), rows)
    return rows


def mix_images(
    images: Tensor,
    index: Tensor,
    partner: Tensor,
    lam: Tensor,
    mean: Tensor,
    std: Tensor,
    boxes: Tensor | None,
    flips: Tensor | None,
    height: int,
    width: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Normalized mix of pairs of images, `[B, C, height, width]`."""
    check_index(index, images.shape[0], "index")
    check_index(partner, images.shape[0], "partner")
    check_lam(lam)
    check_normalization(mean, std)
    check_boxes(boxes)
    sides = [
        _sampled(
            images,
            rows,
            boxes[:, k] if boxes is not None else None,
            flips[:, k] if flips is not None else None,
            height,
            width,
        )
        for k, rows in enumerate((index, partner))
    ]
    weight = lam[:, None, None, None]
    mixed = weight * sides[0] + (1 - weight) * sides[1]
    out = ((mixed / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def mix_image_batch(
    images: Tensor,
    labels: Tensor,
    tables: Tensor,
    members: Tensor,
    mean: Tensor,
    std: Tensor,
    crop: bool,
    scale_min: float,
    scale_max: float,
    ratio_min: float,
    ratio_max: float,
    flip: bool,
    seed: int,
    start: int,
    count: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    channels_last: bool,
    counter: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw samples, crop, flip, normalize and mix their images, and look up their labels.

    The result is input, label, partner_label, lam, index, partner, group.
    """
    drawn = reference_draw.draw_samples(tables, members, seed, start, count, counter)
    boxes = flips = None
    if crop:
        n = reference_draw.sample_numbers(tables, start, count, counter)
        scale, ratio = (scale_min, scale_max), (ratio_min, ratio_max)
        boxes = reference_draw.crop_boxes(n, seed, images.shape[1], images.shape[2], scale, ratio)
    if flip:
        flips = reference_draw.flip_flags(drawn.flip_bits)
    mixed = mix_images(
        images, drawn.index, drawn.partner, drawn.lam, mean, std, boxes, flips, height, width, dtype, channels_last
    )
    label = labels[drawn.index].to(torch.int64)
    keep_labels = reference_draw.keeps_labels(tables)
    partner_label = label.clone() if keep_labels else labels[drawn.partner].to(torch.int64)
    return mixed, label, partner_label, drawn.lam, drawn.index, drawn.partner, drawn.group


def mix_images_out(*args: Any) -> None:
    """Write the result of `mix_images` to the last argument."""
    *inputs, out = args
    mix: Callable[..., Tensor] = mix_images
    out.copy_(mix(*inputs, out.shape[2], out.shape[3], out.dtype, False))


def mix_image_batch_out(*args: Any) -> None:
    """Write the results of `mix_image_batch` to the last seven arguments."""
    inputs, counter, out = args[:14], args[14], args[15:]
    first = out[0]
    mix: Callable[..., tuple[Tensor, ...]] = mix_image_batch
    batch = mix(*inputs, first.shape[0], first.shape[2], first.shape[3], first.dtype, False, counter)
    for target, value in zip(out, batch, strict=True):
        target.copy_(value)
