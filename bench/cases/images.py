"""Image batches: mixing and normalizing stored uint8 images, without and with random resized crops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import limits
from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import functional
from spurmix.data.memory import host_tensor

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SCALE, BIAS = 1 / (255 * STD), -MEAN / STD
STORE = 768
"""Number of stored images, much larger than any cache."""


def _inputs(size: int, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (STORE, size, size, 3), dtype=torch.uint8, generator=generator)
    index, partner = torch.randint(0, STORE, (2, batch), generator=generator)
    return images, index, partner, torch.rand(batch, generator=generator)


def _eager(images: Tensor, index: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    weight = lam[:, None, None, None]
    a, b = ((images[i].float() / 255 - MEAN) / STD for i in (index, partner))
    return (weight * a + (1 - weight) * b).permute(0, 3, 1, 2)


def _lean(images: Tensor, index: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    b = images[partner].float()
    return b.lerp_(images[index].float(), lam[:, None, None, None]).mul_(SCALE).add_(BIAS).permute(0, 3, 1, 2)


def _planar(images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> Tensor:
    weight = lam[:, None, None, None]
    mixed = images[index].float() * weight + images[partner].float() * (1 - weight)
    return out.copy_(mixed * SCALE[:, None, None] + BIAS[:, None, None])


def _pixels(images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, out: Tensor) -> Tensor:
    weight = lam[:, None, None, None]
    mixed = images[index].float() * weight + images[partner].float() * (1 - weight)
    return out.copy_((mixed * SCALE + BIAS).permute(0, 3, 1, 2))


def _batch_case(context: Context, batch: int, dtype: torch.dtype, last: bool, classes: int = 1000) -> Case:
    images, index, partner, lam = _inputs(224, batch)
    planar = images.permute(0, 3, 1, 2).contiguous()
    shape = (batch, 3, 224, 224)
    out, theirs = (host_tensor(shape, dtype, last).zero_() for _ in range(2))
    compiled: list[Callable[..., Tensor]] = [torch.compile(f, dynamic=False) for f in (_planar, _pixels)]
    labels = torch.randint(0, classes, (STORE,), generator=torch.Generator().manual_seed(1))
    labels[0] = classes - 1
    target = torch.zeros(batch, classes)
    arguments = (index, partner, lam)

    def ours() -> Tensor:
        return functional.mix_images(images, *arguments, mean=MEAN, std=STD, out=out)

    def ours_and_targets() -> Tensor:
        functional.mix_labels(labels[index], labels[partner], lam, classes, out=target)
        return ours()

    contenders = [
        Contender("spurmix", ours, "ours"),
        Contender("spurmix and dense targets", ours_and_targets, "variant"),
        Contender("torch.compile into out, NCHW store", lambda: compiled[0](planar, *arguments, theirs)),
        Contender("torch.compile into out, same store", lambda: compiled[1](images, *arguments, theirs)),
        Contender("eager", lambda: _eager(images, *arguments)),
        Contender("eager, lean", lambda: _lean(images, *arguments)),
    ]
    absent = []
    if limits.library() is not None:
        contenders.append(limits.MemoryLimit(images, index, partner, out, planes=(1, 3)).contender())
    else:
        absent.append(limits.UNAVAILABLE)
    if dtype == torch.float32 and not last:
        note = "draws its own lam; dense targets"
        listed = [
            ("torchvision v2.MixUp", "torchvision_mixup", "torchvision"),
            ("timm Mixup batch", "timm_mixup_batch", "timm"),
            ("timm Mixup elem", "timm_mixup_elem", "timm"),
            ("kornia RandomMixUpV2", "kornia_mixup", "kornia"),
        ]
        if any(context.has(library) for _, _, library in listed):
            context.peers.share(images=images.numpy(), labels=labels.numpy(), index=index.numpy())
        for name, peer, library in listed:
            if context.has(library):
                contenders.append(context.peers.contender(name, peer, note))
            else:
                absent.append(name)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    return Case(contenders, items=batch, tolerance=tolerance, absent=absent, repeats=21)


def _register(name: str, quick: bool, *arguments: Any) -> None:
    def build(context: Context) -> Case:
        return _batch_case(context, *arguments)

    batch, dtype, last, *rest = arguments
    build.__doc__ = (
        f"Mix and normalize {batch} images of 224 x 224 x 3, uint8 NHWC to {str(dtype)[6:]} "
        f"{'channels_last' if last else 'NCHW'}{f', {rest[0]} classes' if rest else ''}."
    )
    case(name, quick=quick)(build)


_register("images_256", True, 256, torch.float32, False)
_register("images_32", True, 32, torch.float32, False)
_register("images_256_bf16", True, 256, torch.bfloat16, False)
_register("images_256_last", True, 256, torch.float32, True)
_register("images_256_bf16_last", False, 256, torch.bfloat16, True)
_register("images_256_fp16", False, 256, torch.float16, False)
_register("images_256_fp16_last", False, 256, torch.float16, True)
_register("images_32_bf16_last", False, 32, torch.bfloat16, True)
_register("images_256_2_classes", False, 256, torch.float32, False, 2)


def _boxes(batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    u = torch.rand(batch, 2, 4, generator=generator)
    area = size * size * (0.08 + 0.92 * u[..., 0])
    ratio = torch.exp(math.log(0.75) + (math.log(4 / 3) - math.log(0.75)) * u[..., 1])
    width, height = (area * ratio).sqrt().clamp(max=size), (area / ratio).sqrt().clamp(max=size)
    return torch.stack([u[..., 2] * (size - height), u[..., 3] * (size - width), height, width], 2).contiguous()


def _gathered_crops(
    images: Tensor, index: Tensor, partner: Tensor, lam: Tensor, boxes: Tensor, flips: Tensor, out: Tensor
) -> Tensor:
    """Crop and mix images by gathers that torch.compile can fuse."""
    size, steps = images.shape[1], torch.arange(224)

    def side(rows: Tensor, s: int) -> Tensor:
        top, left, height, width = boxes[:, s].unbind(1)
        columns = torch.where(flips[:, s, None] > 0, 223 - steps, steps)
        ys = (top[:, None] + (steps + 0.5) * (height[:, None] / 224) - 0.5).clamp(0, size - 1)
        xs = (left[:, None] + (columns + 0.5) * (width[:, None] / 224) - 0.5).clamp(0, size - 1)
        y, x = ys.long().clamp(max=size - 2)[:, :, None], xs.long().clamp(max=size - 2)[:, None, :]
        fy, fx = (ys[:, :, None] - y)[..., None], (xs[:, None, :] - x)[..., None]
        n = rows[:, None, None]
        p, q, r, t = (images[n, y + i, x + j].float() for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
        upper, lower = p + (q - p) * fx, r + (t - r) * fx
        return upper + (lower - upper) * fy

    weight = lam[:, None, None, None]
    mixed = weight * side(index, 0) + (1 - weight) * side(partner, 1)
    return out.copy_((mixed * SCALE + BIAS).permute(0, 3, 1, 2))


def _crop_case(context: Context, batch: int, last: bool = False) -> Case:
    images, index, partner, lam = _inputs(256, batch)
    boxes = _boxes(batch, 256)
    flips = torch.randint(0, 2, (batch, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    out, theirs = (host_tensor((batch, 3, 224, 224), torch.float32, last).zero_() for _ in range(2))
    compiled = torch.compile(_gathered_crops, dynamic=False)

    def ours() -> Tensor:
        options: dict[str, Any] = dict(mean=MEAN, std=STD, boxes=boxes, flips=flips)
        return functional.mix_images(images, index, partner, lam, **options, out=out)

    contenders = [
        Contender("spurmix", ours, "ours"),
        Contender("torch.compile of gathers", lambda: compiled(images, index, partner, lam, boxes, flips, theirs)),
    ]
    rounded = "boxes rounded to pixels"
    listed = [
        ("OpenCV in threads, compiled mix", "opencv_crop", rounded, ("opencv-python-headless",)),
        ("torchvision v2 resized_crop", "torchvision_crop", rounded, ("torchvision",)),
        ("kornia crop_and_resize", "kornia_crop", "aligns corners differently", ("kornia",)),
    ]
    arrays = dict(images=images, index=index, partner=partner, lam=lam, boxes=boxes, flips=flips)
    if any(context.has(*libraries) for *_, libraries in listed):
        context.peers.share(**{name: tensor.numpy() for name, tensor in arrays.items()})
    absent = [name for name, _, _, libraries in listed if not context.has(*libraries)]
    contenders += [context.peers.contender(n, p, note) for n, p, note, libraries in listed if context.has(*libraries)]
    return Case(contenders, items=batch, tolerance=5e-3, absent=absent)


@case("crops_256")
def crops_256(context: Context) -> Case:
    """Random resized crop, flip, normalize and mix 256 images of 256 x 256 x 3 to float32 NCHW 224 x 224."""
    return _crop_case(context, 256)


@case("crops_32", quick=False)
def crops_32(context: Context) -> Case:
    """Random resized crop, flip, normalize and mix 32 images of 256 x 256 x 3 to float32 NCHW 224 x 224."""
    return _crop_case(context, 32)
