"""The demo for images: a small ResNet on handwritten digits over photographs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from spurmix.cli.demo import digits
from spurmix.cli.demo.attributed import divide
from spurmix.cli.demo.experiment import Experiment, check_options, run_seeds
from spurmix.cli.report.demo import write_report
from spurmix.cli.report.text import ImageSamples, ReportText
from spurmix.core import policies
from spurmix.core.policy import MixPolicy
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import ImageSource
from spurmix.deploy.export import export_onnx
from spurmix.ops.augment import Augment
from spurmix.train import models
from spurmix.train.finetune import AfterStep, finetune
from spurmix.train.head import extract_features

BATCH_SIZE = 128
LEARNING_RATE = 5e-3
EPOCHS = (4.0, 24.0)
"""Epochs of pre-training without debiasing, and of the training with each policy."""
AUGMENT = Augment(scale=(0.4, 1.0), flip=False)
"""Random crops. Digits are not flipped, because flips change their class."""
UNMIXED = 0.5
"""Share of unmixed samples of balance_attributes."""
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
    out: Path,
    *,
    policy: str,
    model_name: str,
    seed: int,
    epochs: tuple[float | None, float | None] = (None, None),
    compare: bool = False,
    seeds: int = 1,
) -> dict[str, object]:
    """Run the demo.

    Args:
        out: Folder for all results.
        policy: Policy that debiases the model.
        model_name: "small" or "resnet50".
        seed: Random seed.
        epochs: Epochs of pre-training without debiasing, and of the training with each policy. None uses the defaults.
        compare: Whether to train with several policies and compare them.
        seeds: Number of seeds, from `seed` upwards. The model, the pictures and the audit are those of the first.

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
    print("data: handwritten digits on two photographs")

    def prepare(seed: int) -> Experiment:
        return _prepare(MODELS[model_name], seed, (pretrain, debias))

    first, results = run_seeds(prepare, policy, seed, seeds, compare=compare)
    data = first.data
    exported = export_onnx(
        first.model, out / "model.onnx", source=data.test, groups=data.test_groups, train_groups=data.train_groups
    )
    trained = results[0].policies[policy]
    loader = MixLoader(data.train, data.groups, trained, 16, seed=seed + 1, copy=True, prefetch=0)
    assert isinstance(data.train, ImageSource)
    samples = ImageSamples(data.train, next(iter(loader)), data.groups.class_names)
    settings: dict[str, object] = {"task": "images", "policy": policy, "model": model_name, "seed": seed}
    return write_report(out, TEXT, settings, results, exported=exported, samples=samples, start=start)


def _prepare(make_model: Callable[[int], torch.nn.Module], seed: int, epochs: tuple[float, float]) -> Experiment:
    """Make the data and the model of a seed."""
    torch.manual_seed(seed)
    data = divide(*digits.load(seed), seed, ImageSource, digits.CLASS_NAMES, digits.ATTRIBUTE_NAMES)
    model = make_model(2)

    def loader(policy: MixPolicy, phase: int) -> MixLoader:
        return MixLoader(
            data.train, data.groups, policy, BATCH_SIZE, epochs=epochs[phase], seed=seed + phase, augment=AUGMENT
        )

    def fit(policy: MixPolicy, phase: int, after_step: AfterStep | None) -> None:
        finetune(model, loader(policy, phase), learning_rate=LEARNING_RATE, after_step=after_step)

    batches = len(loader(policies.erm(), 1))
    return Experiment(model, data, batches, fit, lambda: extract_features(model, data.train), UNMIXED)
