"""How the public calls reach a kernel: its errors, torch.func's transforms, outputs that are written into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spurmix.ops import flags, validate


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a kernel; what it rejects raises IndexError (an index out of range) or ValueError on every backend."""
    if torch.compiler.is_compiling():
        return function(*args)
    try:
        result = function(*args)
    except RuntimeError as error:
        _, mark, text = str(error).splitlines()[0].partition("spurmix::")
        if not mark:
            raise
        raise (IndexError if "out of range" in text else ValueError)(text) from None
    if torch.cuda.is_initialized():
        flags.after_call(args)
    return result


def transforming() -> bool:
    """Whether torch.func's transforms (grad, jvp, vmap) or forward-mode AD are at work: kernels have no rules for them."""
    compiling = torch.compiler.is_compiling()
    return not compiling and (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


def transformable(backend: str) -> str:
    """The reference where a transform is at work, else `backend`."""
    return "reference" if transforming() else backend


def into(out: Tensor, function: Callable[..., Any], *args: Any) -> Tensor:
    """Run an `_out` op (or the reference, whose result is copied) and mark `out` as changed for autograd."""
    validate.unshared(out, args)
    call(function, *args, out)
    torch.autograd.graph.increment_version(out)
    return out
