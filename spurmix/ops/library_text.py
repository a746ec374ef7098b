"""What `library.py` registers for the operators on token embeddings: reference, fake kernels and autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spurmix.ops import reference_text


def _mix_embeddings_out(*args: Any) -> None:
    inputs, out = args[:6], args[6]
    mix: Callable[..., Tensor] = reference_text.mix_embeddings
    out.copy_(mix(*inputs, -1, out.dtype))


def _mix_embeddings_backward_out(*args: Any) -> None:
    inputs, out = args[:7], args[7]
    backward: Callable[..., Tensor] = reference_text.mix_embeddings_backward
    out.copy_(backward(*inputs, out.shape[0], out.dtype))


REFERENCE: dict[str, Callable[..., Any]] = {
    "mix_embeddings": reference_text.mix_embeddings,
    "mix_embeddings_out": _mix_embeddings_out,
    "mix_embeddings_backward": reference_text.mix_embeddings_backward,
    "mix_embeddings_backward_out": _mix_embeddings_backward_out,
    "mix_embeddings_backward_rows": reference_text.mix_embeddings_backward_rows,
    "mix_bert_embeddings": reference_text.mix_bert_embeddings,
    "mix_bert_embeddings_backward": reference_text.mix_bert_embeddings_backward,
}


def _fake_mix(weight: Tensor, ids: Tensor, *args: Any) -> Tensor:
    return weight.new_empty((*ids.shape, weight.shape[1]), dtype=args[-1])


def _fake_backward(grad: Tensor, *args: Any) -> Tensor:
    return grad.new_empty((args[-2], grad.shape[2]), dtype=args[-1])


def _fake_backward_rows(grad: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    found = torch.library.get_ctx().new_dynamic_size()
    row = torch.empty(found, dtype=torch.int64, device=grad.device)
    return row, grad.new_empty((found, grad.shape[2]), dtype=args[-1])


def _fake_bert(weight: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    ids, wide = args[4], torch.promote_types(weight.dtype, torch.float32)
    mean, rstd = (weight.new_empty(ids.shape, dtype=wide) for _ in range(2))
    return weight.new_empty((*ids.shape, weight.shape[1]), dtype=args[-1]), mean, rstd


def _fake_bert_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    weight, position_weight, type_weight, norm_weight = args[:4]
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (
        grad.new_empty(grad.shape, dtype=wide),
        torch.empty_like(position_weight, memory_format=torch.contiguous_format),
        weight.new_empty((0 if type_weight is None else type_weight.shape[0], weight.shape[1])),
        norm_weight.new_empty(norm_weight.shape),
        norm_weight.new_empty(norm_weight.shape),
    )


FAKE: dict[str, Callable[..., Any]] = {
    "mix_embeddings": _fake_mix,
    "mix_embeddings_backward": _fake_backward,
    "mix_embeddings_backward_rows": _fake_backward_rows,
    "mix_bert_embeddings": _fake_bert,
    "mix_bert_embeddings_backward": _fake_bert_backward,
}


def mix_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the lookups; of the table its size and dtype are enough."""
    weight, *lookups, ctx.padding_idx, _ = inputs
    ctx.rows, ctx.dtype = weight.shape[0], weight.dtype
    ctx.save_for_backward(*lookups)


def _mix_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    back = torch.ops.spurmix.mix_embeddings_backward
    return back(grad, *ctx.saved_tensors, ctx.padding_idx, ctx.rows, ctx.dtype), *[None] * 7


# mix_embeddings is linear in the table, and its gradient is its transpose: each is the other's derivative.
def _transpose_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, *lookups, ctx.padding_idx, _, _ = inputs
    ctx.dtype = grad.dtype
    ctx.save_for_backward(*lookups)


def _transpose_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if ctx.padding_idx >= 0:
        kept = torch.arange(grad.shape[0], device=grad.device) != ctx.padding_idx
        grad = torch.where(kept[:, None], grad, torch.zeros_like(grad))
    mix = torch.ops.spurmix.mix_embeddings
    return mix(grad.contiguous(), *ctx.saved_tensors, -1, ctx.dtype), *[None] * 8


def differentiable_bert_gradients(
    grad: Tensor, inputs: tuple[Any, ...], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of mix_bert_embeddings for its five tables as functions that can be differentiated, by the reference."""
    wanted = [table for table, need in zip(inputs[:5], needed, strict=True) if need]
    output = reference_text.mix_bert_embeddings(*inputs)[0]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


def bert_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep what the backward pass reads: the tables (no copies), the lookups, mean and deviation; not the sums."""
    *tensors, ctx.eps, ctx.padding_idx, ctx.dtype = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def _bert_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    *tensors, mean, rstd = ctx.saved_tensors
    needed = ctx.needs_input_grad[:5]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        settings = (ctx.eps, ctx.padding_idx, ctx.dtype)
        return *differentiable_bert_gradients(grad, (*tensors, *settings), needed), *[None] * 10
    ops = torch.ops.spurmix
    grad_mixed, *others = ops.mix_bert_embeddings_backward(grad, *tensors[:4], *tensors[5:], mean, rstd)
    word = None
    if needed[0]:
        weight = tensors[0]
        word = ops.mix_embeddings_backward(grad_mixed, *tensors[5:10], ctx.padding_idx, weight.shape[0], weight.dtype)
    return bert_gradients(word, others, needed)


def bert_gradients(word: Tensor | None, others: list[Tensor], needed: tuple[bool, ...]) -> tuple[Any, ...]:
    """The gradients of all inputs of mix_bert_embeddings, None for those that need none."""
    return word, *(g if need else None for g, need in zip(others, needed[1:], strict=True)), *[None] * 10


AUTOGRAD: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "mix_embeddings": (mix_setup, _mix_backward),
    "mix_embeddings_backward": (_transpose_setup, _transpose_backward),
    "mix_bert_embeddings": (bert_setup, _bert_backward),
}
"""Name -> (what is kept for the backward pass, the backward pass)."""
