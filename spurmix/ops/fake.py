"""Fake kernels: the shapes, dtypes and layouts of the operators' results, for torch.compile and torch.export."""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.ops.reference.cross_entropy import NONE


def _empty(
    like: Tensor, shape: tuple[int | torch.SymInt, ...], dtype: torch.dtype, channels_last: bool = False
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)


def nothing(*args: object) -> None:
    """An operator that writes to its arguments."""


def draw(
    tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None = None
) -> tuple[Tensor, ...]:
    """index, partner, lam, group."""
    dtypes = (torch.int64, torch.int64, torch.float32, torch.int64)
    return tuple(_empty(tables, (count,), dtype) for dtype in dtypes)


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
    """Images `[B, C, height, width]`."""
    return _empty(index, (index.shape[0], images.shape[3], height, width), dtype, channels_last)


def mix_image_batch(images: Tensor, labels: Tensor, *rest: object, counter: Tensor | None = None) -> tuple[Tensor, ...]:
    """input, label, partner_label, lam, index, partner, group."""
    # The schema of the operator checks the types of `rest`.
    count, height, width, dtype, channels_last = rest[12:17]
    mixed = _empty(labels, (count, images.shape[3], height, width), dtype, channels_last)  # type: ignore[arg-type]
    dtypes = (torch.int64, torch.int64, torch.float32, torch.int64, torch.int64, torch.int64)
    return mixed, *(_empty(labels, (count,), dtype) for dtype in dtypes)  # type: ignore[arg-type]


def mix_rows(rows: Tensor, index: Tensor, partner: Tensor, lam: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `[B, D]`."""
    return _empty(rows, (index.shape[0], rows.shape[1]), dtype)


def mix_labels(label: Tensor, partner_label: Tensor, lam: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Targets `[B, num_classes]`."""
    return _empty(label, (label.shape[0], num_classes), dtype)


def mixed_cross_entropy(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The loss, `[B]` or a scalar, and logsumexp `[B]`."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    batch = (logits.shape[0],)
    return _empty(logits, batch if reduction == NONE else (), wide), _empty(logits, batch, wide)


def mixed_cross_entropy_with_grad(
    logits: Tensor, label: Tensor, partner_label: Tensor, lam: Tensor, reduction: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of the logits."""
    loss, _ = mixed_cross_entropy(logits, label, partner_label, lam, reduction, label_smoothing)
    return loss, _empty(logits, tuple(logits.shape), logits.dtype)


def mixed_cross_entropy_backward(grad: Tensor, logits: Tensor, *rest: object) -> Tensor:
    """The gradient of the logits."""
    return _empty(logits, tuple(logits.shape), logits.dtype)


def mix_embeddings(
    weight: Tensor,
    ids: Tensor,
    partner_ids: Tensor,
    lam: Tensor,
    mask: Tensor | None,
    partner_mask: Tensor | None,
    padding_idx: int,
    dtype: torch.dtype,
) -> Tensor:
    """Embeddings `[B, S, D]`."""
    return _empty(weight, (*ids.shape, weight.shape[1]), dtype)


def mix_embeddings_backward(
    grad: Tensor,
    ids: Tensor,
    partner_ids: Tensor,
    lam: Tensor,
    mask: Tensor | None,
    partner_mask: Tensor | None,
    padding_idx: int,
    rows: int,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of the table, `[rows, D]`."""
    return _empty(grad, (rows, grad.shape[2]), dtype)


def mix_embeddings_backward_rows(grad: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    """The rows with a gradient and their gradients. Their number depends on the ids."""
    count, dtype = torch.library.get_ctx().new_dynamic_size(), rest[-1]
    assert isinstance(dtype, torch.dtype)
    return _empty(grad, (count,), torch.int64), _empty(grad, (count, grad.shape[2]), dtype)


def mix_bert_embeddings(weight: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings `[B, S, D]`, their mean and their reciprocal deviation `[B, S]`."""
    ids, dtype = rest[4], rest[-1]
    assert isinstance(ids, Tensor)
    assert isinstance(dtype, torch.dtype)
    wide = torch.promote_types(weight.dtype, torch.float32)
    shape = tuple(ids.shape)
    return _empty(weight, (*shape, weight.shape[1]), dtype), _empty(weight, shape, wide), _empty(weight, shape, wide)


def mix_bert_embeddings_backward(
    grad: Tensor,
    weight: Tensor,
    position_weight: Tensor,
    type_weight: Tensor | None,
    norm_weight: Tensor,
    *rest: object,
) -> tuple[Tensor, ...]:
    """Gradients of the mixed words, the positions, the types, and the weight and bias of LayerNorm."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    columns = weight.shape[1]
    return (
        _empty(grad, tuple(grad.shape), wide),
        _empty(weight, tuple(position_weight.shape), weight.dtype),
        _empty(weight, (0 if type_weight is None else type_weight.shape[0], columns), weight.dtype),
        _empty(weight, (columns,), weight.dtype),
        _empty(weight, (columns,), weight.dtype),
    )
