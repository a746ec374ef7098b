"""Evaluation on overlapping cells: a membership matrix, a minimum size, the worst cell."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from spurmix import GroupIndex, evaluate
from spurmix.train import metrics

RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 2, 300)
MENTIONED = RNG.random((300, 8)) < 0.3  # eight identities that overlap
CELLS = np.stack([MENTIONED[:, k] & (y == LABELS) for k in range(8) for y in (0, 1)], axis=1)  # [300, 16]
NAMES = [f"identity {k}, y={y}" for k in range(8) for y in (0, 1)]
GROUPS = GroupIndex(LABELS, MENTIONED.any(axis=1).astype(np.int64))
LOGITS = np.eye(2)[np.where(RNG.random(300) < 0.8, LABELS, 1 - LABELS)]
RIGHT = LOGITS.argmax(1) == LABELS


def test_cells_against_a_count_by_hand() -> None:
    result = metrics.evaluate_logits(LOGITS, GROUPS, membership=CELLS, cell_names=NAMES)
    assert [c.name for c in result.cells] == NAMES
    for k, cell in enumerate(result.cells):
        mine = RIGHT[CELLS[:, k]]
        assert (cell.count, cell.correct, cell.label) == (mine.size, mine.sum(), k % 2)
        assert (cell.low, cell.high) == metrics.wilson(cell.correct, cell.count)
    assert sum(c.count for c in result.cells) != 300  # cells overlap, and some examples are in none
    assert result.worst_group == min(c.accuracy for c in result.cells)
    assert result.worst_name == min(result.cells, key=lambda c: c.accuracy).name
    assert len(json.loads(json.dumps(result.to_dict()))["cells"]) == 16
    assert f"worst cell {100 * result.worst_group:.2f}% ({result.worst_name})" in str(result)


def test_averages_are_those_of_the_partition() -> None:
    train = GroupIndex([0] * 90 + [1] * 10, [0] * 80 + [1] * 10 + [1] * 10)
    plain = metrics.evaluate_logits(LOGITS, GROUPS, train_groups=train)
    cells = metrics.evaluate_logits(LOGITS, GROUPS, train_groups=train, membership=CELLS)
    assert (cells.average, cells.adjusted_average, cells.groups) == (
        plain.average,
        plain.adjusted_average,
        plain.groups,
    )
    assert cells.weights_from == "training"
    assert plain.cells == ()


def test_small_cells_are_reported_but_not_the_worst_group() -> None:
    members = CELLS.copy()
    wrong = np.flatnonzero(~RIGHT)[:3]
    members[:, 0] = False
    members[wrong, 0] = True  # three examples, all wrong
    members[:, 5] = False  # empty, so not reported
    free = metrics.evaluate_logits(LOGITS, GROUPS, membership=members, cell_names=NAMES)
    assert (free.worst_group, free.worst_name) == (0.0, NAMES[0])
    guarded = metrics.evaluate_logits(LOGITS, GROUPS, membership=members, cell_names=NAMES, min_group_size=4)
    assert guarded.worst_group > 0
    assert len(guarded.cells) == len(free.cells) == 15
    assert [c.name for c in guarded.cells if not c.decides] == [NAMES[0]]
    assert "(below 4)" in str(guarded)
    with pytest.raises(ValueError, match="min_group_size is 301, but the largest group has only 55 examples"):
        metrics.evaluate_logits(LOGITS, GROUPS, membership=members, min_group_size=301)


def test_min_group_size_of_a_partition() -> None:
    labels = np.array([0] * 50 + [1] * 2)
    logits = np.eye(2)[np.zeros(52, dtype=int)]
    groups = GroupIndex(labels)
    assert metrics.evaluate_logits(logits, groups).worst_group == 0
    assert metrics.evaluate_logits(logits, groups, min_group_size=3).worst_group == 1


def test_model_is_evaluated_on_cells() -> None:
    features = LOGITS.astype(np.float32)
    result = evaluate(nn.Identity(), features, GROUPS, membership=torch.from_numpy(CELLS), cell_names=NAMES)
    expected = metrics.evaluate_logits(LOGITS, GROUPS, membership=CELLS, cell_names=NAMES)
    assert result.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (dict(membership=CELLS.astype(int)), TypeError, "membership must be a boolean matrix"),
        (dict(membership=CELLS[:9]), ValueError, r"membership must have shape \[300, K\]"),
        (dict(membership=CELLS[:, 0]), ValueError, "membership must have shape"),
        (dict(membership=CELLS[:, :0]), ValueError, "membership must have shape"),
        (dict(membership=np.zeros_like(CELLS)), ValueError, "membership: all cells are empty"),
        (dict(membership=CELLS, cell_names=NAMES[:3]), ValueError, "cell_names must be 16 different names"),
        (dict(membership=CELLS, cell_names=["a"] * 16), ValueError, "cell_names must be 16 different names"),
        (dict(membership=CELLS, cell_names="a" * 16), TypeError, "cell_names must be a sequence"),
        (dict(cell_names=NAMES), ValueError, "cell_names requires membership"),
        (dict(min_group_size=0), ValueError, "min_group_size must be 1 or more"),
        (dict(min_group_size=True), TypeError, "min_group_size must be an integer"),
    ],
)
def test_bad_membership(options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        evaluate(nn.Identity(), LOGITS.astype(np.float32), GROUPS, **options)


def test_metrics_need_no_torch() -> None:
    script = "import sys, spurmix.train.metrics; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Untouched(nn.Module):
    """A model that must not run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model ran before the options were checked")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (dict(min_group_size=0), ValueError, "min_group_size must be 1 or more, got 0"),
        (dict(min_group_size=True), TypeError, "min_group_size must be an integer"),
        (dict(min_group_size=2.0), TypeError, "min_group_size must be an integer"),
        (dict(min_group_size=301), ValueError, "the largest group has only"),
        (dict(membership=CELLS[:, :2], min_group_size=200), ValueError, "the largest group has only"),
        (dict(membership=np.zeros((300, 3), dtype=bool)), ValueError, "membership: all cells are empty"),
        (dict(membership=CELLS[:9]), ValueError, "membership must have shape"),
        (dict(cell_names=NAMES), ValueError, "cell_names requires membership"),
        (dict(train_groups=GroupIndex([7, 8], [0, 0])), ValueError, "none of the evaluated groups occurs in training"),
        (dict(train_groups=LABELS), TypeError, "train_groups must be a GroupIndex"),
    ],
)
def test_options_are_checked_before_the_model_runs(options: dict, error: type[Exception], text: str) -> None:
    features = np.zeros((300, 2), dtype=np.float32)
    with pytest.raises(error, match=text):
        evaluate(Untouched(), features, GROUPS, **options)
    with pytest.raises(error, match=text):
        metrics.evaluate_logits(LOGITS, GROUPS, **options)


def test_numpy_integers_are_accepted() -> None:
    result = metrics.evaluate_logits(LOGITS, GROUPS, membership=CELLS, min_group_size=np.int64(20))
    assert result.to_dict() == metrics.evaluate_logits(LOGITS, GROUPS, membership=CELLS, min_group_size=20).to_dict()
    assert json.loads(json.dumps(result.to_dict()))["min_group_size"] == 20
