"""Pictures of reports."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import spurmix
from spurmix import GroupIndex
from spurmix.cli.report.pictures import GRAY, draw_accuracy, draw_audit
from spurmix.train.metrics import evaluate_logits


@pytest.mark.parametrize(("classes", "name", "tall"), [
    (2, "cat", False), (2, r"$\frac{a}$, a long name", False), (9, "x", True),
])  # fmt: skip
def test_any_group_names_fit(classes: int, name: str, tall: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    groups = GroupIndex(np.arange(50) % classes, class_names=[f"{name}{k}" for k in range(classes)])
    features = rng.standard_normal((50, 4)).astype(np.float32)
    evaluation = spurmix.evaluate(nn.Linear(4, classes), features, groups)
    files = [
        draw_accuracy(tmp_path, [("ERM", evaluation, GRAY)]),
        draw_audit(tmp_path, {"erm": 0.5, "mixup": math.nan}, math.nan, r"$\co$"),
    ]
    with Image.open(files[0]) as bars, Image.open(files[1]) as audit:
        assert (bars.height > 0.65 * bars.width) == tall
        assert max(bars.size + audit.size) < 1500


def test_groups_that_only_one_evaluation_has_are_drawn(tmp_path: Path) -> None:
    few, many = (
        evaluate_logits(np.eye(classes), GroupIndex(np.arange(classes), class_names=["a", "b", "c", "d"]))
        for classes in (2, 4)
    )
    sizes = []
    for evaluations in ((few, many), (many, few)):
        path = draw_accuracy(tmp_path, [(str(n), found, GRAY) for n, found in enumerate(evaluations)])
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert sizes[0] == sizes[1]
