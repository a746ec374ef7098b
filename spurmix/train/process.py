"""An Accelerator for one training run, in a process whose other code may use Accelerate too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from spurmix.core.launcher import end_with_launcher

if TYPE_CHECKING:
    from accelerate import Accelerator


_LOST = re.compile(r"gloo/|gloo::|connection (closed|reset|refused)|broken pipe|socket timeout|ncclRemoteError", re.I)
"""Texts of the errors of process groups after a process has ended."""


class LostProcessError(RuntimeError):
    """Another process of the job has ended, so that this one cannot continue."""


@contextmanager
def lost_process_named() -> Iterator[None]:
    """Replace the errors of a process group after a process has ended by one that explains it.

    Raises:
        LostProcessError: If another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if (
            isinstance(error, LostProcessError)
            or not torch.distributed.is_initialized()
            or not _LOST.search(str(error))
        ):
            raise
        raise LostProcessError(
            f"process {torch.distributed.get_rank()} lost the connection to another process of this job, which has ended; "
            "see the error of that process, then resume from the last checkpoint"
        ) from None


def check_precision(mixed_precision: str, device: torch.device) -> None:
    """Check that a device supports a precision."""
    if mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("mixed_precision: fp16 requires a GPU; on a CPU use bf16 or no")


@contextmanager
def accelerated(device: torch.device, mixed_precision: str) -> Iterator[Accelerator]:
    """Create an Accelerator that is independent of other Accelerators in this process, and leaves them unchanged.

    Args:
        device: Device of the batches.
        mixed_precision: "no", "bf16" or "fp16".

    Yields:
        The Accelerator.

    Raises:
        ValueError: If the process group was initialized for another type of device.
        LostProcessError: If another process of the job has ended.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState, is_initialized
    from accelerate.utils import GradientAccumulationPlugin

    end_with_launcher()
    cpu = device.type == "cpu"
    process = PartialState(cpu=cpu)
    other_device = process.device.type != device.type
    if other_device and torch.distributed.is_initialized():
        raise ValueError(
            f"loader: batches are on {device}, but the process group was initialized for {process.device}; "
            f"create the loader with device={process.device.type!r}"
        )
    with ExitStack() as restored:
        if is_initialized():
            restored.enter_context(_set_aside(AcceleratorState()))
        restored.enter_context(_set_aside(GradientState()))
        if other_device:
            restored.enter_context(_set_aside(process))
        try:
            # The plugin overrides the number of steps that `accelerate launch` sets. Accelerate would divide the loss by it.
            one_step = GradientAccumulationPlugin(num_steps=1)
            with lost_process_named():
                yield Accelerator(mixed_precision=mixed_precision, cpu=cpu, gradient_accumulation_plugin=one_step)
        finally:
            if is_initialized():
                vars(AcceleratorState()).clear()


@contextmanager
def _set_aside(state: object) -> Iterator[None]:
    """Empty a state of Accelerate, whose instances share one dictionary. Restore it at the end."""
    contents = vars(state)
    before = dict(contents)
    contents.clear()
    try:
        yield
    finally:
        contents.clear()
        contents.update(before)
