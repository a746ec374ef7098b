"""Training steps of ResNet50 on mixed images."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.gpu import data
from bench.gpu.models import ResNet
from bench.gpu.record import device, dry, survived
from bench.gpu.training_steps import STEP, Step, dense_loss, in_turns, sgd_update, worker_batches
from spurmix import ImageSource, MixLoader
from spurmix.ops import functional as F

CASE = "resnet50_256"


class ImageSteps:
    """Model, images and training steps. Batches are channels last."""

    def __init__(self) -> None:
        side, self.batch, classes = (32, 4, 2) if dry() else (224, 256, 2)
        self.pictures = data.Pictures(64 if dry() else 8192, side, self.batch)
        model = ResNet((1, 1), 8, classes) if dry() else ResNet(classes=classes)
        self.model = model.to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
        self.update = sgd_update(self.model)

    def synthetic(self) -> Step:
        """Step on one fixed batch."""
        labels, drawn = self.pictures.labels, self.pictures.drawn
        fixed = data.lean(self.pictures.images, *drawn, torch.bfloat16, True)
        label, partner_label = labels[drawn.index], labels[drawn.partner]
        return lambda: self.update(lambda: F.mixed_cross_entropy(self.model(fixed), label, partner_label, drawn.lam))

    def loaded(self, source: ImageSource, dtype: torch.dtype) -> Step:
        """Step on batches of a `MixLoader`."""
        loader = MixLoader(
            source, self.pictures.groups, self.pictures.policy, self.batch, steps=10**6, device=device(), dtype=dtype,
            channels_last=True,
        )  # fmt: skip
        batches = iter(loader)

        def step() -> None:
            b = next(batches)
            self.update(lambda: F.mixed_cross_entropy(self.model(b.input), b.label, b.partner_label, b.lam))

        return step

    def eager(self) -> Step:
        """Step on random pairs from the device, mixed by plain PyTorch, with dense targets."""
        images, labels = self.pictures.images, self.pictures.labels
        chances = torch.ones(self.pictures.stored, device=device())

        def step() -> None:
            index, partner = torch.multinomial(chances, 2 * self.batch, replacement=True).view(2, self.batch)
            lam = torch.rand(self.batch, device=device())
            x = data.eager(images, index, partner, lam, torch.bfloat16, True)
            self.update(lambda: dense_loss(self.model(x), labels[index], labels[partner], lam))

        return step

    def from_workers(self) -> tuple[Step, int]:
        """Step on batches of a DataLoader, mixed on the device, and the number of workers."""
        labels = self.pictures.groups.labels.tolist()
        batches, workers = worker_batches(self.pictures.cpu, labels, self.batch)
        everyone = torch.arange(self.batch, device=device())

        def step() -> None:
            images, label = next(batches)
            lam, partner = torch.rand(self.batch, device=device()), everyone.roll(1)
            x: Tensor = data.lean(images, everyone, partner, lam, torch.bfloat16, True)
            self.update(lambda: dense_loss(self.model(x), label, label[partner], lam))

        return step, workers


def resnet() -> None:
    """Measure steps of ResNet50, batch 256 of 224 x 224 pixels."""
    builder = ImageSteps()
    pictures, steps = builder.pictures, {"synthetic, one resident batch": builder.synthetic()}
    # For float32, the loader copies both uint8 images of a pair to the GPU, which is half the bytes of a mixed image. For
    # bfloat16, the size is the same, and the loader mixes on the host.
    sources = {
        "spurmix loader, resident": (lambda: ImageSource(pictures.images), torch.bfloat16),
        "spurmix loader, pinned": (lambda: ImageSource(pictures.cpu).pinned(), torch.bfloat16),
        "spurmix loader, from the host": (lambda: ImageSource(pictures.cpu), torch.bfloat16),
        "spurmix loader, gathered": (lambda: ImageSource(pictures.cpu), torch.float32),
    }
    for name, (source, dtype) in sources.items():
        if dry() and "pinned" in name:
            continue
        with survived(STEP, CASE, name):
            steps[name] = builder.loaded(source(), dtype)
    step, workers = builder.from_workers()
    steps |= {"eager mixing, dense targets": builder.eager(), "DataLoader, eager mixing": step}
    in_turns(CASE, steps, {"DataLoader, eager mixing": f"{workers} workers, uint8"}, 25.0)
