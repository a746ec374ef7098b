"""Checks of the options of `MixLoader`."""

from __future__ import annotations

import math

import torch

from spurmix.core import checks
from spurmix.data.sources.arrays import ImageSource, Source
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops import validate
from spurmix.ops.augment import Augment


def check_ranks(batch_size: int, rank: int, world_size: int) -> tuple[int, int, int]:
    """Check batch size and ranks, and return them as Python integers.

    Args:
        batch_size: Global batch size.
        rank: Number of this process.
        world_size: Number of processes.

    Returns:
        The three arguments.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If `rank` is not in [0, world_size), or `world_size` does not divide `batch_size`.
    """
    batch_size = checks.integer(batch_size, "batch_size", 1)
    world_size, rank = checks.integer(world_size, "world_size", 1), checks.integer(rank, "rank", 0)
    if rank >= world_size:
        raise ValueError(f"rank must be in [0, world_size) = [0, {world_size}), got {rank}")
    if batch_size % world_size:
        raise ValueError(
            f"batch_size must be divisible by world_size, got batch_size={batch_size} and world_size={world_size}"
        )
    return batch_size, rank, world_size


def run_length(steps: int | None, epochs: float | None, examples: int, batch_size: int) -> int:
    """Return the number of batches of a run.

    Args:
        steps: Number of batches, if given.
        epochs: Number of passes over the examples, if given. Default: one.
        examples: Number of examples.
        batch_size: Global batch size.

    Returns:
        The number of batches, 1 or more.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If both are given, or one is not positive.
    """
    if steps is not None and epochs is not None:
        raise ValueError(f"steps and epochs must not both be given, got steps={steps!r} and epochs={epochs!r}")
    if steps is not None:
        return checks.integer(steps, "steps", 1)
    passes = 1.0 if epochs is None else checks.number(epochs, "epochs", positive=True)
    return max(1, math.ceil(passes * examples / batch_size))


def delivery_device(source: Source, device: torch.device | str | None) -> torch.device:
    """Return the device that batches are delivered to. The number of a GPU is filled in.

    Args:
        source: Source of the examples.
        device: The requested device. None means the device of the source.

    Returns:
        The device.

    Raises:
        ValueError: If CUDA is not available, or the source is on another GPU.
    """
    wanted = validate.device(device) if device is not None else source.device
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: {wanted} was requested, but CUDA is not available here")
        if wanted.index is None:
            wanted = torch.device("cuda", torch.cuda.current_device())
    if source.device.type == "cuda" and source.device != wanted:
        raise ValueError(
            f"device must be the device of a source on a GPU, got {wanted} for a source on {source.device}; "
            "move the source with source.to(device)"
        )
    return wanted


def check_source(
    source: Source, examples: int, dtype: torch.dtype, channels_last: bool, augment: Augment | None, bucket: int
) -> None:
    """Check that the source fits the groups and the options.

    Args:
        source: Source of the examples.
        examples: Number of examples of the groups.
        dtype: Data type of the input.
        channels_last: Whether images use the channels-last memory format.
        augment: Augmentation of images, or None.
        bucket: Batches per window of texts of similar length.

    Raises:
        ValueError: If the number of examples differs, or an option is for another kind of source.
    """
    if len(source) != examples:
        raise ValueError(f"source has {len(source)} examples, the groups have {examples}")
    text = isinstance(source, TokenSource)
    if bucket > 1 and not text:
        raise ValueError(
            f"bucket must be 1 for images and features, got {bucket}; only texts are assigned to batches by length"
        )
    if text and dtype != torch.float32:
        raise ValueError(f"dtype must be float32 for texts, got {dtype}; token ids are always int64")
    if not isinstance(source, ImageSource) and (augment is not None or channels_last):
        name = "augment" if augment is not None else "channels_last"
        raise ValueError(f"{name} is only for images, but this source contains {'texts' if text else 'features'}")
