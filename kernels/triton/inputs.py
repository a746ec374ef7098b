"""Checks of what the kernels are given, those of the compiled operators (`csrc/ops_common.h`): kernels trust shapes, and the
operators may be called past the public functions.

Raises everywhere:
    ValueError: naming the operator, the argument and what it must be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spurmix.core.table_layout import HEADER_WORDS

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LABELS = (torch.int64, torch.uint8, torch.int8, torch.int16, torch.int32)


def need(condition: bool, op: str, name: str, what: str) -> None:
    if not condition:
        raise ValueError(f"{op}: {name} must be {what}")


def check(op: str, name: str, value: Tensor, like: Tensor, dtype: Any, *shape: int) -> None:
    """A contiguous tensor beside `like`, of one dtype or one of several, and of a shape."""
    dtypes = (dtype,) if isinstance(dtype, torch.dtype) else dtype
    if value.dtype in dtypes and value.shape == shape and value.is_contiguous() and value.device == like.device:
        return
    names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
    got = f"{value.dtype} {list(value.shape)} on {value.device}, strides {list(value.stride())}"
    need(False, op, name, f"contiguous {names} {list(shape)} on {like.device}, got {got}")


def vectors(op: str, like: Tensor, count: int, **named: Tensor) -> None:
    """Vectors `[count]`: float32 if called lam, else int64."""
    for name, value in named.items():
        check(op, name, value, like, torch.float32 if name == "lam" else torch.int64, count)


def rows(op: str, name: str, value: Tensor, like: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """Floats `[N, D]` whose rows are contiguous, at any distance."""
    need(value.dim() == 2 and value.device == like.device, op, name, f"a matrix on {like.device}")
    need(value.dtype in dtypes, op, name, "of floats")
    need(value.shape[1] <= 1 or value.stride(1) == 1, op, name, "of contiguous rows")


def sequence(
    op: str, tables: Tensor, members: Tensor, seed: int, start: int, count: int, counter: Tensor | None
) -> None:
    check(op, "tables", tables, tables, torch.int64, tables.numel())
    need(
        tables.numel() >= HEADER_WORDS, op, "tables", "packed draw tables of this version"
    )  # kernels read the header first
    check(op, "members", members, tables, (torch.int32, torch.int64), members.numel())
    if counter is not None:
        check(op, "counter", counter, tables, torch.int64, 1)
    need(seed >= 0, op, "seed", "in [0, 2^63)")
    need(start >= 0 and start <= 2**63 - max(1, count), op, "start", "so that all samples lie in [0, 2^63)")


def images(
    op: str, like: Tensor, store: Tensor, mean: Tensor, std: Tensor, out: Tensor, batch: int, crops: bool
) -> None:
    """The images `[N, H, W, C]`, wherever they are, their normalisation, and the batch beside `like`."""
    need(store.dtype == torch.uint8 and store.dim() == 4, op, "images", "uint8 [N, H, W, C]")
    _, height, width, channels = store.shape
    need(min(height, width, channels) > 0, op, "images", "of height, width and channels of 1 or more")
    dense = (channels == 1 or store.stride(3) == 1) and (width == 1 or store.stride(2) == channels)
    need(dense and (height == 1 or store.stride(1) == width * channels), op, "images", "of contiguous [H, W, C] each")
    for name, value in (("mean", mean), ("std", std)):
        check(op, name, value, like, torch.float32, channels)
    need(out.dim() == 4 and out.shape[:2] == (batch, channels), op, "out", f"[{batch}, {channels}, h, w]")
    need(out.device == like.device and out.dtype in FLOATS[:3], op, "out", f"floats on {like.device}")
    need(batch == 0 or min(out.shape[2:]) > 0, op, "out", "of positive height and width")
    need(batch == 0 or crops or out.shape[2:] == (height, width), op, "out", "of the images' size, without boxes")
    last = out.is_contiguous(memory_format=torch.channels_last)
    need(last or out.is_contiguous(), op, "out", "contiguous or channels_last")


def crops(op: str, like: Tensor, batch: int, boxes: Tensor | None, flips: Tensor | None) -> None:
    if boxes is not None:
        check(op, "boxes", boxes, like, torch.float32, batch, 2, 4)
    if flips is not None:
        check(op, "flips", flips, like, (torch.uint8, torch.bool), batch, 2)


def loss_gradient(op: str, grad: Tensor, logits: Tensor, logsumexp: Tensor, reduced: bool) -> None:
    """What reaches the losses: one number, or one each."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    check(op, "logsumexp", logsumexp, logits, wide, logits.shape[0])
    need(grad.dtype == wide and grad.device == logits.device, op, "grad", f"{wide} on {logits.device}")
    need(
        grad.numel() == 1 if reduced else grad.shape == logits.shape[:1], op, "grad", "one number, or one of each loss"
    )


def counts(op: str, logits: Tensor, label: Tensor, group: Tensor, counted: Tensor) -> None:
    check(op, "label", label, logits, torch.int64, logits.shape[0])
    need(counted.dim() == 2, op, "counts", "[G, 2]")
    check(op, "counts", counted, logits, torch.int64, counted.shape[0], 2)
    if group.dtype == torch.bool:
        check(op, "group", group, logits, torch.bool, logits.shape[0], counted.shape[0])
    else:
        check(op, "group", group, logits, torch.int64, logits.shape[0])


def lookups(
    op: str,
    like: Tensor,
    ids: Tensor,
    partner_ids: Tensor,
    lam: Tensor,
    mask: Tensor | None,
    partner_mask: Tensor | None,
) -> None:
    """Two id matrices `[B, S]`, lam `[B]`, and masks."""
    need(ids.dim() == 2, op, "ids", "[B, S]")
    for name, value in (("ids", ids), ("partner_ids", partner_ids)):
        check(op, name, value, like, torch.int64, *ids.shape)
    check(op, "lam", lam, like, torch.float32, ids.shape[0])
    for name, given in (("mask", mask), ("partner_mask", partner_mask)):
        if given is not None:
            check(op, name, given, like, torch.bool, *ids.shape)


def bert(
    op: str, weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, norm_weight: Tensor, ids: Tensor,
    position_ids: Tensor, token_type_ids: Tensor | None,
) -> None:  # fmt: skip
    """What both passes of BERT's block take beside its lookups."""
    rows(op, "weight", weight, weight)
    columns, dtype = weight.shape[1], weight.dtype
    need(columns >= 1, op, "weight", "of one column or more")
    need(position_weight.dim() == 2, op, "position_weight", "[P, D]")
    check(op, "position_weight", position_weight, weight, dtype, position_weight.shape[0], columns)
    check(op, "position_ids", position_ids, weight, torch.int64, *ids.shape)
    if type_weight is not None:
        need(type_weight.dim() == 2 and type_weight.shape[0] >= 1, op, "type_weight", "[T, D], T >= 1")
        check(op, "type_weight", type_weight, weight, dtype, type_weight.shape[0], columns)
        if token_type_ids is not None:
            check(op, "token_type_ids", token_type_ids, weight, torch.int64, *ids.shape)
    check(op, "norm_weight", norm_weight, weight, dtype, columns)
