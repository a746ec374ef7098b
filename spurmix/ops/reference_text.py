"""Plain PyTorch beside the operators on token embeddings: the normative arithmetic, as `reference.py` is for the others.

A token whose weight is 0 (masked out, or lam of 0 or 1 on the other side) contributes nothing, whatever its row holds.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_ids(ids: Tensor, rows: int, name: str) -> None:
    """Raise IndexError where an entry of `ids` [B, S] lies outside [0, rows)."""
    bad = ((ids < 0) | (ids >= rows)).flatten()
    if bad.numel() and bool(bad.any()):
        b, s = divmod(int(bad.to(torch.uint8).argmax()), ids.shape[1])
        raise IndexError(f"{name}[{b}, {s}] = {int(ids[b, s])} is out of range [0, {rows})")


def token_weights(
    lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None, ids: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight of each token of the two sides, [B, S]: lam and 1 - lam where the masks are true, else 0."""
    own = lam.to(wide)[:, None].expand(ids.shape)
    sides = []
    for weight, present in ((own, mask), (1 - own, partner_mask)):
        sides.append(weight if present is None else torch.where(present, weight, torch.zeros_like(weight)))
    return sides[0], sides[1]


def _weighted(weight: Tensor, values: Tensor) -> Tensor:
    """weight [B, S] * values [B, S, D]; 0 where the weight is."""
    return torch.where((weight != 0)[..., None], weight[..., None] * values, torch.zeros_like(values))


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
    """lam * mask * weight[ids] + (1 - lam) * partner_mask * weight[partner_ids], `[B, S, D]`; padding_idx -1: none."""
    check_ids(ids, weight.shape[0], "ids")
    check_ids(partner_ids, weight.shape[0], "partner_ids")
    wide = torch.promote_types(weight.dtype, torch.float32)
    own, other = token_weights(lam, mask, partner_mask, ids, wide)
    rows, partner_rows = (torch.embedding(weight, k, padding_idx).to(wide) for k in (ids, partner_ids))
    return (_weighted(own, rows) + _weighted(other, partner_rows)).to(dtype)


def _kept(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, wide: torch.dtype,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """For each side the rows [n] that get a gradient, in the order of the tokens, and what they get, [n, D]."""
    sides = []
    for weight, rows in zip(token_weights(lam, mask, partner_mask, ids, wide), (ids, partner_ids), strict=True):
        kept = (weight != 0) & (rows != padding_idx)
        sides.append((rows[kept], weight[kept][:, None] * grad[kept].to(wide)))
    return sides


def mix_embeddings_backward(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, rows: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The gradient of `weight`, `[rows, D]`, of `grad` [B, S, D]: both lookups added up, then rounded once."""
    check_ids(ids, rows, "ids")
    check_ids(partner_ids, rows, "partner_ids")
    wide = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    out = torch.zeros(rows, grad.shape[2], dtype=wide, device=grad.device)
    for row, values in _kept(grad, ids, partner_ids, lam, mask, partner_mask, padding_idx, wide):
        out.index_add_(0, row, values)
    return out.to(dtype)


def mix_embeddings_backward_rows(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, rows: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient's rows that were looked up, int64 `[R]` ascending, and their values, `[R, D]`."""
    check_ids(ids, rows, "ids")
    check_ids(partner_ids, rows, "partner_ids")
    wide = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    sides = _kept(grad, ids, partner_ids, lam, mask, partner_mask, padding_idx, wide)
    row, position = torch.unique(torch.cat([side[0] for side in sides]), return_inverse=True)
    values = torch.zeros(row.shape[0], grad.shape[2], dtype=wide, device=grad.device)
    values.index_add_(0, position, torch.cat([side[1] for side in sides]))
    return row, values.to(dtype)


def _summed(
    weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, ids: Tensor, partner_ids: Tensor, lam: Tensor,
    mask: Tensor | None, partner_mask: Tensor | None, position_ids: Tensor, token_type_ids: Tensor | None,
    padding_idx: int, wide: torch.dtype,
) -> Tensor:  # fmt: skip
    """Mixed word embeddings, position and type embeddings added up, `[B, S, D]`."""
    x = mix_embeddings(weight, ids, partner_ids, lam, mask, partner_mask, padding_idx, wide)
    check_ids(position_ids, position_weight.shape[0], "position_ids")
    x = x + position_weight[position_ids].to(wide)
    if type_weight is not None:
        if token_type_ids is not None:
            check_ids(token_type_ids, type_weight.shape[0], "token_type_ids")
            x = x + type_weight[token_type_ids].to(wide)
        else:
            x = x + type_weight[0].to(wide)
    return x


def mix_bert_embeddings(
    weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
    ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    position_ids: Tensor, token_type_ids: Tensor | None, eps: float, padding_idx: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """LayerNorm of mixed words + positions + types, `[B, S, D]`; its mean and reciprocal deviation, `[B, S]`."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    x = _summed(
        weight, position_weight, type_weight, ids, partner_ids, lam, mask, partner_mask, position_ids, token_type_ids,
        padding_idx, wide,
    )  # fmt: skip
    mean = x.mean(dim=2, keepdim=True)
    rstd = torch.rsqrt((x - mean).square().mean(dim=2, keepdim=True) + eps)
    out = (x - mean) * rstd * norm_weight.to(wide) + norm_bias.to(wide)
    return out.to(dtype), mean[..., 0], rstd[..., 0]


def mix_bert_embeddings_backward(
    grad: Tensor, weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, norm_weight: Tensor, ids: Tensor,
    partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None, position_ids: Tensor,
    token_type_ids: Tensor | None, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the mixed words [B, S, D] (float32, or float64), and of positions, types and LayerNorm's parameters."""
    wide = mean.dtype
    x = _summed(
        weight, position_weight, type_weight, ids, partner_ids, lam, mask, partner_mask, position_ids, token_type_ids,
        -1, wide,
    )  # fmt: skip
    normed = (x - mean[..., None]) * rstd[..., None]
    upstream = grad.to(wide)
    g = upstream * norm_weight.to(wide)
    centred = g - g.mean(dim=2, keepdim=True) - normed * (g * normed).mean(dim=2, keepdim=True)
    grad_mixed = centred * rstd[..., None]
    flat = grad_mixed.flatten(0, 1)

    def table(like: Tensor, rows: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=wide, device=grad.device).index_add_(0, rows, flat).to(like.dtype)

    types = weight.new_zeros(0, weight.shape[1])
    if type_weight is not None:
        types = table(type_weight, (torch.zeros_like(ids) if token_type_ids is None else token_type_ids).flatten())
    grad_norm_weight = (upstream * normed).sum(dim=(0, 1)).to(norm_weight.dtype)
    grad_norm_bias = upstream.sum(dim=(0, 1)).to(norm_weight.dtype)
    return grad_mixed, table(position_weight, position_ids.flatten()), types, grad_norm_weight, grad_norm_bias
