"""Evaluation: accuracy of each group, memory, invalid logits."""

from __future__ import annotations

import ctypes
import gc
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from small_network import ATTRIBUTES, FEATURES, GROUPS, LABELS, network
from torch import nn

from spurmix import GroupIndex, evaluate
from spurmix.train import metrics
from spurmix.train.evaluate import predict


def test_evaluation_against_a_count_by_hand() -> None:
    model = network().train()
    result = evaluate(model, FEATURES, GROUPS, batch_size=50)
    assert model.training
    model.eval()
    right = (model(torch.from_numpy(FEATURES)).argmax(1).numpy() == LABELS).astype(float)
    for row in result.groups:
        mine = right[(row.label == LABELS) & (row.attribute == ATTRIBUTES)]
        assert (row.count, row.accuracy) == (mine.size, pytest.approx(mine.mean()))
        interval = stats.binomtest(row.correct, row.count).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
    assert result.worst_group == min(r.accuracy for r in result.groups)
    assert result.average == pytest.approx(right.mean())
    train = GroupIndex([0] * 90 + [1] * 10, [0] * 80 + [1] * 10 + [1] * 10)
    adjusted = evaluate(model, FEATURES, GROUPS, train_groups=train)
    accuracy = {(r.label, r.attribute): r.accuracy for r in result.groups}
    expected = 0.8 * accuracy[0, 0] + 0.1 * accuracy[0, 1] + 0.1 * accuracy[1, 1]
    assert adjusted.adjusted_average == pytest.approx(expected)
    assert result.confusion.sum() == 120
    assert "worst group" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["groups"][0]["count"] == result.groups[0].count


def test_invalid_logits_are_rejected() -> None:
    with pytest.raises(ValueError, match="not finite"):
        metrics.evaluate_logits(np.full((120, 2), np.nan), GROUPS)
    with pytest.raises(ValueError, match="labels go up to 1, but the model has 1"):
        metrics.evaluate_logits(np.zeros((120, 1)), GROUPS)
    with pytest.raises(ValueError, match="logits must have shape"):
        metrics.evaluate_logits(np.zeros((5, 2)), GROUPS)
    with pytest.raises(ValueError, match="source has 4 examples"):
        evaluate(network(), FEATURES[:4], GROUPS)


def peak_memory_of(call: Callable[[], object]) -> int:
    """Peak growth of the resident memory of this process during a call, in bytes."""

    def high_water_mark() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory would serve the call
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark
    before = high_water_mark()
    call()
    return high_water_mark() - before


def test_evaluation_does_not_keep_logits() -> None:
    examples, classes = 30_000, 1000
    labels = np.arange(examples) % 10
    groups = GroupIndex(labels, labels % 2)
    model, features = nn.Linear(1, classes), torch.rand(examples, 1)
    evaluate(model, features[:1000], GroupIndex(labels[:1000]))  # allocates memory that does not depend on the size
    all_logits = 4 * examples * classes
    assert peak_memory_of(lambda: evaluate(model, features, groups)) < all_logits / 2
    assert peak_memory_of(lambda: predict(model, features)) > all_logits / 2


def test_confusion_table_is_built_on_request() -> None:
    labels = np.arange(2000) % 1000
    groups = GroupIndex(labels, np.arange(2000) // 1000)
    result = evaluate(nn.Linear(1, 1000), np.zeros((2000, 1), dtype=np.float32), groups)
    assert result.predictions.shape == (2000, 1000)  # the table has [2000, 1000, 1000] entries
    assert result.to_dict()["confusion"] is None
    small = evaluate(network(), FEATURES, GROUPS)
    table = np.zeros((4, 2, 2), dtype=int)
    predicted = predict(network(), FEATURES).argmax(dim=1).numpy()
    np.add.at(table, (GROUPS.group_ids(), LABELS, predicted), 1)
    assert small.confusion.tolist() == small.to_dict()["confusion"] == table.tolist()


def test_evaluation_counts_half_precision_logits_and_mixed_groups() -> None:
    partition = GroupIndex(LABELS, groups=np.arange(120) % 5)  # groups of several labels
    model = network().eval()
    for dtype in (torch.float32, torch.bfloat16):
        logits = model(torch.from_numpy(FEATURES)).to(dtype)
        expected = metrics.evaluate_logits(logits, partition)
        rounded = nn.Sequential(nn.Identity())
        result = evaluate(rounded, logits.detach(), partition, batch_size=7)
        assert result.to_dict() == expected.to_dict()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_error_names_the_first_logits_that_are_not_finite(value: float) -> None:
    logits = np.eye(2, dtype=np.float32)[LABELS]
    logits[[70, 31], 1] = np.inf, value
    with pytest.raises(ValueError, match="logits of example 31 are not finite"):
        evaluate(nn.Identity(), logits, GROUPS, batch_size=16)
    with pytest.raises(ValueError, match="logits of example 31 are not finite"):
        metrics.evaluate_logits(logits, GROUPS)
