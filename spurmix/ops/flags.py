"""What GPU kernels flagged: data out of range is not followed there, and told at the next wait for the device."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from spurmix.ops import library, validate

BAD_INDEX, BAD_TABLES = 1, 2
"""Bits of a flag, as in kernels/cuda/launch.h."""


def check(device: torch.device | str | int | None = None) -> None:
    """Wait for a GPU and raise what its kernels flagged since the last time; on a CPU there is nothing to wait for.

    An index or class id out of range is not read: its sample became NaN and a flag on the device was set. The loader's
    end, `evaluate` and `finetune` check too; SPURMIX_DEBUG=1 checks after every call.

    Args:
        device: default: the current CUDA device.

    Raises:
        IndexError: where an index or class id lay out of range, or a table was damaged.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device("cuda", device) if isinstance(device, int) else validate.device(device)
    if place.type != "cuda":
        return
    place = torch.device("cuda", place.index if place.index is not None else torch.cuda.current_device())
    if library.COMPILED_CUDA == "ok":
        from spurmix import _cuda

        raise_flagged(_cuda.take_flag(place.index))
    launch = sys.modules.get("spurmix.kernels.launch")
    if launch is not None:
        launch.check(place)


def raise_flagged(bits: int) -> None:
    """Raise what the bits of a flag say."""
    if bits & BAD_INDEX:
        raise IndexError("an earlier call: an index or class id is out of range")
    if bits & BAD_TABLES:
        raise IndexError("an earlier call: the draw tables are damaged, or its sample numbers leave [0, 2^63)")


def after_call(args: tuple[Any, ...]) -> None:
    """Check at once under SPURMIX_DEBUG=1, where an op ran on a GPU; a CUDA graph that is being captured may not wait."""
    if os.environ.get("SPURMIX_DEBUG") != "1" or torch.cuda.is_current_stream_capturing():
        return
    for value in args:
        if isinstance(value, Tensor) and value.is_cuda:
            return check(value.device)
