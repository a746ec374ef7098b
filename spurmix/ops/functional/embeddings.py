"""Mixing of token embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from spurmix.core import checks
from spurmix.ops import backends, validate
from spurmix.ops.calls import call, is_transformed, write
from spurmix.ops.gradients.embedding_functions import GradientOptions, MixBertEmbeddings, MixEmbeddings
from spurmix.ops.gradients.embeddings import Lookups
from spurmix.ops.gradients.grad_buffer import GradientBuffer


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
    """Look up the tokens of two examples and mix their embeddings, in one pass. It is differentiable in `weight`.

    Equivalent PyTorch, in float32 (float64 for float64 weights)::

        w = torch.stack([lam[:, None] * mask, (1 - lam[:, None]) * partner_mask])[..., None]
        (w * F.embedding(torch.stack([ids, partner_ids]), weight, padding_idx)).sum(0)

    A token of weight 0 is not read and contributes nothing. So lam = 1 gives exactly the embeddings of `ids`. The attention
    mask of the result is `mask | partner_mask`. The backward pass adds up the gradients of both lookups in one pass, in the
    order of the tokens. Its result does not depend on the number of threads.

    Args:
        weight: Embedding table, float32, float16, bfloat16 or float64 `[V, D]`. Each row is contiguous.
        ids: Tokens of the first examples, int64 `[B, S]` in [0, V), also if they are masked out.
        partner_ids: Tokens of the second examples, int64 `[B, S]` in [0, V), also if they are masked out.
        lam: Weights of `ids`, float32 `[B]` in [0, 1].
        mask: Where the first example has a token, bool `[B, S]`. Default: all positions.
        partner_mask: Where the second example has a token, bool `[B, S]`. Default: all positions.
        padding_idx: Row that gets no gradient, in [-V, V). Default: none.
        dtype: Data type of the result: float32, float16, bfloat16 or float64. Default: that of `weight`.
        sparse: Whether the gradient is a coalesced sparse tensor of the rows that were looked up, for SparseAdam and SGD.
        grad_buffer: Memory for the dense gradient on a CPU. See `GradientBuffer`.
        out: Contiguous tensor `[B, S, D]` to write to. Then `weight` may not require grad.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Mixed embeddings, `[B, S, D]`.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has a wrong shape, layout, value or device. On a GPU, `check` raises it later for `lam`.
        IndexError: If a token is outside [0, V). On a GPU, `check` raises it later.
        RuntimeError: If the backend is not available.

    Example:
        >>> weight = torch.tensor([[0.0], [4.0]])
        >>> mix_embeddings(weight, torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([0.75]))
        tensor([[[1.]]])

    Source:
        Guo et al., Augmenting Data with Mixup for Sentence Classification, 2019, arXiv 1905.08941 (wordMixup).
    """
    lookups = _check_lookups(weight, ids, partner_ids, lam, mask, partner_mask)
    shape = (*ids.shape, weight.shape[1])
    padding = _check_padding(padding_idx, weight)
    if out is not None:
        validate.output(out, shape, validate.FLOATS_AND_DOUBLE, weight.device)
        validate.no_grad_input(weight=weight)
        names = ("ids", "partner_ids", "lam", "mask", "partner_mask")
        validate.no_overlap(out, weight=weight, **dict(zip(names, lookups, strict=True)))
        return write(out, backends.implementation("mix_embeddings_out", backend, weight.device), weight, *lookups)
    kind = validate.float_dtype(dtype if dtype is not None else weight.dtype, allowed=validate.FLOATS_AND_DOUBLE)
    inputs = (weight, *lookups, padding, kind)
    _check_gradient_options(sparse, grad_buffer)
    if is_transformed(weight, lam):
        backend = "reference"
    elif _requires_function(weight.requires_grad, backend, sparse, grad_buffer):
        return call(MixEmbeddings.apply, GradientOptions(backend, sparse, grad_buffer), *inputs)
    return call(backends.implementation("mix_embeddings", backend, weight.device), *inputs)


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
    """Embedding block of BERT for mixed tokens, without dropout, in one pass. It is differentiable in the five tables.

    Equivalent PyTorch::

        x = mix_embeddings(weight, ids, partner_ids, lam, mask, partner_mask)
        F.layer_norm(x + position_weight[position_ids] + type_weight[token_type_ids], (D,), norm_weight, norm_bias, eps)

    Both examples share positions and types, so these are added once. The forward pass keeps only mean and deviation, and
    the backward pass looks up the tokens again.

    Args:
        weight: Table of tokens, float32, float16, bfloat16 or float64 `[V, D]`. Each row is contiguous.
        position_weight: Table of positions `[P, D]`, in the dtype of `weight`.
        type_weight: Table of token types `[T, D]`, in the dtype of `weight`. None for models without types, as DistilBERT.
        norm_weight: Weight of LayerNorm `[D]`, in the dtype of `weight`.
        norm_bias: Bias of LayerNorm `[D]`, in the dtype of `weight`.
        ids: Tokens of the first examples, int64 `[B, S]` in [0, V), also if they are masked out.
        partner_ids: Tokens of the second examples, int64 `[B, S]` in [0, V), also if they are masked out.
        lam: Weights of `ids`, float32 `[B]` in [0, 1].
        mask: Where the first example has a token, bool `[B, S]`. Default: all positions.
        partner_mask: Where the second example has a token, bool `[B, S]`. Default: all positions.
        position_ids: Positions, int64 `[S]` or `[B, S]` in [0, P). Default: 0 to S - 1.
        token_type_ids: Token types, int64 `[B, S]` in [0, T). Default: 0.
        eps: Epsilon of LayerNorm, 0 or more.
        padding_idx: Row of `weight` that gets no gradient, in [-V, V). Default: none.
        dtype: Data type of the result: float32, float16, bfloat16 or float64. Default: that of `weight`.
        sparse: Whether the gradient of `weight` is a coalesced sparse tensor, for SparseAdam and SGD.
        grad_buffer: Memory for the dense gradient of `weight` on a CPU. See `GradientBuffer`.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        Embeddings, `[B, S, D]`.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If an argument has a wrong shape, layout, value or device. On a GPU, `check` raises it later for `lam`.
        IndexError: If a token, position or type is out of range. On a GPU, `check` raises it later.
        RuntimeError: If the backend is not available.

    Example:
        >>> weight, positions, types = torch.randn(9, 4), torch.randn(5, 4), torch.randn(2, 4)
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> mix_bert_embeddings(
        ...     weight, positions, types, torch.ones(4), torch.zeros(4), ids, ids, torch.tensor([0.5])
        ... ).shape
        torch.Size([1, 3, 4])

    Source:
        Devlin et al., BERT, NAACL 2019, section 3. Mixing: Guo et al., 2019, arXiv 1905.08941 (wordMixup).
    """
    lookups = _check_lookups(weight, ids, partner_ids, lam, mask, partner_mask)
    tables = _check_tables(weight, position_weight, type_weight, norm_weight, norm_bias)
    positions, types = _check_positions(ids, position_weight, type_weight, position_ids, token_type_ids)
    validate.same_device(weight.device, position_ids=positions, token_type_ids=types)
    eps = checks.number(eps, "eps", 0)
    kind = validate.float_dtype(dtype if dtype is not None else weight.dtype, allowed=validate.FLOATS_AND_DOUBLE)
    inputs = (*tables, *lookups, positions, types, eps, _check_padding(padding_idx, weight), kind)
    _check_gradient_options(sparse, grad_buffer)
    requires_grad = any(table is not None and table.requires_grad for table in tables)
    if is_transformed(lam, *(table for table in tables if table is not None)):
        backend = "reference"
    elif _requires_function(requires_grad, backend, sparse, grad_buffer):
        return call(MixBertEmbeddings.apply, GradientOptions(backend, sparse, grad_buffer), *inputs)[0]
    return call(backends.implementation("mix_bert_embeddings", backend, weight.device), *inputs)[0]


def _check_lookups(
    weight: object, ids: object, partner_ids: object, lam: object, mask: object, partner_mask: object
) -> Lookups:
    """Check the table and the lookups, and return the lookups contiguous."""
    weight = validate.tensor(weight, "weight", validate.FLOATS_AND_DOUBLE, ("V", "D"))
    if weight.shape[1] > 1 and weight.stride(1) != 1:
        raise ValueError("weight must have contiguous rows; call .contiguous()")
    ids = validate.tensor(ids, "ids", (torch.int64,), ("B", "S"))
    shape = tuple(ids.shape)
    partner_ids = validate.tensor(partner_ids, "partner_ids", (torch.int64,), shape)
    lam = validate.tensor(lam, "lam", (torch.float32,), shape[:1])
    validate.no_grad_input(lam=lam)
    masks: list[Tensor | None] = []
    for name, value in (("mask", mask), ("partner_mask", partner_mask)):
        masks.append(None if value is None else validate.tensor(value, name, (torch.bool,), shape).contiguous())
    validate.same_device(weight.device, ids=ids, partner_ids=partner_ids, lam=lam, mask=masks[0], partner_mask=masks[1])
    return ids.contiguous(), partner_ids.contiguous(), lam.contiguous(), masks[0], masks[1]


def _check_tables(
    weight: Tensor, position_weight: object, type_weight: object, norm_weight: object, norm_bias: object
) -> list[Tensor | None]:
    """Check the tables of BERT's block, and return them contiguous, the word table as it is."""
    columns = weight.shape[1]
    if columns < 1:
        raise ValueError(f"weight must have at least one column, got shape {list(weight.shape)}")
    tables: list[Tensor | None] = [weight]
    shapes: tuple[tuple[str, object, tuple[int | str, ...]], ...] = (
        ("position_weight", position_weight, ("P", columns)),
        ("type_weight", type_weight, ("T", columns)),
        ("norm_weight", norm_weight, (columns,)),
        ("norm_bias", norm_bias, (columns,)),
    )
    for name, value, shape in shapes:
        table = None
        if value is not None or name != "type_weight":
            table = validate.tensor(value, name, (weight.dtype,), shape).contiguous()
            validate.same_device(weight.device, **{name: table})
        tables.append(table)
    return tables


def _check_positions(
    ids: Tensor, position_weight: Tensor, type_weight: Tensor | None, position_ids: object, token_type_ids: object
) -> tuple[Tensor, Tensor | None]:
    """Check positions and token types, and return them contiguous `[B, S]`."""
    batch, length = ids.shape
    if position_ids is None:
        if length > position_weight.shape[0]:
            raise ValueError(f"ids must have at most {position_weight.shape[0]} tokens (positions), got {length}")
        position_ids = torch.arange(length, device=ids.device)
    is_shared = isinstance(position_ids, Tensor) and position_ids.dim() == 1
    positions = validate.tensor(
        position_ids, "position_ids", (torch.int64,), (length,) if is_shared else (batch, length)
    )
    types = None
    if token_type_ids is not None:
        if type_weight is None:
            raise ValueError("token_type_ids must be None if type_weight is None")
        types = validate.tensor(token_type_ids, "token_type_ids", (torch.int64,), (batch, length)).contiguous()
    elif type_weight is not None and type_weight.shape[0] < 1:
        raise ValueError(f"type_weight must have at least one row, got shape {list(type_weight.shape)}")
    return positions.expand(batch, length).contiguous(), types


def _check_padding(padding_idx: object, weight: Tensor) -> int:
    """Return `padding_idx` as a non-negative number, or -1 if there is none."""
    if padding_idx is None:
        return -1
    rows = weight.shape[0]
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int):
        raise TypeError(f"padding_idx must be an integer or None, got {type(padding_idx).__name__}")
    if not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx must be in [-{rows}, {rows}), got {padding_idx}")
    return padding_idx % rows


def _check_gradient_options(sparse: object, grad_buffer: object) -> None:
    checks.flag(sparse, "sparse")
    checks.instance(grad_buffer, "grad_buffer", GradientBuffer, optional=True)
    if sparse and grad_buffer is not None:
        raise ValueError("grad_buffer must be None with sparse=True, because it is for dense gradients")


def _requires_function(requires_grad: bool, backend: str, sparse: bool, grad_buffer: GradientBuffer | None) -> bool:
    """Whether the gradient needs an autograd function: sparse, in a buffer, or by a backend outside the dispatcher."""
    if not (requires_grad and torch.is_grad_enabled()):
        return False
    if torch.compiler.is_compiling():
        if sparse:
            raise ValueError("sparse=True cannot be traced by torch.compile; call it outside the compiled function")
        return False
    return sparse or grad_buffer is not None or backends.requested(backend) in ("reference", "triton")
