"""Mixing of images: pairs that are given, or a whole batch in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spurmix.core import checks
from spurmix.ops import backends, validate
from spurmix.ops.augment import NO_AUGMENT, Augment
from spurmix.ops.calls import call, write
from spurmix.ops.functional.rows import check_pairs
from spurmix.ops.tables import DrawTables


class MixedImages(NamedTuple):
    """A batch of mixed images.

    Attributes:
        input: Mixed and normalized images, `[B, C, h, w]`.
        label: Labels of `index`, int64 `[B]`.
        partner_label: Labels of `partner`, int64 `[B]`. Equal to `label` if the policy keeps labels.
        lam: Weights of `index`, float32 `[B]`.
        index: Example numbers, int64 `[B]`.
        partner: Example numbers of the partners, int64 `[B]`.
        group: Groups of `index`, int64 `[B]`.
    """

    input: Tensor
    label: Tensor
    partner_label: Tensor
    lam: Tensor
    index: Tensor  # type: ignore[assignment]  # hides the method of tuple
    partner: Tensor
    group: Tensor


def mix_images(
    images: Tensor,
    index: Tensor,
    partner: Tensor,
    lam: Tensor,
    *,
    mean: Tensor | Sequence[float] | float = 0.0,
    std: Tensor | Sequence[float] | float = 1.0,
    boxes: Tensor | None = None,
    flips: Tensor | None = None,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mix pairs of images of a uint8 array and normalize them, in one pass. Optionally crop and flip them before.

    Equivalent PyTorch, without boxes and flips::

        x = lam[:, None, None, None] * images[index] + (1 - lam[:, None, None, None]) * images[partner]
        ((x / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)

    Args:
        images: Images, uint8 `[N, H, W, C]`, each of them contiguous. For indices on a GPU also in pinned host memory.
        index: Numbers of the first images, int64 `[B]` in [0, N).
        partner: Numbers of the second images, int64 `[B]` in [0, N).
        lam: Weights of `index`, float32 `[B]` in [0, 1].
        mean: Mean of each channel, `[C]`, for pixels from 0 to 1. A number is used for all channels.
        std: Standard deviation of each channel, `[C]`, positive. A number is used for all channels.
        boxes: Crops of index and partner, float32 `[B, 2, 4]`: top, left, height and width in pixels, rounded to 2^-16.
            Sampling is bilinear, without antialiasing, and clamped to the image.
        flips: Whether to flip index and partner horizontally, uint8 or bool `[B, 2]`.
        size: Height and width of the result, if `boxes` are given. Default: the size of the images.
        dtype: Data type of the result: float32, float16 or bfloat16, rounded once from float32.
        channels_last: Whether the result has the channels_last memory format.
        out: Tensor `[B, C, h, w]` to write to, contiguous or channels_last. It sets `size`, `dtype` and memory format.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Mixed images, `[B, C, h, w]`.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has a wrong shape, layout, value or device. On a GPU, `check` raises it later for the
            values of tensors.
        IndexError: If an index is outside [0, N). On a GPU, `check` raises it later.
        RuntimeError: If the backend is not available.

    Example:
        >>> images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
        >>> mix_images(images, torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5])).shape
        torch.Size([1, 3, 8, 8])

    Source:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, equation (1).
    """
    validate.images(images)
    device = validate.images_device(images, index)
    _, rows, columns, channels = images.shape
    index, partner, lam = check_pairs(index, partner, lam, device)
    batch = index.shape[0]
    validate.no_grad_input(lam=lam)
    mean = validate.normalization(mean, "mean", channels, device)
    std = validate.normalization(std, "std", channels, device)
    if boxes is not None:
        boxes = validate.tensor(boxes, "boxes", (torch.float32,), (batch, 2, 4)).contiguous()
    if flips is not None:
        flips = validate.tensor(flips, "flips", (torch.uint8, torch.bool), (batch, 2)).contiguous()
    validate.same_device(device, boxes=boxes, flips=flips)
    if size is not None:
        height, width = validate.height_width(size)
    else:
        height, width = out.shape[2:] if isinstance(out, Tensor) and out.dim() == 4 else (rows, columns)
    if boxes is None and (height, width) != (rows, columns):
        raise ValueError(f"size must be that of the images, {(rows, columns)}, without boxes, got {(height, width)}")
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {(height, width)}")
    inputs = (images, index, partner, lam, mean, std, boxes, flips)
    if out is not None:
        validate.output(out, (batch, channels, height, width), validate.FLOATS, device)
        validate.no_overlap(
            out, images=images, index=index, partner=partner, lam=lam, mean=mean, std=std, boxes=boxes, flips=flips
        )
        return write(out, backends.implementation("mix_images_out", backend, device), *inputs)
    validate.float_dtype(dtype)
    layout = checks.flag(channels_last, "channels_last")
    return call(backends.implementation("mix_images", backend, device), *inputs, height, width, dtype, layout)


def mix_image_batch(
    images: Tensor,
    labels: Tensor,
    tables: DrawTables,
    *,
    seed: int,
    start: int,
    count: int,
    mean: Tensor | Sequence[float] | float = 0.0,
    std: Tensor | Sequence[float] | float = 1.0,
    augment: Augment | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    out: Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> MixedImages:
    """Draw the samples `start` to `start + count - 1`, and crop, flip, normalize, mix and label them, in one pass.

    Equivalent, without augmentation::

        index, partner, lam = draw(tables, seed=seed, start=start, count=count)
        mix_images(images, index, partner, lam, mean=mean, std=std), labels[index], labels[partner]

    Args:
        images: Images, uint8 `[N, H, W, C]`, each of them contiguous. For tables on a GPU also in pinned host memory.
        labels: Classes, an integer dtype, `[N]`.
        tables: Result of `draw_tables`, on the device of the labels. The batch is made on this device.
        seed: Seed, in [0, 2^63).
        start: Number of the first sample, in [0, 2^63).
        count: Number of samples, B. start + count is at most 2^63.
        mean: Mean of each channel, `[C]`, for pixels from 0 to 1. A number is used for all channels.
        std: Standard deviation of each channel, `[C]`, positive. A number is used for all channels.
        augment: Random resized crop and flip. Default: none.
        dtype: Data type of the images: float32, float16 or bfloat16, rounded once from float32.
        channels_last: Whether the images have the channels_last memory format.
        out: Seven tensors to write to, in the order of `MixedImages`.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        The batch.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has a wrong shape, layout, value or device. On a GPU, `check` raises it later for the
            values of tensors.
        RuntimeError: If the backend is not available.

    Example:
        >>> tables = draw_tables(GroupIndex([0, 1]), policies.mixup())
        >>> images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
        >>> mix_image_batch(images, torch.tensor([0, 1]), tables, seed=0, start=0, count=4).input.shape
        torch.Size([4, 3, 8, 8])

    Source:
        `docs/draw-specification.md`.
    """
    validate.images(images)
    checks.instance(tables, "tables", DrawTables)
    device = validate.images_device(images, tables.packed)
    total, rows, columns, channels = images.shape
    validate.tensor(labels, "labels", validate.INTEGERS, (total,))
    validate.same_device(device, labels=labels, tables=tables.packed, members=tables.members)
    if tables.num_examples != total:
        raise ValueError(f"images must have {tables.num_examples} examples like the tables' groups, got {total}")
    validate.sequence_position(seed, start, count)
    augment = augment if augment is not None else NO_AUGMENT
    checks.instance(augment, "augment", Augment, optional=True)
    height, width = augment.output_size(rows, columns)
    mean = validate.normalization(mean, "mean", channels, device)
    std = validate.normalization(std, "std", channels, device)
    inputs = (images, labels, tables.packed, tables.members, mean, std, augment.crop, *augment.scale, *augment.ratio,
              augment.flip, seed, start)  # fmt: skip
    if out is None:
        validate.float_dtype(dtype)
        layout = checks.flag(channels_last, "channels_last")
        function = backends.implementation("mix_image_batch", backend, device)
        return MixedImages(*call(function, *inputs, count, height, width, dtype, layout))
    if len(validate.outputs(out)) != 7:
        raise ValueError(f"out must have the 7 tensors of MixedImages, got {len(out)}")
    validate.output(out[0], (count, channels, height, width), validate.FLOATS, device, "out[0]")
    for k, name in enumerate(MixedImages._fields[1:], start=1):
        kind = torch.float32 if name == "lam" else torch.int64
        validate.output(out[k], (count,), (kind,), device, f"out[{k}] ({name})")
    validate.no_overlap(
        out, images=images, labels=labels, tables=tables.packed, members=tables.members, mean=mean, std=std
    )
    call(backends.implementation("mix_image_batch_out", backend, device), *inputs, None, *out)
    torch.autograd.graph.increment_version(out)
    return MixedImages(*out)
