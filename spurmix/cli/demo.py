"""`spurmix demo`: from data to a debiased ONNX file, on real images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spurmix.cli import demo_data, report
from spurmix.cli.app import versions
from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.loader import MixLoader
from spurmix.data.sources import ImageSource
from spurmix.deploy.export import export_onnx
from spurmix.train import models
from spurmix.train.checkpoint import check_writable
from spurmix.train.evaluate import evaluate
from spurmix.train.finetune import finetune

DONORS = 100
BATCH = 128
LEARNING_RATE = 2e-3
MODELS: dict[str, Callable[[int], torch.nn.Module]] = {"small": models.small_resnet, "resnet50": models.resnet50}


def partly_known(split: demo_data.Split, seed: int) -> tuple[GroupIndex, list[list[float]]]:
    """Groups with at most `DONORS` known attributes per group, and the attribute shares of each class's rest."""
    rng = np.random.default_rng([seed, 7])
    known = np.full(split.label.size, -1)
    for y in (0, 1):
        for a in (0, 1):
            rows = np.flatnonzero((split.label == y) & (split.attribute == a))
            known[rng.permutation(rows)[:DONORS]] = a
    rest = known == -1
    prior = [[float(np.mean(split.attribute[rest & (split.label == y)] == a)) for a in (0, 1)] for y in (0, 1)]
    names: dict[str, Any] = {"class_names": demo_data.CLASS_NAMES, "attribute_names": demo_data.ATTRIBUTE_NAMES}
    return GroupIndex(split.label, known, **names), prior


def all_policies(groups: GroupIndex, prior: list[list[float]]) -> dict[str, MixPolicy]:
    """Every method with arguments that suit the demo; examples of unknown attribute take part where a method lets them.

    mixpro takes the background "flower" as its target set; upweight triples the groups whose background contradicts
    the class.
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


def run(out: Path, *, policy: str, model_name: str, seed: int, epochs: tuple[float, float]) -> dict[str, Any]:
    """Run the demo and write everything into `out`; returns the contents of report.json."""
    began = time.perf_counter()
    if model_name not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {model_name!r}")
    if policy not in policies.__all__:
        raise ValueError(f"--policy must be one of {', '.join(policies.__all__)}, got {policy!r}")
    check_writable(out)
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
    loader = MixLoader(source, train_groups, policies.erm(), BATCH, epochs=epochs[0], seed=seed)
    finetune(model, loader, learning_rate=LEARNING_RATE)
    before = evaluate(model, held_out, test_groups, train_groups=train_groups)

    groups, prior = partly_known(train, seed)
    candidates = all_policies(groups, prior)
    # The audit assumes of unknown attributes what the prior says, for every policy alike.
    audits = {name: p.audit(groups, prior=prior) for name, p in candidates.items()}
    print(audits[policy])

    print(f"debiasing with {policy}")
    loader = MixLoader(source, groups, candidates[policy], BATCH, epochs=epochs[1], seed=seed + 1)
    finetune(model, loader, learning_rate=LEARNING_RATE)
    after = evaluate(model, held_out, test_groups, train_groups=train_groups)

    exported = export_onnx(model, out / "model.onnx", source=held_out, groups=test_groups, train_groups=train_groups)
    result: dict[str, Any] = {
        "policy": policy,
        "model": model_name,
        "seed": seed,
        "erm": before.to_dict(),
        "debiased": after.to_dict(),
        "audit": {
            "raw": audits[policy].raw,
            "residual": audits[policy].residual,
            "policies": {name: a.residual for name, a in audits.items()},
            "details": audits[policy].to_dict(),
        },
        "onnx": {
            "file": "model.onnx",
            "max_abs_logit_diff": exported.max_abs_logit_diff,
            "argmax_flips": exported.argmax_flips,
            "worst_group": exported.evaluation.worst_group,
        },
        "versions": versions(),
    }
    sample = next(iter(MixLoader(source, groups, candidates[policy], 16, seed=seed + 1, copy=True, prefetch=0)))
    report.draw(out, before, after, {n: a.residual for n, a in audits.items()}, audits[policy].raw, source, sample)
    result["seconds"] = round(time.perf_counter() - began, 1)
    report.write_html(out, result, before, after, str(audits[policy]))
    report.write_text(out / "report.json", json.dumps(result, indent=1))
    report.print_table(out, before, after, result)
    return result
