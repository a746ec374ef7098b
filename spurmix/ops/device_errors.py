"""Errors of GPU kernels, which are reported when the host next waits for the device.

A kernel does not read data out of range. It sets the sample to NaN and a bit in a word on the device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from spurmix.ops import library, validate

BAD_INDEX, BAD_TABLES, BAD_VALUE = 1, 2, 4
"""Bits of the word, as in kernels/cuda/launch.h."""


def check(device: torch.device | str | int | None = None) -> None:
    """Wait for a GPU and raise the errors of its kernels since the last check.

    GPU kernels do not read an index or class id that is out of range. They set its sample to NaN and record the error.
    They do the same for weights outside [0, 1] and boxes with NaN, and record values of mean and std that are invalid.
    The loader at its end, `evaluate` and `finetune` also check. SPURMIX_DEBUG=1 checks after every call. On a CPU,
    calls raise errors at once, and this does nothing.

    Args:
        device: A device, its name, or the number of a GPU. Default: the current CUDA device, or the CPU if there is none.

    Raises:
        IndexError: If an index or class id was out of range, or the draw tables were invalid.
        TypeError: If `device` has a wrong type.
        ValueError: If `lam`, boxes, mean or std had invalid values, or there is no such device.

    Example:
        >>> check("cpu")
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    target = torch.device("cuda", device) if isinstance(device, int) else validate.device(device)
    if target.type != "cuda":
        return
    target = torch.device("cuda", target.index if target.index is not None else torch.cuda.current_device())
    if library.COMPILED_CUDA == "ok":
        from spurmix import _cuda

        raise_errors(_cuda.take_flag(target.index))
    launch = sys.modules.get("spurmix.kernels.launch")
    if launch is not None:
        launch.check(target)


def raise_errors(bits: int) -> None:
    """Raise the error that a device's word records.

    Raises IndexError for an index or tables, and ValueError for other values.
    """
    if bits & BAD_INDEX:
        raise IndexError(
            "an index or class id of an earlier call is out of range; set SPURMIX_DEBUG=1 to find the call"
        )
    if bits & BAD_TABLES:
        raise IndexError("the draw tables of an earlier call are damaged, or its sample numbers are not in [0, 2^63)")
    if bits & BAD_VALUE:
        raise ValueError(
            "an earlier call had lam outside [0, 1], a box with NaN, mean outside [0, 1] or std outside [0.001, 2]; set "
            "SPURMIX_DEBUG=1 to find the call"
        )


def check_after_call(args: Sequence[object]) -> None:
    """With SPURMIX_DEBUG=1, check the device of a call's tensors. A CUDA graph that is being captured cannot wait."""
    if os.environ.get("SPURMIX_DEBUG") != "1" or torch.cuda.is_current_stream_capturing():
        return
    for value in args:
        if isinstance(value, Tensor) and value.is_cuda:
            return check(value.device)
