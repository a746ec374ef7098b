"""The demo for images: a small ResNet on handwritten digits over photographs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from spurmix.cli.demo import digits
from spurmix.cli.demo.policies import check_options, demo_policies, hide_attributes
from spurmix.cli.report.demo import write_report
from spurmix.cli.report.text import ImageSamples, ReportText
from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import ImageSource
from spurmix.deploy.export import export_onnx
from spurmix.train import models
from spurmix.train.evaluate import evaluate
from spurmix.train.finetune import finetune

BATCH_SIZE = 128
LEARNING_RATE = 2e-3
EPOCHS = (4.0, 12.0)
"""Epochs of training without debiasing, and with the policy."""
MODELS: dict[str, Callable[[int], torch.nn.Module]] = {"small": models.small_resnet, "resnet50": models.resnet50}

TEXT = ReportText(
    title="Debiasing a model that learned the background",
    data="The images are handwritten digits on crops of two photographs. The task is to tell the digits 0 to 4 from the "
    "digits 5 to 9. In the training set, 95% of each class have the same photograph as background. In the test set, it is "
    "50%. A model that is trained without debiasing (ERM) learns the background instead of the digit.",
    attribute="background",
    file="accepts uint8 images and normalizes them.",
)


def run(
    out: Path, *, policy: str, model_name: str, seed: int, epochs: tuple[float | None, float | None] = (None, None)
) -> dict[str, object]:
    """Run the demo.

    Args:
        out: Folder for all results.
        policy: Policy that debiases the model.
        model_name: "small" or "resnet50".
        seed: Random seed.
        epochs: Epochs of training without debiasing, and with the policy. None uses the defaults.

    Returns:
        The contents of report.json.

    Raises:
        ValueError: If an option is invalid.
    """
    pretrain, debias = (e if e is not None else default for e, default in zip(epochs, EPOCHS, strict=True))
    start = time.perf_counter()
    if model_name not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)} for images, got {model_name!r}")
    check_options(out, policy)
    torch.manual_seed(seed)

    print("data: handwritten digits on two photographs")
    train, test = digits.load(seed)
    names = digits.CLASS_NAMES, digits.ATTRIBUTE_NAMES
    train_groups = GroupIndex(train.label, train.attribute, class_names=names[0], attribute_names=names[1])
    test_groups = GroupIndex(test.label, test.attribute, class_names=names[0], attribute_names=names[1])
    print(train_groups.table())
    source, held_out = ImageSource(train.examples), ImageSource(test.examples)

    print("training without debiasing (ERM)")
    model = MODELS[model_name](2)
    loader = MixLoader(source, train_groups, policies.erm(), BATCH_SIZE, epochs=pretrain, seed=seed)
    finetune(model, loader, learning_rate=LEARNING_RATE)
    before = evaluate(model, held_out, test_groups, train_groups=train_groups)

    groups, prior = hide_attributes(train.label, train.attribute, seed, *names)
    candidates = demo_policies(prior)
    audits = {name: p.audit(groups, prior=prior) for name, p in candidates.items()}
    print(audits[policy])

    print(f"fine-tuning with {policy}")
    loader = MixLoader(source, groups, candidates[policy], BATCH_SIZE, epochs=debias, seed=seed + 1)
    finetune(model, loader, learning_rate=LEARNING_RATE)
    after = evaluate(model, held_out, test_groups, train_groups=train_groups)

    exported = export_onnx(model, out / "model.onnx", source=held_out, groups=test_groups, train_groups=train_groups)
    batch = next(iter(MixLoader(source, groups, candidates[policy], 16, seed=seed + 1, copy=True, prefetch=0)))
    return write_report(
        out, TEXT, {"task": "images", "policy": policy, "model": model_name, "seed": seed}, before=before, after=after,
        audits=audits, exported=exported, samples=ImageSamples(source, batch, groups.class_names), start=start,
    )  # fmt: skip
