"""Accelerate in a process that others use it in as well: what one run needs of its shared state, and leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def check_precision(mixed_precision: str, device: torch.device) -> None:
    """Check that arithmetic of a precision exists on a device."""
    if mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("mixed_precision: fp16 needs a GPU; on a CPU there are bf16 and no")


@contextmanager
def accelerated(device: torch.device, mixed_precision: str) -> Iterator[Any]:
    """An Accelerator for batches on `device`; precision, device and accumulation of others in this process do not matter,
    and theirs are as before afterwards.

    Raises:
        ValueError: in a process group that was set up for another kind of device.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    states = [AcceleratorState._shared_state, GradientState._shared_state]
    there = PartialState._shared_state.get("device")
    if there is not None and there.type != device.type:
        if torch.distributed.is_initialized():
            raise ValueError(f"loader: its batches are on {device}, but this process group was set up for {there}")
        states.append(PartialState._shared_state)
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        # A plugin, as `accelerate launch` has a number of steps of its own, by which Accelerate would divide the loss.
        once = GradientAccumulationPlugin(num_steps=1)
        yield Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu", gradient_accumulation_plugin=once)
    finally:
        for state, contents in zip(states, before, strict=True):
            state.clear()
            state.update(contents)
