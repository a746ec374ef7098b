"""Step `training`: training steps in bfloat16, fed in several ways, compared with a step on one fixed batch."""

from __future__ import annotations

import torch

from bench.gpu import training_images, training_texts
from bench.gpu.record import device, dry, survived
from bench.gpu.training_steps import STEP
from spurmix.ops import functional as F


def main() -> None:
    """Run the step."""
    torch.manual_seed(0)
    if not dry():
        torch.backends.cudnn.benchmark = True
    with survived(STEP, training_images.CASE):
        training_images.resnet()
    with survived(STEP, training_texts.CASE):
        training_texts.bert()
    F.check(device())


if __name__ == "__main__":
    main()
