"""Calls every Triton kernel once, so that it is compiled and tuned before training."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shapes:
    """Shapes and data type of a training run.

    Args:
        batch: Batch size.
        size: Height and width of the model's input, in pixels.
        channels: Channels of the images.
        columns: Columns of the features or embeddings.
        classes: Number of classes.
        dtype: Data type of inputs and logits.
        crop: Whether images are cropped at random.
        flip: Whether images are flipped at random.
        channels_last: Whether the input has the channels-last memory format.

    Raises:
        ValueError: If a number is not positive.
    """

    batch: int = 256
    size: int = 224
    channels: int = 3
    columns: int = 2048
    classes: int = 1000
    dtype: torch.dtype = torch.bfloat16
    crop: bool = False
    flip: bool = False
    channels_last: bool = True

    def __post_init__(self) -> None:
        for name in ("batch", "size", "channels", "columns", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)}")


def calls(shapes: Shapes, device: torch.device | str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Create a call of the Triton kernel of every operator.

    Args:
        shapes: Shapes of the arguments.
        device: Device of the arguments. "meta" inside `tuned.offline`.

    Yields:
        Name of the operator, and a function that calls its kernel.
    """
    from spurmix.core import policies
    from spurmix.core.groups import GroupIndex
    from spurmix.core.lam import Uniform
    from spurmix.kernels import launch, launch_embeddings
    from spurmix.ops.tables import draw_tables

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    rng = np.random.default_rng(0)
    count, dtype = shapes.batch, shapes.dtype
    groups = GroupIndex(rng.integers(0, 2, count + 64), rng.integers(0, 2, count + 64))
    policy = policies.balance_attributes(lam=Uniform(0.0, 0.5))  # needs no SciPy
    tables = draw_tables(groups, policy).to(device)
    packed, members = tables.packed, tables.members
    side, total = shapes.size, groups.num_examples
    images = zeros(total, side, side, shapes.channels, dtype=torch.uint8)
    mean, std = torch.zeros(shapes.channels, device=device), torch.ones(shapes.channels, device=device)
    index, lam = zeros(count), zeros(count, dtype=torch.float32)
    boxes = torch.full((count, 2, 4), float(side), device=device) if shapes.crop else None
    flips = zeros(count, 2, dtype=torch.uint8) if shapes.flip else None
    output = (side, side, dtype, shapes.channels_last)
    batch = (images, zeros(total), packed, members, mean, std, shapes.crop, 0.08, 1.0, 0.75, 4 / 3, shapes.flip, 0, 0)
    logits, soft = zeros(count, shapes.classes, dtype=dtype), (index, index, lam, 1, 0.0)
    losses = torch.zeros(count, device=device)
    rows = zeros(total, shapes.columns, dtype=dtype)
    arguments: dict[str, Sequence[object]] = {
        "draw": (packed, members, 0, 0, count),
        "mix_images": (images, index, index, lam, mean, std, boxes, flips, *output),
        "mix_image_batch": (*batch, count, *output),
        "mix_rows": (rows, index, index, lam, dtype),
        "mix_labels": (index, index, lam, shapes.classes, torch.float32),
        "mixed_cross_entropy": (logits, *soft),
        "mixed_cross_entropy_with_grad": (logits, *soft),
        "mixed_cross_entropy_backward": (losses[0], logits, losses, *soft),
        "group_counts": (logits, index, index, zeros(4, 2)),
        **_text(shapes, zeros),
    }
    for name, values in arguments.items():
        kernel = launch_embeddings.KERNELS.get(name) or launch.KERNELS[name]
        yield name, functools.partial(kernel, *values)


def _text(shapes: Shapes, zeros: Callable[..., Tensor], vocabulary: int = 512) -> dict[str, Sequence[object]]:
    """Return the arguments of the operators on token embeddings, for texts of 128 tokens."""
    count, dtype = shapes.batch, shapes.dtype
    ids, mask, lam = zeros(count, 128), zeros(count, 128, dtype=torch.bool), zeros(count, dtype=torch.float32)
    table, row = zeros(vocabulary, shapes.columns, dtype=dtype), zeros(shapes.columns, dtype=dtype)
    pairs = (ids, ids, lam, mask, mask)
    mixed = zeros(count, 128, shapes.columns, dtype=dtype)
    each = zeros(count, 128, dtype=torch.float32)
    return {
        "mix_embeddings": (table, *pairs, -1, dtype),
        "mix_embeddings_backward": (mixed, *pairs, -1, vocabulary, dtype),
        "mix_bert_embeddings": (table, table, table, row, row, *pairs, ids, ids, 1e-12, -1, dtype),
        "mix_bert_embeddings_backward": (mixed, table, table, table, row, *pairs, ids, ids, each, each),
    }


def warm_up(shapes: Sequence[Shapes], capability: int | None) -> None:
    """Compile and tune the kernels, and print the results.

    Args:
        shapes: Shapes to compile for.
        capability: Compute capability to compile for without a GPU, for example 90. None uses the current GPU.

    Raises:
        RuntimeError: If there is neither a GPU nor a capability, Triton is missing, or TRITON_INTERPRET=1 is set.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set, so Triton interprets kernels; unset it to compile them")
    if capability is None and not torch.cuda.is_available():
        raise RuntimeError("no CUDA GPU is available; use --capability (90 for an H100) to compile for another machine")
    try:
        from spurmix.kernels import tuned  # noqa: F401  # check that Triton is installed
    except ModuleNotFoundError as error:
        raise RuntimeError(f"warmup needs the package {error.name!r}: pip install {error.name}") from None
    if capability is None:
        _tune(shapes)
    else:
        _compile(shapes, capability)


def _compile(shapes: Sequence[Shapes], capability: int) -> None:
    from triton.knobs import cache

    from spurmix.kernels import tuned

    start = time.perf_counter()
    with tuned.offline(capability) as compiled:
        _call_all(shapes, "meta")
    seconds = time.perf_counter() - start
    print(f"compiled {len(compiled)} kernels for sm_{capability} in {seconds:.1f} s into {cache.dir}")
    print("The kernels are tuned on the GPU: at their first call, or when you run `spurmix warmup` there.")


def _tune(shapes: Sequence[Shapes]) -> None:
    from spurmix.kernels import tuned
    from spurmix.ops import backends

    start = time.perf_counter()
    device = torch.device("cuda", torch.cuda.current_device())
    print(torch.cuda.get_device_name(device))
    if backends.serving("cuda") != "triton":
        print('Operators use the compiled CUDA kernels here. The Triton kernels are used with backend="triton".')
    _call_all(shapes, device)
    torch.cuda.synchronize(device)
    for choice in tuned.choices:
        origin = "measured" if choice.measured else "cached"
        settings = ", ".join(f"{k}={v}" for k, v in choice.options.items())
        print(f"  {choice.kernel} [{choice.key}]: {settings}; {choice.milliseconds * 1e3:.1f} us, {origin}")
    print(f"finished in {time.perf_counter() - start:.1f} s; the configurations are stored in {tuned.cache_folder()}")


def _call_all(shapes: Sequence[Shapes], device: torch.device | str) -> None:
    for entry in shapes:
        for name, call in calls(entry, device):
            start = time.perf_counter()
            call()
            dtype = str(entry.dtype).removeprefix("torch.")
            print(f"{name}, {dtype}, batch {entry.batch}: {time.perf_counter() - start:.1f} s", flush=True)
