"""Work of the other libraries on the shared arrays. Runs in `.venv-peers`.

A peer is a function that prepares the arrays of a folder and returns a function to measure.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
Run = Callable[[], Any]


def _load(folder: str, name: str) -> Tensor:
    return torch.from_numpy(np.load(f"{folder}/{name}.npy", allow_pickle=False))


def _torchvision() -> Any:
    """Import torchvision next to a CPU torch.

    The wheel is built for CUDA, so its binary cannot be loaded. Its fake kernels need the schemas of that binary.
    """
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for pair in set(re.findall(r'register_fake\("torchvision::(\w+)"\)|register_meta\("(\w+)"\)', source)):
        name = pair[0] or pair[1]
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor x) -> Tensor")
    _libraries.append(library)
    import torchvision

    return torchvision


_libraries: list[torch.library.Library] = []
"""Keeps the schemas registered."""


def _batches(folder: str) -> tuple[Tensor, Tensor, Tensor]:
    planar = _load(folder, "images").permute(0, 3, 1, 2).contiguous()
    return planar, _load(folder, "labels"), _load(folder, "index")


def _normalized(planar: Tensor, index: Tensor) -> Tensor:
    return planar[index].float().sub_(MEAN * 255).div_(STD * 255)


def torchvision_mixup(folder: str) -> Run:
    """Normalize and mix a batch with torchvision's MixUp."""
    _torchvision()
    from torchvision.transforms import v2

    planar, labels, index = _batches(folder)
    mix = v2.MixUp(num_classes=int(labels.max()) + 1)
    return lambda: mix(_normalized(planar, index), labels[index])[0]


def timm_mixup(mode: str) -> Callable[[str], Run]:
    """Normalize and mix a batch with timm's Mixup."""

    def setup(folder: str) -> Run:
        _torchvision()
        from timm.data.mixup import Mixup

        planar, labels, index = _batches(folder)
        mix = Mixup(mixup_alpha=1.0, mode=mode, label_smoothing=0.0, num_classes=int(labels.max()) + 1)
        return lambda: mix(_normalized(planar, index), labels[index])[0]

    return setup


def kornia_mixup(folder: str) -> Run:
    """Normalize and mix a batch with kornia's RandomMixUpV2."""
    import kornia.augmentation

    planar, labels, index = _batches(folder)
    mix = kornia.augmentation.RandomMixUpV2(data_keys=["input", "class"])
    return lambda: mix(_normalized(planar, index), labels[index])[0]


class _Crops:
    """Inputs of the crop case, with boxes rounded to pixels for libraries that need integers."""

    def __init__(self, folder: str) -> None:
        self.images = _load(folder, "images")
        self.index, self.partner, self.lam = (_load(folder, n) for n in ("index", "partner", "lam"))
        self.boxes, self.flips = _load(folder, "boxes"), _load(folder, "flips").bool()
        rounded = self.boxes.round().int()
        self.rounded = [[[int(v) for v in side] for side in pair] for pair in rounded]
        self.size = 224

    def mixed(self, a: Tensor, b: Tensor) -> Tensor:
        weight = self.lam[:, None, None, None]
        return a.float().mul_(weight).add_(b.float().mul_(1 - weight)).sub_(MEAN * 255).div_(STD * 255)


def torchvision_crop(folder: str) -> Run:
    """Crop, flip and mix image by image with torchvision."""
    _torchvision()
    from torchvision.transforms.v2 import functional as tv

    c = _Crops(folder)

    def side(rows: Tensor, s: int) -> Tensor:
        out = []
        for n, row in enumerate(rows.tolist()):
            top, left, height, width = c.rounded[n][s]
            image = c.images[row].permute(2, 0, 1)
            crop = tv.resized_crop(image, top, left, max(1, height), max(1, width), [c.size, c.size], antialias=False)
            out.append(crop.flip(-1) if c.flips[n, s] else crop)
        return torch.stack(out)

    return lambda: c.mixed(side(c.index, 0), side(c.partner, 1))


def kornia_crop(folder: str) -> Run:
    """Crop, flip and mix batches with kornia."""
    import kornia.geometry.transform as kt

    c = _Crops(folder)

    def side(rows: Tensor, s: int) -> Tensor:
        top, left, height, width = c.boxes[:, s].unbind(1)
        right, bottom = left + width - 1, top + height - 1
        corners = torch.stack(
            [torch.stack(p, 1) for p in ((left, top), (right, top), (right, bottom), (left, bottom))], 1
        )
        crop = kt.crop_and_resize(c.images[rows].permute(0, 3, 1, 2).float(), corners, (c.size, c.size))
        crop[c.flips[:, s]] = crop[c.flips[:, s]].flip(-1)
        return crop

    return lambda: c.mixed(side(c.index, 0), side(c.partner, 1))


def opencv_crop(folder: str) -> Run:
    """Crop and flip with OpenCV in threads, then mix with torch.compile."""
    import cv2

    cv2.setNumThreads(1)
    c = _Crops(folder)
    store, batch, threads = c.images.numpy(), c.index.numel(), torch.get_num_threads()
    crops = [np.empty((batch, c.size, c.size, 3), np.uint8) for _ in range(2)]
    rows = [c.index.tolist(), c.partner.tolist()]
    flips = c.flips.tolist()
    pool = ThreadPoolExecutor(threads)
    out = torch.zeros(batch, 3, c.size, c.size)
    scale, bias = 1 / (255 * STD).view(3), (-MEAN / STD).view(3)

    def mix(a: Tensor, b: Tensor, lam: Tensor, out: Tensor) -> Tensor:
        weight = lam[:, None, None, None]
        return out.copy_(((weight * a.float() + (1 - weight) * b.float()) * scale + bias).permute(0, 3, 1, 2))

    compiled = torch.compile(mix, dynamic=False)

    def part(t: int) -> None:
        for n in range(batch * t // threads, batch * (t + 1) // threads):
            for s in range(2):
                top, left, height, width = c.rounded[n][s]
                source = store[rows[s][n], top : top + max(1, height), left : left + max(1, width)]
                resized = cv2.resize(source, (c.size, c.size), interpolation=cv2.INTER_LINEAR)
                crops[s][n] = cv2.flip(resized, 1) if flips[n][s] else resized

    def run() -> Tensor:
        list(pool.map(part, range(threads)))
        return compiled(torch.from_numpy(crops[0]), torch.from_numpy(crops[1]), c.lam, out)

    return run


PEERS: dict[str, Callable[[str], Run]] = {
    "torchvision_mixup": torchvision_mixup,
    "timm_mixup_batch": timm_mixup("batch"),
    "timm_mixup_elem": timm_mixup("elem"),
    "kornia_mixup": kornia_mixup,
    "torchvision_crop": torchvision_crop,
    "kornia_crop": kornia_crop,
    "opencv_crop": opencv_crop,
}
