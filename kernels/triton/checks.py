"""Checks of kernel arguments, the same as those of the compiled operators in `csrc/ops/arguments.h`.

Kernels trust shapes, dtypes and strides, and the operators can be called without the public functions that check them.
All functions raise ValueError with the operator, the argument and the requirement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.core.table_layout import HEADER_WORDS

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LABELS = (torch.int64, torch.uint8, torch.int8, torch.int16, torch.int32)


def require(condition: bool, op: str, name: str, requirement: str) -> None:
    """Raise ValueError unless `condition` holds."""
    if not condition:
        raise ValueError(f"{op}: {name} must be {requirement}")


def tensor(
    op: str, name: str, value: Tensor, like: Tensor, dtype: torch.dtype | tuple[torch.dtype, ...], *shape: int
) -> None:
    """Require a contiguous tensor of `shape` and of one of the dtypes, on the device of `like`."""
    dtypes = (dtype,) if isinstance(dtype, torch.dtype) else dtype
    if value.dtype in dtypes and value.shape == shape and value.is_contiguous() and value.device == like.device:
        return
    names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
    got = f"{value.dtype} {list(value.shape)} on {value.device}, strides {list(value.stride())}"
    require(False, op, name, f"contiguous {names} {list(shape)} on {like.device}, got {got}")


def vectors(op: str, like: Tensor, count: int, **named: Tensor) -> None:
    """Require vectors `[count]`: float32 for `lam`, int64 for all others."""
    for name, value in named.items():
        tensor(op, name, value, like, torch.float32 if name == "lam" else torch.int64, count)


def rows(op: str, name: str, value: Tensor, like: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """Require floats `[N, D]` with contiguous rows. The row stride may be any."""
    require(value.dim() == 2 and value.device == like.device, op, name, f"a matrix on {like.device}")
    require(value.dtype in dtypes, op, name, "of floats")
    require(value.shape[1] <= 1 or value.stride(1) == 1, op, name, "of contiguous rows")


def sequence(
    op: str, tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None
) -> None:
    """Require packed tables with a whole header, their members, a seed and sample numbers in [0, 2^63)."""
    tensor(op, "tables", tables, tables, torch.int64, tables.numel())
    # Kernels read the whole header before they check it.
    require(tables.numel() >= HEADER_WORDS, op, "tables", "packed draw tables of this version")
    tensor(op, "members", members, tables, (torch.int32, torch.int64), members.numel())
    if counter is not None:
        tensor(op, "counter", counter, tables, torch.int64, 1)
    require(seed >= 0, op, "seed", "in [0, 2^63)")
    require(start >= 0 and start <= 2**63 - max(1, count), op, "start", "so that all samples lie in [0, 2^63)")


def images(
    op: str, like: Tensor, store: Tensor, mean: Tensor, std: Tensor, out: Tensor, batch: int, crops: bool
) -> None:
    """Require images `[N, H, W, C]` on any device, and their normalization and the output on the device of `like`."""
    require(store.dtype == torch.uint8 and store.dim() == 4, op, "images", "uint8 [N, H, W, C]")
    _, height, width, channels = store.shape
    require(min(height, width, channels) > 0, op, "images", "of height, width and channels of 1 or more")
    dense = (channels == 1 or store.stride(3) == 1) and (width == 1 or store.stride(2) == channels)
    dense = dense and (height == 1 or store.stride(1) == width * channels)
    require(dense, op, "images", "of contiguous [H, W, C] each")
    for name, value in (("mean", mean), ("std", std)):
        tensor(op, name, value, like, torch.float32, channels)
    require(out.dim() == 4 and out.shape[:2] == (batch, channels), op, "out", f"[{batch}, {channels}, h, w]")
    require(out.device == like.device and out.dtype in FLOATS[:3], op, "out", f"floats on {like.device}")
    require(batch == 0 or min(out.shape[2:]) > 0, op, "out", "of positive height and width")
    require(batch == 0 or crops or out.shape[2:] == (height, width), op, "out", "of the images' size, without boxes")
    channels_last = out.is_contiguous(memory_format=torch.channels_last)
    require(channels_last or out.is_contiguous(), op, "out", "contiguous or channels_last")


def crops(op: str, like: Tensor, batch: int, boxes: Tensor | None, flips: Tensor | None) -> None:
    """Require boxes `[B, 2, 4]` and flips `[B, 2]`, where they are given."""
    if boxes is not None:
        tensor(op, "boxes", boxes, like, torch.float32, batch, 2, 4)
    if flips is not None:
        tensor(op, "flips", flips, like, (torch.uint8, torch.bool), batch, 2)


def loss_gradient(op: str, grad: Tensor, logits: Tensor, logsumexp: Tensor, reduced: bool) -> None:
    """Require an upstream gradient of one element if the loss was reduced, else `[B]`, and logsumexp `[B]`."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    tensor(op, "logsumexp", logsumexp, logits, dtype, logits.shape[0])
    require(grad.dtype == dtype and grad.device == logits.device, op, "grad", f"{dtype} on {logits.device}")
    shape_matches = grad.numel() == 1 if reduced else grad.shape == logits.shape[:1]
    require(shape_matches, op, "grad", "one number, or one of each loss")


def counts(op: str, logits: Tensor, label: Tensor, group: Tensor, counts: Tensor) -> None:
    """Require labels `[B]`, counts `[G, 2]`, and groups int64 `[B]` or bool `[B, G]`."""
    tensor(op, "label", label, logits, torch.int64, logits.shape[0])
    require(counts.dim() == 2, op, "counts", "[G, 2]")
    tensor(op, "counts", counts, logits, torch.int64, counts.shape[0], 2)
    if group.dtype == torch.bool:
        tensor(op, "group", group, logits, torch.bool, logits.shape[0], counts.shape[0])
    else:
        tensor(op, "group", group, logits, torch.int64, logits.shape[0])


def lookups(
    op: str,
    like: Tensor,
    ids: Tensor,
    partner_ids: Tensor,
    lam: Tensor,
    mask: Tensor | None,
    partner_mask: Tensor | None,
) -> None:
    """Require two id matrices and masks `[B, S]`, and lam `[B]`."""
    require(ids.dim() == 2, op, "ids", "[B, S]")
    for name, value in (("ids", ids), ("partner_ids", partner_ids)):
        tensor(op, name, value, like, torch.int64, *ids.shape)
    tensor(op, "lam", lam, like, torch.float32, ids.shape[0])
    for name, given in (("mask", mask), ("partner_mask", partner_mask)):
        if given is not None:
            tensor(op, name, given, like, torch.bool, *ids.shape)


def bert(
    op: str, weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, norm_weight: Tensor, ids: Tensor,
    position_ids: Tensor, token_type_ids: Tensor | None,
) -> None:  # fmt: skip
    """Require the tables and ids of BERT's embedding block, apart from those that `lookups` checks."""
    rows(op, "weight", weight, weight)
    columns, dtype = weight.shape[1], weight.dtype
    require(columns >= 1, op, "weight", "of one column or more")
    require(position_weight.dim() == 2, op, "position_weight", "[P, D]")
    tensor(op, "position_weight", position_weight, weight, dtype, position_weight.shape[0], columns)
    tensor(op, "position_ids", position_ids, weight, torch.int64, *ids.shape)
    if type_weight is not None:
        require(type_weight.dim() == 2 and type_weight.shape[0] >= 1, op, "type_weight", "[T, D], T >= 1")
        tensor(op, "type_weight", type_weight, weight, dtype, type_weight.shape[0], columns)
        if token_type_ids is not None:
            tensor(op, "token_type_ids", token_type_ids, weight, torch.int64, *ids.shape)
    tensor(op, "norm_weight", norm_weight, weight, dtype, columns)
