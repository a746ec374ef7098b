"""Calls of kernels by the public functions: errors, transforms of torch.func, and outputs that are written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.func import debug_unwrap

from spurmix.ops.device_errors import check_after_call

R = TypeVar("R")


def call(function: Callable[..., R], *args: object) -> R:
    """Call a kernel.

    Raises IndexError if the kernel reports an index out of range, and ValueError if it reports another invalid
    argument.
    """
    if torch.compiler.is_compiling():
        return function(*args)
    try:
        result = function(*args)
    except RuntimeError as error:
        _, prefix, text = str(error).splitlines()[0].partition("spurmix::")
        if not prefix:
            raise
        raise (IndexError if "out of range" in text else ValueError)(text) from None
    if torch.cuda.is_initialized():
        check_after_call(args)
    return result


def is_transformed(*tensors: Tensor) -> bool:
    """Whether torch.func (grad, jvp, vmap) wraps one of the tensors, or one has a forward-mode tangent.

    Kernels do not support these. The reference does, because it consists of PyTorch operators.
    """
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:  # noqa: SIM110  # faster than any() with a generator
        if debug_unwrap(tensor) is not tensor or unpack_dual(tensor).tangent is not None:
            return True
    return False


def write(out: Tensor, function: Callable[..., object], *args: object) -> Tensor:
    """Call a kernel that writes to `out`, and mark `out` as modified for autograd."""
    call(function, *args, out)
    torch.autograd.graph.increment_version(out)
    return out
