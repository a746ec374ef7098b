"""Reference of the operators on token embeddings.

A token of weight 0 contributes nothing, even if its row is not finite. Its weight is 0 if it is masked out, or if lam gives
the whole weight to the other example.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

from spurmix.ops.reference.checks import check_index, check_lam


def token_weights(
    lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None, ids: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weights of the tokens of both examples, `[B, S]` each: lam and 1 - lam, 0 if the mask is False."""
    index_weight = lam.to(wide)[:, None].expand(ids.shape)
    sides = []
    for weight, present in ((index_weight, mask), (1 - index_weight, partner_mask)):
        sides.append(weight if present is None else torch.where(present, weight, torch.zeros_like(weight)))
    return sides[0], sides[1]


def _weighted(weight: Tensor, values: Tensor) -> Tensor:
    """Product of weight `[B, S]` and values `[B, S, D]`. It is 0 if the weight is 0, even if the value is not finite."""
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
    """Compute lam * mask * weight[ids] + (1 - lam) * partner_mask * weight[partner_ids], `[B, S, D]`.

    `padding_idx` -1 means that there is no padding row.
    """
    check_index(ids, weight.shape[0], "ids")
    check_index(partner_ids, weight.shape[0], "partner_ids")
    check_lam(lam)
    wide = torch.promote_types(weight.dtype, torch.float32)
    index_weight, partner_weight = token_weights(lam, mask, partner_mask, ids, wide)
    padding = padding_idx if padding_idx >= 0 else None
    rows, partner_rows = (embedding(k, weight, padding).to(wide) for k in (ids, partner_ids))
    return (_weighted(index_weight, rows) + _weighted(partner_weight, partner_rows)).to(dtype)


def mix_embeddings_out(
    weight: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    out: Tensor,
) -> None:  # fmt: skip
    """Write the result of `mix_embeddings` to `out`."""
    out.copy_(mix_embeddings(weight, ids, partner_ids, lam, mask, partner_mask, -1, out.dtype))


def _weighted_gradients(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, wide: torch.dtype,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """For each example, the rows `[n]` that get a gradient, in the order of the tokens, and the gradients `[n, D]`."""
    sides = []
    for weight, rows in zip(token_weights(lam, mask, partner_mask, ids, wide), (ids, partner_ids), strict=True):
        used = (weight != 0) & (rows != padding_idx)
        sides.append((rows[used], weight[used][:, None] * grad[used].to(wide)))
    return sides


def mix_embeddings_backward(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, rows: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Gradient of `weight`, `[rows, D]`, for `grad` `[B, S, D]`. Both lookups are added up and rounded once."""
    check_index(ids, rows, "ids")
    check_index(partner_ids, rows, "partner_ids")
    check_lam(lam)
    wide = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    out = torch.zeros(rows, grad.shape[2], dtype=wide, device=grad.device)
    for row, values in _weighted_gradients(grad, ids, partner_ids, lam, mask, partner_mask, padding_idx, wide):
        out.index_add_(0, row, values)
    return out.to(dtype)


def mix_embeddings_backward_out(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, out: Tensor,
) -> None:  # fmt: skip
    """Write the result of `mix_embeddings_backward` to `out`."""
    rows, dtype = out.shape[0], out.dtype
    out.copy_(mix_embeddings_backward(grad, ids, partner_ids, lam, mask, partner_mask, padding_idx, rows, dtype))


def mix_embeddings_backward_rows(
    grad: Tensor, ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    padding_idx: int, rows: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of the rows that were looked up: their numbers, int64 `[R]` ascending, and their values `[R, D]`."""
    check_index(ids, rows, "ids")
    check_index(partner_ids, rows, "partner_ids")
    check_lam(lam)
    wide = torch.promote_types(torch.promote_types(grad.dtype, dtype), torch.float32)
    sides = _weighted_gradients(grad, ids, partner_ids, lam, mask, partner_mask, padding_idx, wide)
    row, position = torch.unique(torch.cat([side[0] for side in sides]), return_inverse=True)
    values = torch.zeros(row.shape[0], grad.shape[2], dtype=wide, device=grad.device)
    values.index_add_(0, position, torch.cat([side[1] for side in sides]))
    return row, values.to(dtype)


def _summed(
    weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, ids: Tensor, partner_ids: Tensor, lam: Tensor,
    mask: Tensor | None, partner_mask: Tensor | None, position_ids: Tensor, token_type_ids: Tensor | None,
    padding_idx: int, wide: torch.dtype,
) -> Tensor:  # fmt: skip
    """Sum of mixed word embeddings, position embeddings and type embeddings, `[B, S, D]`."""
    x = mix_embeddings(weight, ids, partner_ids, lam, mask, partner_mask, padding_idx, wide)
    check_index(position_ids, position_weight.shape[0], "position_ids")
    x = x + position_weight[position_ids].to(wide)
    if type_weight is not None:
        if token_type_ids is not None:
            check_index(token_type_ids, type_weight.shape[0], "token_type_ids")
            x = x + type_weight[token_type_ids].to(wide)
        else:
            x = x + type_weight[0].to(wide)
    return x


def mix_bert_embeddings(
    weight: Tensor, position_weight: Tensor, type_weight: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
    ids: Tensor, partner_ids: Tensor, lam: Tensor, mask: Tensor | None, partner_mask: Tensor | None,
    position_ids: Tensor, token_type_ids: Tensor | None, eps: float, padding_idx: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """LayerNorm of mixed words + positions + types, `[B, S, D]`, and its mean and reciprocal deviation, `[B, S]`."""
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
    """Gradients of the mixed words `[B, S, D]`, the positions, the types, and the weight and bias of LayerNorm.

    The gradient of the mixed words is float32 (float64 for float64 weights).
    """
    wide = mean.dtype
    x = _summed(
        weight, position_weight, type_weight, ids, partner_ids, lam, mask, partner_mask, position_ids, token_type_ids,
        -1, wide,
    )  # fmt: skip
    normed = (x - mean[..., None]) * rstd[..., None]
    upstream = grad.to(wide)
    g = upstream * norm_weight.to(wide)
    centered = g - g.mean(dim=2, keepdim=True) - normed * (g * normed).mean(dim=2, keepdim=True)
    grad_mixed = centered * rstd[..., None]
    flat = grad_mixed.flatten(0, 1)

    def table(like: Tensor, rows: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=wide, device=grad.device).index_add_(0, rows, flat).to(like.dtype)

    types = weight.new_zeros(0, weight.shape[1])
    if type_weight is not None:
        types = table(type_weight, (torch.zeros_like(ids) if token_type_ids is None else token_type_ids).flatten())
    grad_norm_weight = (upstream * normed).sum(dim=(0, 1)).to(norm_weight.dtype)
    grad_norm_bias = upstream.sum(dim=(0, 1)).to(norm_weight.dtype)
    return grad_mixed, table(position_weight, position_ids.flatten()), types, grad_norm_weight, grad_norm_bias
