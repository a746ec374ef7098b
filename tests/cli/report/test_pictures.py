"""Pictures of reports."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from torch import nn

import spurmix
from spurmix import GroupIndex
from spurmix.cli.report.page import write_page
from spurmix.cli.report.pictures import GRAY, draw_accuracy, draw_audit, draw_curves
from spurmix.train.metrics import evaluate_logits
from spurmix.train.runs.files import EvaluationRow


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
        draw_audit(tmp_path, {"erm": (0.5, 0.5), "mixup": (math.nan, math.nan)}, math.nan, r"$\co$"),
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


def test_correlations_of_which_none_can_be_determined(tmp_path: Path) -> None:
    with Image.open(
        draw_audit(tmp_path, dict.fromkeys("abcdefgh", (math.nan, math.nan)), math.nan, "place")
    ) as picture:
        assert picture.height < picture.width < 1500


def test_names_that_look_the_same_differ_on_pages_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="differ only by white space"):
        groups = GroupIndex([0, 1, 2], class_names=["cat", "cat ", "dog"])
    evaluation = evaluate_logits(np.eye(3), groups)
    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_xticks", lambda _self, _positions, names, **_options: labels.extend(names))
    draw_accuracy(tmp_path, [("ERM", evaluation, GRAY)])
    assert labels == ["'cat'", "'cat '", "dog"]
    rows = "{% for g, name in groups | with_names %}{{ name }}|{% endfor %}{{ 'cat' | shown(groups) }}"
    monkeypatch.setattr(jinja2, "PackageLoader", lambda _: jinja2.DictLoader({"t": rows}))
    write_page(tmp_path, "t", [], groups=evaluation.groups)
    assert html.unescape((tmp_path / "report.html").read_text()) == "'cat'|'cat '|dog|'cat'"


def test_learning_curves_show_worst_group_averages_and_kept_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[float]] = {}
    plot = Axes.plot

    def record(axes: Axes, x: list[float], y: list[float], *style: str, **options: Any) -> object:
        drawn[options["label"]] = [float(value) for value in y]
        return plot(axes, x, y, *style, **options)

    monkeypatch.setattr(Axes, "plot", record)
    rows = [
        EvaluationRow(step=10 * k, worst_group=0.1 * k, average=0.2 * k, adjusted_average=0.15 * k, worst_name=name)
        for k, name in enumerate(["cat", r"dog $\frac", "cat", "x" * 40], 1)
    ]
    losses = [1.0, 0.5] * 20
    with Image.open(draw_curves(tmp_path, losses, rows, 30)) as picture:
        both = picture.size
    assert drawn["worst group"] == pytest.approx([0.1, 0.2, 0.3, 0.4]) and drawn["average"][3] == pytest.approx(0.8)
    assert drawn["adjusted average"][0] == pytest.approx(0.15) and drawn["worst: cat"] == pytest.approx([0.1, 0.3])
    assert f"worst: {'x' * 29}…" in drawn and len(drawn["loss"]) == 40
    with Image.open(draw_curves(tmp_path, losses, [], 40)) as picture:
        assert picture.height < both[1] and picture.width < 1500
