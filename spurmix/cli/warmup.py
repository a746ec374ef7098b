"""`spurmix warmup`: Triton kernels compiled and tuned before the first batch asks for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shapes:
    """What a training run will ask for: batches of `size` x `size` images, `columns` features, `classes` logits."""

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
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


def calls(shapes: Shapes, device: torch.device | str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and call of every op's Triton kernel on tensors of these shapes on `device`; "meta" inside `tuned.offline`."""
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
    arguments: dict[str, Sequence[Any]] = {
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
        yield name, lambda kernel=kernel, values=values: kernel(*values)  # type: ignore[misc]


def _text(shapes: Shapes, zeros: Callable[..., Tensor], vocabulary: int = 512) -> dict[str, Sequence[Any]]:
    """Arguments of the ops on token embeddings of `columns`, texts of 128 tokens."""
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


def run(shapes: Sequence[Shapes], capability: int | None) -> None:
    """Compile and tune for the GPU here, or compile for one of `capability` that is not; say what was done.

    Raises:
        RuntimeError: without a GPU and a capability, without Triton, and under TRITON_INTERPRET=1.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 makes Triton interpret kernels; unset it to compile them")
    if capability is None and not torch.cuda.is_available():
        raise RuntimeError("no CUDA GPU is seen here; --capability 90 compiles for a GPU of that capability elsewhere")
    try:
        from spurmix.kernels import tuned
    except ModuleNotFoundError as error:
        raise RuntimeError(f"warmup needs the package {error.name!r}: pip install {error.name}") from None
    began = time.perf_counter()
    if capability is not None:
        from triton.knobs import cache

        with tuned.offline(capability) as made:
            for each in shapes:
                for name, call in calls(each, "meta"):
                    _timed(name, each, call)
        print(f"{len(made)} kernels compiled for sm_{capability} in {time.perf_counter() - began:.1f} s: {cache.dir}")
        print("Configurations are compared on the GPU, at the first call or by `spurmix warmup` there.")
        return
    from spurmix.ops import backends

    device = torch.device("cuda", torch.cuda.current_device())
    print(torch.cuda.get_device_name(device))
    if backends.serving("cuda") != "triton":
        print('Compiled CUDA kernels serve the ops here; this is for backend="triton".')
    for each in shapes:
        for name, call in calls(each, device):
            _timed(name, each, call)
    torch.cuda.synchronize(device)
    for choice in tuned.choices:
        how = "measured" if choice.measured else "known"
        settings = ", ".join(f"{k}={v}" for k, v in choice.options.items())
        print(f"  {choice.kernel} [{choice.key}]: {settings}; {choice.milliseconds * 1e3:.1f} us, {how}")
    print(f"{time.perf_counter() - began:.1f} s; choices are kept in {tuned.cache_folder()}")


def _timed(name: str, shapes: Shapes, call: Callable[[], Any]) -> None:
    began = time.perf_counter()
    call()
    kind = str(shapes.dtype).removeprefix("torch.")
    print(f"{name}, {kind}, batch {shapes.batch}: {time.perf_counter() - began:.1f} s", flush=True)
