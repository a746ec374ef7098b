"""Gradients of embedding tables in the form an optimizer wants them: dense, in memory that is used again, or by rows."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spurmix.core import memory
from spurmix.ops import library_text
from spurmix.ops.backends import implementation


class GradientBuffer:
    """Memory for the gradient of one table: huge pages, taken again once nothing refers to the gradient before.

    A fresh 94 MB gradient per step costs more in page faults than the backward pass itself. After
    `optimizer.zero_grad()` (which drops gradients, its default) the next backward pass writes into the same pages; while
    anything still refers to them (a gradient that is kept, a second call in one backward pass), it takes new ones.
    For tables on the CPU; elsewhere, and inside torch.compile, the allocator's own cache serves.
    """

    def __init__(self) -> None:
        self._pages: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._lent: weakref.ref[NDArray[np.uint8]] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        """A copy, such as that of a model which holds one, starts without memory."""
        return GradientBuffer, ()

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor `[rows, columns]`; its memory is this buffer's until it is dropped.

        Raises:
            MemoryError: where the system has no room.
        """
        size = rows * columns * dtype.itemsize
        with self._lock:
            if self._pages.nbytes != size or (self._lent is not None and self._lent() is not None):
                self._pages = memory.empty(size, np.uint8)
            lent = self._pages[:]  # the tensor keeps this array, and this array the pages
            self._lent = weakref.ref(lent)
        return torch.from_numpy(lent).view(dtype).view(rows, columns)


class MixEmbeddings(torch.autograd.Function):
    """mix_embeddings on a given backend, whose gradient has a given form."""

    @staticmethod
    def forward(ctx: Any, backend: str, sparse: bool, buffer: GradientBuffer | None, *inputs: Any) -> Tensor:
        weight = inputs[0]
        ctx.form = (backend, sparse, buffer)
        library_text.mix_setup(ctx, inputs, weight)
        return implementation("mix_embeddings", backend, weight.device)(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        form = ("auto", False, None) if torch.is_grad_enabled() else ctx.form  # only the op can be differentiated again
        return None, None, None, _table_gradient(ctx, grad, ctx.saved_tensors, *form), *[None] * 7


class MixBertEmbeddings(torch.autograd.Function):
    """mix_bert_embeddings on a given backend, whose word table's gradient has a given form."""

    @staticmethod
    def forward(ctx: Any, backend: str, sparse: bool, buffer: GradientBuffer | None, *inputs: Any) -> Any:
        weight = inputs[0]
        ctx.form = (backend, sparse, buffer)
        ctx.rows = weight.shape[0]
        output = implementation("mix_bert_embeddings", backend, weight.device)(*inputs)
        library_text.bert_setup(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        *tensors, mean, rstd = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:8]
        if torch.is_grad_enabled():
            inputs = (*tensors, ctx.eps, ctx.padding_idx, ctx.dtype)
            tables = library_text.differentiable_bert_gradients(grad, inputs, needed)
            return None, None, None, *tables, *[None] * 10
        backward = implementation("mix_bert_embeddings_backward", ctx.form[0], grad.device)
        grad_mixed, *others = backward(grad.contiguous(), *tensors[:4], *tensors[5:], mean, rstd)
        ctx.dtype = tensors[0].dtype
        word = _table_gradient(ctx, grad_mixed, tensors[5:10], *ctx.form) if needed[0] else None
        return None, None, None, *library_text.bert_gradients(word, others, needed)


def _table_gradient(
    ctx: Any, grad: Tensor, lookups: Any, backend: str, sparse: bool, buffer: GradientBuffer | None
) -> Tensor:
    grad = grad.contiguous()
    device, rows, columns = grad.device, ctx.rows, grad.shape[2]
    if sparse:
        backward = implementation("mix_embeddings_backward_rows", backend, device)
        row, values = backward(grad, *lookups, ctx.padding_idx, rows, ctx.dtype)
        return torch.sparse_coo_tensor(row[None], values, (rows, columns), is_coalesced=True, check_invariants=False)
    if buffer is not None and device.type == "cpu":
        out = buffer.take(rows, columns, ctx.dtype)
        implementation("mix_embeddings_backward_out", backend, device)(grad, *lookups, ctx.padding_idx, out)
        return out
    backward = implementation("mix_embeddings_backward", backend, device)
    return backward(grad, *lookups, ctx.padding_idx, rows, ctx.dtype)
