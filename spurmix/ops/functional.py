"""The public, validated calls: `spurmix.functional.<op>`. Every op takes `backend=` and, where it fills one, `out=`.

Indices and class ids are data, so the kernels check them, before any read: the call raises IndexError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.ops import validate
from spurmix.ops.augment import NO_AUGMENT, Augment
from spurmix.ops.backends import implementation, serving
from spurmix.ops.calls import call as _call
from spurmix.ops.calls import into as _into
from spurmix.ops.calls import transformable as _transformable
from spurmix.ops.embedding_grad import GradientBuffer
from spurmix.ops.embeddings import mix_bert_embeddings, mix_embeddings
from spurmix.ops.flags import check
from spurmix.ops.loss_with_grad import LossWithGrad
from spurmix.ops.reference import MEAN, NONE, SUM
from spurmix.ops.tables import DrawTables, draw_tables

__all__ = [
    "Augment",
    "Draw",
    "DrawTables",
    "GradientBuffer",
    "MixedImages",
    "check",
    "draw",
    "draw_tables",
    "group_counts",
    "mix_bert_embeddings",
    "mix_embeddings",
    "mix_image_batch",
    "mix_images",
    "mix_labels",
    "mix_rows",
    "mixed_cross_entropy",
]

_REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}
_WIDE = (*validate.FLOATS, torch.float64)
_CPU = torch.device("cpu")


class Draw(NamedTuple):
    """index, partner: int64 `[B]`; lam: float32 `[B]`, the weight of index, a multiple of 2^-24."""

    index: Tensor  # type: ignore[assignment]  # a field, not the method of tuple
    partner: Tensor
    lam: Tensor


class MixedImages(NamedTuple):
    """What `mix_image_batch` returns: input `[B, C, h, w]`; label, partner_label, index, partner, group int64 `[B]`;
    lam float32 `[B]`."""

    input: Tensor
    label: Tensor
    partner_label: Tensor
    lam: Tensor
    index: Tensor  # type: ignore[assignment]  # a field, not the method of tuple
    partner: Tensor
    group: Tensor


def draw(
    groups: GroupIndex | DrawTables,
    policy: MixPolicy | None = None,
    *,
    seed: int,
    start: int,
    count: int,
    out: Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> Draw:
    """Samples `start` to `start + count` of the policy's global sequence: a pure function of (seed, sample number).

    Args:
        groups: the dataset's groups; or prepared `draw_tables`, then without `policy`.
        policy: see `spurmix.policies`.
        seed: in [0, 2^63).
        start, count: sample numbers, start + count at most 2^63.
        out: three tensors `[count]` to write into, index, partner and lam; or four, with the group of index, int64.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; all give the same bits.

    Returns:
        Draw(index, partner, lam). Without partner, partner = index and lam = 1.
    """
    tables = _prepared(groups, policy)
    validate.sequence_position(seed, start, count)
    device = tables.packed.device
    if out is None:
        function = implementation("draw", backend, device)
        return Draw(*_call(function, tables.packed, tables.members, seed, start, count)[:3])
    if len(out) not in (3, 4):
        raise ValueError(f"out must hold index, partner, lam and, if wanted, group, got {len(out)} tensors")
    for k, name in enumerate(("index", "partner", "lam", "group")[: len(out)]):
        kind = torch.float32 if name == "lam" else torch.int64
        validate.output(out[k], (count,), (kind,), device, f"out[{k}] ({name})")
    validate.apart(out)
    group = out[3] if len(out) == 4 else torch.empty_like(out[0])
    _call(
        implementation("draw_out", backend, device), tables.packed, tables.members, seed, start, None, *out[:3], group
    )
    torch.autograd.graph.increment_version(list(out))
    return Draw(*out[:3])


def _prepared(groups: GroupIndex | DrawTables, policy: MixPolicy | None) -> DrawTables:
    if isinstance(groups, DrawTables):
        if policy is not None:
            raise TypeError("policy: prepared tables already hold one")
        return groups
    if policy is None:
        raise TypeError("policy is required with a GroupIndex")
    return draw_tables(groups, policy)


def _mixing_rows(index: Any, partner: Any, lam: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Check the three row arguments `[B]`; contiguous ones."""
    batch = validate.tensor(index, "index", (torch.int64,), ("B",)).shape[0]
    validate.tensor(partner, "partner", (torch.int64,), (batch,))
    validate.tensor(lam, "lam", (torch.float32,), (batch,))
    validate.same_device(device, index=index, partner=partner, lam=lam)
    return index.contiguous(), partner.contiguous(), lam.contiguous()


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
    """Mix rows of a uint8 image store and normalise them, in one pass.

    Equivalent without boxes and flips to::

        x = lam[:, None, None, None] * images[index] + (1 - lam[:, None, None, None]) * images[partner]
        ((x / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)

    Args:
        images: uint8 `[N, H, W, C]`, each image contiguous; for indices on a GPU also in pinned memory of the host.
        index, partner: int64 `[B]` in [0, N); lam: float32 `[B]`, weight of index.
        mean, std: per channel, `[C]`, in units of 0 to 1; a number serves all channels.
        boxes: float32 `[B, 2, 4]`: top, left, height, width in pixels of the crop of index and partner, rounded to 2^-16.
            Sampling is bilinear with half-pixel centres and clamps to the image.
        flips: uint8 or bool `[B, 2]`: mirror index / partner.
        size: output (h, w) with boxes; otherwise the images' own.
        dtype: float32, float16 or bfloat16, rounded once from float32.
        channels_last: memory format of a fresh output.
        out: write into this `[B, C, h, w]` tensor instead, contiguous or channels_last.

    Returns:
        `[B, C, h, w]`.

    Raises:
        TypeError, ValueError: naming the argument. IndexError: for an index outside [0, N), before any read.
    """
    validate.images(images)
    device = validate.store_device(images, index)
    _, rows, columns, channels = images.shape
    index, partner, lam = _mixing_rows(index, partner, lam, device)
    batch = index.shape[0]
    validate.no_grad_input(lam=lam)
    mean = validate.normalisation(mean, "mean", channels, device)
    std = validate.normalisation(std, "std", channels, device)
    if boxes is not None:
        validate.tensor(boxes, "boxes", (torch.float32,), (batch, 2, 4))
        boxes = boxes.contiguous()
    if flips is not None:
        validate.tensor(flips, "flips", (torch.uint8, torch.bool), (batch, 2))
        flips = flips.contiguous()
    validate.same_device(device, boxes=boxes, flips=flips)
    height, width = (
        size if size is not None else (out.shape[2:] if out is not None and out.dim() == 4 else (rows, columns))
    )
    if boxes is None and (height, width) != (rows, columns):
        raise ValueError(f"size {(height, width)} differs from the images' {(rows, columns)}, which needs boxes")
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {(height, width)}")
    inputs = (images, index, partner, lam, mean, std, boxes, flips)
    if out is not None:
        validate.output(out, (batch, channels, height, width), validate.FLOATS, device)
        return _into(out, implementation("mix_images_out", backend, device), *inputs)
    validate.float_dtype(dtype)
    return _call(implementation("mix_images", backend, device), *inputs, height, width, dtype, channels_last)


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
    """Draw, crop, flip, normalise, mix and label a batch in one pass: samples `start` to `start + count`.

    Equivalent, without augmentation, to::

        index, partner, lam = draw(tables, seed=seed, start=start, count=count)
        mix_images(images, index, partner, lam, mean=mean, std=std), labels[index], labels[partner]

    Args:
        images: uint8 `[N, H, W, C]`, each image contiguous; for tables on a GPU also in pinned memory of the host.
        labels: integers `[N]`.
        tables: from `draw_tables(groups, policy)`, on the device of the labels and of the output.
        augment: random resized crop and flip, see `Augment`; their randomness is part of the draw.
        out: seven tensors to write into, in the order of `MixedImages`.
        Others as in `mix_images` and `draw`.
    """
    validate.images(images)
    device = validate.store_device(images, tables.packed)
    total, rows, columns, channels = images.shape
    validate.tensor(labels, "labels", validate.INTEGERS, (total,))
    validate.same_device(device, labels=labels, tables=tables.packed, members=tables.members)
    if tables.num_examples != total:
        raise ValueError(f"images: {total} images, but the groups have {tables.num_examples} examples")
    validate.sequence_position(seed, start, count)
    augment = augment if augment is not None else NO_AUGMENT
    height, width = augment.output_size(rows, columns)
    mean = validate.normalisation(mean, "mean", channels, device)
    std = validate.normalisation(std, "std", channels, device)
    inputs = (images, labels, tables.packed, tables.members, mean, std, augment.crop, *augment.scale, *augment.ratio,
              augment.flip, seed, start)  # fmt: skip
    if out is None:
        validate.float_dtype(dtype)
        function = implementation("mix_image_batch", backend, device)
        return MixedImages(*_call(function, *inputs, count, height, width, dtype, channels_last))
    if len(out) != 7:
        raise ValueError(f"out must hold the 7 tensors of MixedImages, got {len(out)}")
    validate.output(out[0], (count, channels, height, width), validate.FLOATS, device, "out[0]")
    for k, name in enumerate(MixedImages._fields[1:], start=1):
        kind = torch.float32 if name == "lam" else torch.int64
        validate.output(out[k], (count,), (kind,), device, f"out[{k}] ({name})")
    validate.apart(out)
    _call(implementation("mix_image_batch_out", backend, device), *inputs, None, *out)
    torch.autograd.graph.increment_version(out)
    return MixedImages(*out)


def mix_rows(
    rows: Tensor,
    index: Tensor,
    partner: Tensor,
    lam: Tensor,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mix rows of a feature table; differentiable in `rows` and `lam`.

    Equivalent to ``lam[:, None] * rows[index] + (1 - lam[:, None]) * rows[partner]``, computed in float32 (float64 for
    float64 rows).

    Args:
        rows: float32, float16, bfloat16 or float64 `[N, D]`, each row contiguous.
        index, partner: int64 `[B]` in [0, N); lam: float32 `[B]`, weight of index.
        dtype: of the result, default that of `rows`.
        out: write into this contiguous `[B, D]` tensor instead; nothing may require grad then.

    Returns:
        `[B, D]`.
    """
    validate.tensor(rows, "rows", _WIDE, ("N", "D"))
    if rows.shape[1] > 1 and rows.stride(1) != 1:
        raise ValueError("rows: each row must be contiguous; call .contiguous()")
    index, partner, lam = _mixing_rows(index, partner, lam, rows.device)
    batch = index.shape[0]
    if out is not None:
        validate.output(out, (batch, rows.shape[1]), _WIDE, rows.device)
        validate.no_grad_input(rows=rows, lam=lam)
        return _into(out, implementation("mix_rows_out", backend, rows.device), rows, index, partner, lam)
    kind = validate.float_dtype(dtype if dtype is not None else rows.dtype, allowed=_WIDE)
    backend = _transformable(backend)
    return _call(implementation("mix_rows", backend, rows.device), rows, index, partner, lam, kind)


def mix_labels(
    label: Tensor,
    partner_label: Tensor,
    lam: Tensor,
    num_classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Dense mixed targets, for losses that need them; `mixed_cross_entropy` does without.

    Equivalent to ``lam[:, None] * one_hot(label, C) + (1 - lam[:, None]) * one_hot(partner_label, C)``.

    Args:
        label, partner_label: int64 `[B]` in [0, num_classes); lam: float32 `[B]`.
        dtype: float32, float16, bfloat16 or float64.
        out: write into this contiguous `[B, num_classes]` tensor instead.

    Returns:
        `[B, num_classes]`.
    """
    label, partner_label, lam = _labels(label, partner_label, lam, None)
    batch = label.shape[0]
    validate.no_grad_input(lam=lam)
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
    if out is not None:
        validate.output(out, (batch, num_classes), _WIDE, label.device)
        return _into(out, implementation("mix_labels_out", backend, label.device), label, partner_label, lam)
    kind = validate.float_dtype(dtype, allowed=_WIDE)
    function = implementation("mix_labels", backend, label.device)
    return _call(function, label, partner_label, lam, num_classes, kind)


def _labels(label: Any, partner_label: Any, lam: Any, batch: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check the three label arguments `[B]`; contiguous ones."""
    size = validate.tensor(label, "label", (torch.int64,), (batch if batch is not None else "B",)).shape[0]
    validate.tensor(partner_label, "partner_label", (torch.int64,), (size,))
    validate.tensor(lam, "lam", (torch.float32,), (size,))
    validate.same_device(label.device, partner_label=partner_label, lam=lam)
    return label.contiguous(), partner_label.contiguous(), lam.contiguous()


def mixed_cross_entropy(
    logits: Tensor,
    label: Tensor,
    partner_label: Tensor | None = None,
    lam: Tensor | None = None,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Cross entropy of mixed samples, without dense targets; differentiable in `logits`, again by the reference.

    Equivalent to::

        target = lam[:, None] * one_hot(label, C) + (1 - lam[:, None]) * one_hot(partner_label, C)
        torch.nn.functional.cross_entropy(logits, target, reduction=reduction, label_smoothing=label_smoothing)

    Args:
        logits: float32, float16, bfloat16 or float64 `[B, C]`, each row contiguous; computed in float32 (float64).
        label: int64 `[B]` in [0, C).
        partner_label: int64 `[B]`; None: the label alone.
        lam: float32 `[B]`, weight of label; None: 1.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1].

    Returns:
        A scalar, or `[B]` with "none"; float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: naming the argument. IndexError: for a class id outside [0, C), before any read.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing!r}")
    settings = (_REDUCTIONS[reduction], float(label_smoothing))
    backend = _transformable(backend)
    if _takes_grad_along(logits, label, partner_label, lam, backend=backend):
        try:
            return LossWithGrad.apply(logits, label, partner_label, lam, *settings)
        except RuntimeError:  # the kernel took nothing it could not use; below it is named, or put right
            pass
    inputs = _checked_loss_inputs(logits, label, partner_label, lam)
    if _takes_grad_along(*inputs, backend=backend):
        return _call(LossWithGrad.apply, *inputs, *settings)
    return _call(implementation("mixed_cross_entropy", backend, inputs[0].device), *inputs, *settings)[0]


def _takes_grad_along(logits: Any, label: Any, partner_label: Any, lam: Any, *, backend: str) -> bool:
    """Whether the gradient is made in the forward pass: on compiled CPU kernels, outside torch.compile, and not for half
    types, whose gradient would be rounded before a loss scale is applied."""
    return (
        isinstance(logits, Tensor)
        and isinstance(label, Tensor)
        and isinstance(partner_label, Tensor)
        and isinstance(lam, Tensor)
        and logits.requires_grad
        and not lam.requires_grad
        and (logits.dtype is torch.float32 or logits.dtype is torch.float64)
        and logits.is_cpu
        and label.is_cpu
        and partner_label.is_cpu
        and lam.is_cpu
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and serving("cpu", backend) == "cpu"
    )


def _checked_loss_inputs(logits: Any, label: Any, partner_label: Any, lam: Any) -> tuple[Tensor, ...]:
    """The inputs, checked one by one; contiguous ones, with a missing partner filled in."""
    validate.tensor(logits, "logits", _WIDE, ("B", "C"))
    if logits.shape[1] < 1:
        raise ValueError("logits must have at least one class")
    if (partner_label is None) != (lam is None):
        raise ValueError("partner_label and lam belong together: give both or neither")
    if partner_label is None or lam is None:
        partner_label, lam = label, torch.ones(logits.shape[0], dtype=torch.float32, device=logits.device)
    label, partner_label, lam = _labels(label, partner_label, lam, logits.shape[0])
    validate.same_device(logits.device, label=label)
    validate.no_grad_input(lam=lam)
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    return logits, label, partner_label, lam


def group_counts(
    logits: Tensor,
    label: Tensor,
    group: Tensor,
    num_groups: int | None = None,
    *,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Correct and total predictions of each group, added up on the device without a synchronisation.

    Equivalent to ``correct = logits.argmax(1) == label`` and ``torch.bincount`` of `group`, weighted and not.

    Args:
        logits: floating `[B, C]`; the prediction is the largest, the first among equals; NaN counts as largest.
        label: int64 `[B]`.
        group: int64 `[B]` in [-1, G), -1 is counted nowhere; or bool `[B, G]`, membership of groups that may overlap.
        num_groups: G, needed for integer groups without `out`.
        out: int64 `[G, 2]` to add to.

    Returns:
        int64 `[G, 2]`: (correct, total).
    """
    batch = validate.tensor(logits, "logits", _WIDE, ("B", "C")).shape[0]
    if logits.shape[1] < 1:
        raise ValueError("logits must have at least one class")
    validate.tensor(label, "label", (torch.int64,), (batch,))
    membership = isinstance(group, Tensor) and group.dtype == torch.bool
    validate.tensor(group, "group", (torch.int64, torch.bool), (batch, "G") if membership else (batch,))
    validate.same_device(logits.device, label=label, group=group)
    count = group.shape[1] if membership else (out.shape[0] if out is not None else num_groups)
    if count is None or count < 0:
        raise ValueError(f"num_groups must be given for integer groups and be 0 or more, got {num_groups}")
    if out is None:
        out = torch.zeros(count, 2, dtype=torch.int64, device=logits.device)
    validate.output(out, (count, 2), (torch.int64,), logits.device)
    logits = logits.detach()
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    function = implementation("group_counts", backend, logits.device)
    return _into(out, function, logits, label.contiguous(), group.contiguous())
