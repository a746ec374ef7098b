"""Plain PyTorch beside every operator: the only normative arithmetic, and what runs where nothing was compiled.

The functions take the arguments of the schemas in `schema.py` and assume validated types and shapes; indices and class
ids are checked here, because they are data. Fused backends are tested against these functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.ops import reference_draw

NONE, MEAN, SUM = 0, 1, 2
"""Reductions of the loss."""


def draw(
    tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """index, partner int64 `[B]`, lam float32 `[B]`, group int64 `[B]` of samples start to start + count."""
    drawn = reference_draw.draw(tables, members, seed, start, count, counter)
    return drawn.index, drawn.partner, drawn.lam, drawn.group


def check_index(index: Tensor, count: int, name: str) -> None:
    """Raise IndexError where an entry of `index` lies outside [0, count)."""
    if index.numel() == 0:
        return
    bad = (index < 0) | (index >= count)
    if bool(bad.any()):
        at = int(bad.to(torch.uint8).argmax())
        raise IndexError(f"{name}[{at}] = {int(index[at])} is out of range [0, {count})")


def _axis_taps(start: Tensor, extent: Tensor, size: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear taps of one axis: i0, i1 int64 and the weight of i1, float32, each `[B, out]`; start, extent in Q16."""
    k = torch.arange(out, dtype=torch.int64, device=start.device)
    step = torch.div((2 * k + 1) * extent[:, None], 2 * out, rounding_mode="floor")
    p = (start[:, None] + step - 32768).clamp(0, (size - 1) << 16)
    i0 = p >> 16
    return i0, (i0 + 1).clamp(max=size - 1), (p & 65535).to(torch.float32) / 65536


def _q16(boxes: Tensor) -> Tensor:
    limit = float(1 << 20)
    return torch.round(
        torch.nan_to_num(boxes, nan=0.0, posinf=limit, neginf=-limit).clamp(-limit, limit).double() * 65536
    ).long()


def _sampled(images: Tensor, index: Tensor, box: Tensor | None, flip: Tensor | None, height: int, width: int) -> Tensor:
    """Rows `index` of uint8 `[N, H, W, C]`, cropped, resized and flipped: float32 `[B, height, width, C]`, 0 to 255."""
    rows = images[index].to(torch.float32)
    if box is not None:
        q = _q16(box)
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
    """Normalised mix of image pairs, `[B, C, height, width]`."""
    check_index(index, images.shape[0], "index")
    check_index(partner, images.shape[0], "partner")
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
    """Draw, crop, flip, normalise, mix and label: input, label, partner_label, lam, index, partner, group."""
    drawn = reference_draw.draw(tables, members, seed, start, count, counter)
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
    keep = reference_draw.keeps_labels(tables)
    partner_label = label.clone() if keep else labels[drawn.partner].to(torch.int64)
    return mixed, label, partner_label, drawn.lam, drawn.index, drawn.partner, drawn.group


def mix_rows(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype) -> Tensor:
    """lam * rows[index] + (1 - lam) * rows[partner], `[B, D]`, in float32 (float64 for float64 rows)."""
    check_index(index, rows.shape[0], "index")
    check_index(partner, rows.shape[0], "partner")
    wide = torch.promote_types(rows.dtype, torch.float32)
    weight = lam.to(wide)[:, None]
    return (weight * rows[index].to(wide) + (1 - weight) * rows[partner].to(wide)).to(dtype)


def mix_labels(label: Tensor, partner_label: Tensor, lam: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Dense targets lam * onehot(label) + (1 - lam) * onehot(partner_label), `[B, num_classes]`."""
    check_index(label, num_classes, "label")
    check_index(partner_label, num_classes, "partner_label")
    wide = torch.promote_types(dtype, torch.float32)
    target = torch.zeros(label.shape[0], num_classes, dtype=wide, device=label.device)
    weight = lam.to(wide)[:, None]
    target.scatter_add_(1, label[:, None], weight)
    target.scatter_add_(1, partner_label[:, None], 1 - weight)
    return target.to(dtype)


def _soft_target(
    shape: torch.Size, dtype: torch.dtype, label: Tensor, partner_label: Tensor, lam: Tensor, label_smoothing: float
) -> Tensor:
    target = mix_labels(label, partner_label, lam, shape[1], dtype)
    return (1 - label_smoothing) * target + label_smoothing / shape[1]


def mixed_cross_entropy(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross entropy against the mixed, smoothed target: loss (`[B]` or scalar) and logsumexp `[B]`."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    check_index(label, x.shape[1], "label")
    check_index(partner_label, x.shape[1], "partner_label")
    # Relative to the maximum, which keeps the digits that large logits would swallow.
    top = x.detach().amax(dim=1)
    origin = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    shifted = x - origin[:, None]
    relative = torch.logsumexp(shifted, dim=1)
    weight = lam.to(x.dtype)
    # A class of weight 0 contributes nothing, also where its logit is infinite.
    own, other = shifted.gather(1, label[:, None])[:, 0], shifted.gather(1, partner_label[:, None])[:, 0]
    own = torch.where(weight == 0, torch.zeros_like(own), weight * own)
    other = torch.where(weight == 1, torch.zeros_like(other), (1 - weight) * other)
    loss = relative - (1 - label_smoothing) * (own + other)
    if label_smoothing:
        loss = loss - label_smoothing * shifted.mean(dim=1)
    logsumexp = origin + relative
    if reduction == MEAN:
        return loss.mean(), logsumexp
    return (loss.sum() if reduction == SUM else loss), logsumexp


def mixed_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    logsumexp: Tensor,
    label: Tensor,
    partner_label: Tensor,
    lam: Tensor,
    reduction: int,
    label_smoothing: float,
) -> Tensor:
    """(softmax - target) * grad, of the dtype of `logits`, `[B, C]`."""
    x = logits.to(logsumexp.dtype)
    target = _soft_target(x.shape, x.dtype, label, partner_label, lam, label_smoothing)
    scale = grad.to(x.dtype) / max(1, x.shape[0]) if reduction == MEAN else grad.to(x.dtype)
    scale = scale[:, None] if reduction == NONE else scale
    return ((torch.exp(x - logsumexp[:, None]) - target) * scale).to(logits.dtype)


def mixed_cross_entropy_with_grad(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient for an upstream gradient of 1; logits float32 or float64 `[B, C]`."""
    arguments = (label, partner_label, lam, reduction, label_smoothing)
    loss, logsumexp = mixed_cross_entropy(logits, *arguments)
    return loss, mixed_cross_entropy_backward(torch.ones_like(loss), logits, logsumexp, *arguments)


def group_counts(logits: Tensor, label: Tensor, group: Tensor, counts: Tensor) -> None:
    """Add (correct, total) per group to `counts` int64 `[G, 2]`; group int64 `[B]` (-1: nowhere) or bool `[B, G]`."""
    correct = (logits.argmax(dim=1) == label).to(torch.int64)
    both = torch.stack([correct, torch.ones_like(correct)], dim=1)
    if group.dtype == torch.bool:
        counts += group.to(torch.int64).T @ both
        return
    check_index(group + 1, counts.shape[0] + 1, "group + 1")
    counted = group >= 0
    counts.index_add_(0, group[counted], both[counted])
