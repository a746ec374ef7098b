"""`spurmix demo`: from data to a debiased ONNX file, on real images."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spurmix.cli import demo_data, report
from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import ImageSource
from spurmix.deploy.export import export_onnx
from spurmix.train import models
from spurmix.train.checkpoint import check_writable
from spurmix.train.evaluate import evaluate
from spurmix.train.finetune import finetune

DONORS = 100
BATCH = 128
LEARNING_RATE = 2e-3
EPOCHS = (4.0, 12.0)
Epochs = tuple[float | None, float | None]
"""Passes of plain training and of debiasing; None: what suits the task."""
MODELS: dict[str, Callable[[int], torch.nn.Module]] = {"small": models.small_resnet, "resnet50": models.resnet50}


STORY = report.Story(
    title="Debiasing a model that learned the background",
    data="Handwritten digits were drawn over crops of two photographs. In the training set 95% of each class lies on its "
    "own photograph, in the test set half. Plain training (ERM) learns the photograph.",
    attribute="background",
    file="takes uint8 images and normalises them itself.",
)


def partly_known(
    label: NDArray[np.int64], attribute: NDArray[np.int64], seed: int, **names: Any
) -> tuple[GroupIndex, list[list[float]]]:
    """Groups with at most `DONORS` known attributes per group, and the attribute shares of each class's rest."""
    rng = np.random.default_rng([seed, 7])
    known = np.full(label.size, -1)
    for y in (0, 1):
        for a in (0, 1):
            rows = np.flatnonzero((label == y) & (attribute == a))
            known[rng.permutation(rows)[:DONORS]] = a
    rest = known == -1
    prior = []
    for y in (0, 1):
        mine = attribute[rest & (label == y)]
        mine = mine if mine.size else attribute[label == y]  # all known: nothing is assumed of anybody
        prior.append([float(np.mean(mine == a)) for a in (0, 1)])
    return GroupIndex(label, known, **names), prior


def all_policies(groups: GroupIndex, prior: list[list[float]]) -> dict[str, MixPolicy]:
    """Every method with arguments that suit the demo; examples of unknown attribute take part where a method lets them.

    mixpro takes attribute 1 as its target set; upweight triples the groups whose attribute contradicts the class.
    """
    rare = {(0, 1): 3.0, (1, 0): 3.0}
    return {
        "erm": policies.erm(),
        "class_balanced": policies.class_balanced(),
        "group_balanced": policies.group_balanced(),
        "mixup": policies.mixup(),
        "lisa": policies.lisa(),
        "selecmix": policies.selecmix(),
        "mixpro": policies.mixpro(target=1),
        "balance_attributes": policies.balance_attributes(prior=prior),
        "upweight": policies.upweight(rare),
    }


def check(out: Path, policy: str) -> None:
    """Check what every task's command line says."""
    if policy not in policies.__all__:
        raise ValueError(f"--policy must be one of {', '.join(policies.__all__)}, got {policy!r}")
    check_writable(out)


def run(out: Path, *, policy: str, model_name: str, seed: int, epochs: Epochs = (None, None)) -> dict[str, Any]:
    """Run the demo and write everything into `out`; returns the contents of report.json."""
    pretrain, debias = (e if e is not None else default for e, default in zip(epochs, EPOCHS, strict=True))
    began = time.perf_counter()
    if model_name not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {model_name!r}")
    check(out, policy)
    torch.manual_seed(seed)

    print("data: handwritten digits over two photographs")
    train, test = demo_data.load(seed)
    names: dict[str, Any] = {"class_names": demo_data.CLASS_NAMES, "attribute_names": demo_data.ATTRIBUTE_NAMES}
    train_groups = GroupIndex(train.label, train.attribute, **names)
    test_groups = GroupIndex(test.label, test.attribute, **names)
    print(train_groups.table())
    source, held_out = ImageSource(train.images), ImageSource(test.images)

    print("plain training (ERM): the biased pre-trained model")
    model = MODELS[model_name](2)
    loader = MixLoader(source, train_groups, policies.erm(), BATCH, epochs=pretrain, seed=seed)
    finetune(model, loader, learning_rate=LEARNING_RATE)
    before = evaluate(model, held_out, test_groups, train_groups=train_groups)

    groups, prior = partly_known(train.label, train.attribute, seed, **names)
    candidates = all_policies(groups, prior)
    # The audit assumes of unknown attributes what the prior says, for every policy alike.
    audits = {name: p.audit(groups, prior=prior) for name, p in candidates.items()}
    print(audits[policy])

    print(f"debiasing with {policy}")
    loader = MixLoader(source, groups, candidates[policy], BATCH, epochs=debias, seed=seed + 1)
    finetune(model, loader, learning_rate=LEARNING_RATE)
    after = evaluate(model, held_out, test_groups, train_groups=train_groups)

    exported = export_onnx(model, out / "model.onnx", source=held_out, groups=test_groups, train_groups=train_groups)
    sample = next(iter(MixLoader(source, groups, candidates[policy], 16, seed=seed + 1, copy=True, prefetch=0)))
    settings = {"task": "images", "policy": policy, "model": model_name, "seed": seed}
    return report.finish(
        out, STORY, settings, before, after, audits, exported, (source, sample, groups.class_names), began
    )
