"""The public calls on token embeddings: `spurmix.functional.mix_embeddings` and `mix_bert_embeddings`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spurmix.core import checks
from spurmix.ops import validate
from spurmix.ops.backends import implementation, requested
from spurmix.ops.calls import call, into, transformable, transforming
from spurmix.ops.embedding_grad import GradientBuffer, MixBertEmbeddings, MixEmbeddings

_WIDE = (*validate.FLOATS, torch.float64)


def mix_embeddings(
    weight: Tensor,
    ids: Tensor,
    partner_ids: Tensor,
    lam: Tensor,
    mask: Tensor | None = None,
    partner_mask: Tensor | None = None,
    *,
    padding_idx: int | None = None,
    dtype: torch.dtype | None = None,
    sparse: bool = False,
    grad_buffer: GradientBuffer | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Look up the tokens of two examples and mix their embeddings, in one pass; differentiable in `weight`.

    Equivalent to::

        own, other = (F.embedding(k, weight, padding_idx) for k in (ids, partner_ids))
        lam[:, None, None] * mask[..., None] * own + (1 - lam[:, None, None]) * partner_mask[..., None] * other

    computed in float32 (float64 for float64 weights). A position that only one example has keeps that example's
    embedding times its weight; the mix's attention mask is the union of the two. A token whose weight is 0 is not read
    and contributes nothing, so that lam = 1 gives the embeddings of `ids` to the bit. The gradient of both lookups is
    added up in one pass, each row in the order of the tokens: it does not depend on the number of threads.

    Args:
        weight: float32, float16, bfloat16 or float64 `[V, D]`, each row contiguous.
        ids, partner_ids: int64 `[B, S]` in [0, V), also where masked out; lam: float32 `[B]`, weight of `ids`.
        mask, partner_mask: bool `[B, S]`, true where the example has a token; None: everywhere.
        padding_idx: a row that gets no gradient, in [-V, V).
        dtype: of the result, default that of `weight`.
        sparse: make the gradient a coalesced sparse tensor of the rows that were looked up, for SparseAdam and SGD.
        grad_buffer: where the dense gradient's memory comes from, see `GradientBuffer`.
        out: write into this contiguous `[B, S, D]` tensor instead; `weight` may not require grad then.

    Returns:
        `[B, S, D]`.

    Raises:
        TypeError, ValueError: naming the argument. IndexError: for an id outside [0, V), before any read.
    """
    lookups = _lookups(weight, ids, partner_ids, lam, mask, partner_mask)
    shape = (*ids.shape, weight.shape[1])
    padding = _padding(padding_idx, weight)
    if out is not None:
        validate.output(out, shape, _WIDE, weight.device)
        validate.no_grad_input(weight=weight)
        names = ("ids", "partner_ids", "lam", "mask", "partner_mask")
        validate.apart(out, weight=weight, **dict(zip(names, lookups, strict=True)))
        return into(out, implementation("mix_embeddings_out", backend, weight.device), weight, *lookups)
    kind = validate.float_dtype(dtype if dtype is not None else weight.dtype, allowed=_WIDE)
    backend = transformable(backend)
    inputs = (weight, *lookups, padding, kind)
    if _wants_form(weight.requires_grad, backend, sparse, grad_buffer):
        return call(MixEmbeddings.apply, backend, sparse, grad_buffer, *inputs)
    return call(implementation("mix_embeddings", backend, weight.device), *inputs)


def mix_bert_embeddings(
    weight: Tensor,
    position_weight: Tensor,
    type_weight: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    ids: Tensor,
    partner_ids: Tensor,
    lam: Tensor,
    mask: Tensor | None = None,
    partner_mask: Tensor | None = None,
    *,
    position_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    eps: float = 1e-12,
    padding_idx: int | None = None,
    dtype: torch.dtype | None = None,
    sparse: bool = False,
    grad_buffer: GradientBuffer | None = None,
    backend: str = "auto",
) -> Tensor:
    """BERT's embedding block on mixed tokens, without its dropout, in one pass; differentiable in the five tables.

    Equivalent to::

        x = mix_embeddings(weight, ids, partner_ids, lam, mask, partner_mask)
        x = x + position_weight[position_ids] + type_weight[token_type_ids]
        F.layer_norm(x, (D,), norm_weight, norm_bias, eps)

    so positions and types, which the two examples share, are added once. Only mean and deviation are kept for the
    backward pass, which looks the tokens up again.

    Args:
        weight, lookups, padding_idx, sparse, grad_buffer: as in `mix_embeddings`; the last three concern `weight`.
        position_weight: `[P, D]`; type_weight: `[T, D]` or None (DistilBERT); norm_weight, norm_bias: `[D]`; all of the
            dtype of `weight`, each row contiguous.
        position_ids: int64 `[S]` or `[B, S]` in [0, P), default 0 to S - 1.
        token_type_ids: int64 `[B, S]` in [0, T), default 0.
        eps: of LayerNorm, 0 or more.
        dtype: of the result, default that of `weight`.

    Returns:
        `[B, S, D]`.

    Raises:
        TypeError, ValueError: naming the argument. IndexError: for an id out of range, before any read.
    """
    lookups = _lookups(weight, ids, partner_ids, lam, mask, partner_mask)
    batch, length = ids.shape
    columns, device = weight.shape[1], weight.device
    if columns < 1:
        raise ValueError("weight must have at least one column")
    tables: list[Tensor | None] = [weight]
    for name, table, shape in (
        ("position_weight", position_weight, ("P", columns)),
        ("type_weight", type_weight, ("T", columns)),
        ("norm_weight", norm_weight, (columns,)),
        ("norm_bias", norm_bias, (columns,)),
    ):
        if table is not None or name != "type_weight":
            table = validate.tensor(table, name, (weight.dtype,), shape).contiguous()
            validate.same_device(device, **{name: table})
        tables.append(table)
    if position_ids is None:
        if length > position_weight.shape[0]:
            raise ValueError(f"ids: {length} tokens, but position_weight has {position_weight.shape[0]} positions")
        position_ids = torch.arange(length, device=device)
    single = isinstance(position_ids, Tensor) and position_ids.dim() == 1
    validate.tensor(position_ids, "position_ids", (torch.int64,), (length,) if single else (batch, length))
    if token_type_ids is not None:
        if type_weight is None:
            raise ValueError("token_type_ids need type_weight")
        validate.tensor(token_type_ids, "token_type_ids", (torch.int64,), (batch, length))
        token_type_ids = token_type_ids.contiguous()
    elif type_weight is not None and type_weight.shape[0] < 1:
        raise ValueError("type_weight must have at least one row")
    validate.same_device(device, position_ids=position_ids, token_type_ids=token_type_ids)
    eps = checks.number(eps, "eps", 0)
    kind = validate.float_dtype(dtype if dtype is not None else weight.dtype, allowed=_WIDE)
    inputs = (
        *tables, *lookups, position_ids.expand(batch, length).contiguous(), token_type_ids, eps,
        _padding(padding_idx, weight), kind,
    )  # fmt: skip
    backend = transformable(backend)
    wanted = any(table is not None and table.requires_grad for table in tables)
    if _wants_form(wanted, backend, sparse, grad_buffer):
        return call(MixBertEmbeddings.apply, backend, sparse, grad_buffer, *inputs)[0]
    return call(implementation("mix_bert_embeddings", backend, device), *inputs)[0]


def _lookups(
    weight: Any, ids: Any, partner_ids: Any, lam: Any, mask: Any, partner_mask: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Check the table and what is looked up; the latter contiguous."""
    validate.tensor(weight, "weight", _WIDE, ("V", "D"))
    if weight.shape[1] > 1 and weight.stride(1) != 1:
        raise ValueError("weight: each row must be contiguous; call .contiguous()")
    shape = validate.tensor(ids, "ids", (torch.int64,), ("B", "S")).shape
    validate.tensor(partner_ids, "partner_ids", (torch.int64,), tuple(shape))
    validate.tensor(lam, "lam", (torch.float32,), (shape[0],))
    validate.no_grad_input(lam=lam)
    masks = []
    for name, value in (("mask", mask), ("partner_mask", partner_mask)):
        if value is not None:
            value = validate.tensor(value, name, (torch.bool,), tuple(shape)).contiguous()
        masks.append(value)
    validate.same_device(weight.device, ids=ids, partner_ids=partner_ids, lam=lam, mask=mask, partner_mask=partner_mask)
    return ids.contiguous(), partner_ids.contiguous(), lam.contiguous(), masks[0], masks[1]


def _padding(padding_idx: Any, weight: Tensor) -> int:
    """`padding_idx` from 0 on, -1 for none."""
    if padding_idx is None:
        return -1
    rows = weight.shape[0]
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int):
        raise TypeError(f"padding_idx must be an integer or None, got {type(padding_idx).__name__}")
    if not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx must lie in [-{rows}, {rows}), got {padding_idx}")
    return padding_idx % rows


def _wants_form(differentiable: bool, backend: str, sparse: bool, grad_buffer: Any) -> bool:
    """Whether the call's gradient needs more than the op's own: a form of its own, or a pinned backend's kernel."""
    checks.flag(sparse, "sparse")
    checks.instance(grad_buffer, "grad_buffer", GradientBuffer, optional=True)
    if sparse and grad_buffer is not None:
        raise ValueError("grad_buffer serves dense gradients: give it or sparse=True, not both")
    if not (differentiable and torch.is_grad_enabled()) or transforming():
        return False
    if torch.compiler.is_compiling():
        if sparse:
            raise ValueError(
                "sparse=True cannot be traced by torch.compile: leave this call out of the compiled function"
            )
        return False
    return sparse or grad_buffer is not None or requested(backend) in ("reference", "triton")
