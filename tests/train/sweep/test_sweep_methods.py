"""Methods that a comparison trains, and their trials."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from spurmix import FeatureSource, GroupIndex
from spurmix.train.runs.config import resolve
from spurmix.train.runs.data import SplitData
from spurmix.train.runs.processes import Processes
from spurmix.train.sweep.log import SweepLog
from spurmix.train.sweep.methods import METHODS, SweepMethod, Values
from spurmix.train.sweep.protocol import SweepPlan, run_plan
from spurmix.train.sweep.task import SweepTask

MAJORITY = 0.9


def split(name: str, count: int, share: float, seed: int, known: bool = True) -> SplitData:
    """Features that depend on class and attribute. Without `known`, only every fifth attribute is known."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, count)
    attribute = np.where(rng.random(count) < share, label, 1 - label)
    features = rng.standard_normal((count, 6)).astype(np.float32)
    features[:, 0] += 2 * label
    features[:, 1] += 4 * attribute
    shown = attribute if known else np.where(np.arange(count) % 5 == 0, attribute, -1)
    return SplitData(name, FeatureSource(features), GroupIndex(label, shown))


def task(seed: int = 0, known: bool = True) -> SweepTask:
    config = resolve(
        {"model": "linear", "epochs": 4.0, "batch_size": 32, "learning_rate": 0.05, "device": "cpu", "prefetch": 0}
    )
    torch.manual_seed(seed)
    train = split("train", 400, MAJORITY, seed, known)
    held_out = (split(name, 200, 0.5, seed + k) for k, name in ((10, "val"), (20, "test")))
    return SweepTask(config, nn.Linear(6, 2), train, *held_out, Processes("cpu"))


@pytest.mark.parametrize("name", METHODS)
def test_trials_start_with_the_defaults_and_differ(name: str) -> None:
    trials = METHODS[name].trials(8)
    assert trials[0] == {key: values[0] for key, values in METHODS[name].space.items()}
    assert len({tuple(values.items()) for values in trials}) == 8 and trials == METHODS[name].trials(8)
    assert METHODS[name].trials(4) == trials[:4]
    with pytest.raises(ValueError, match="trials must be at most"):
        METHODS[name].trials(10_000)


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_a_copy_of_the_model(name: str) -> None:
    shared = task(known=False)
    before = copy.deepcopy(shared.model.state_dict())
    values = METHODS[name].trials(1)[0]
    model, again = (METHODS[name].train(task(known=False), values, 3) for _ in range(2))
    METHODS[name].train(shared, values, 3)
    for key, value in before.items():
        assert torch.equal(shared.model.state_dict()[key], value)
        assert not torch.equal(model.state_dict()[key], value)
        assert torch.equal(model.state_dict()[key], again.state_dict()[key])


def test_prior_is_inferred_from_the_attributed_examples() -> None:
    shares = task(known=False).prior
    assert shares is not None and task().prior is None
    assert np.diag(shares) == pytest.approx([MAJORITY, MAJORITY], abs=0.1)


def test_protocol_debiases_and_uses_the_test_split_only_for_results() -> None:
    plan = SweepPlan(("erm", "group_balanced", "dfr"), 2, (100, 101), (200, 201), "features", 80)
    log, lines = SweepLog(None, "p"), list[str]()
    tasks: list[int] = []

    def task_of(seed: int) -> SweepTask:
        tasks.append(seed)
        return task(seed)

    rows = run_plan(plan, task_of, log, lines.append)
    assert tasks == [100, 101, 200, 201] and len(lines) == 3 * 2 * 2 + 3 * 2 and len(rows) == 6
    assert ["test" in line for line in lines] == [False] * 12 + [True] * 6
    worst = {name: np.mean([row["worst"] for row in rows if row["method"] == name]) for name in plan.methods}
    assert worst["erm"] < worst["group_balanced"] and worst["erm"] < worst["dfr"]
    assert all(min(c / n for c, n in row["groups"]) == row["worst"] for row in rows)
    assert [row["residual"] for row in rows if row["method"] == "group_balanced"] == pytest.approx([0, 0], abs=1e-6)
    for name in plan.methods:  # the trial with the best mean validation worst group
        found = {
            k: np.mean([log.find("trial", "features", 80, name, k, s)["validation"] for s in (100, 101)])  # type: ignore[index, arg-type]
            for k in (0, 1)
        }
        best = max(found, key=lambda k: (found[k], -k))
        assert rows[list(plan.methods).index(name)]["values"] == METHODS[name].trials(2)[best]
    assert run_plan(plan, task_of, log, lines.append) == rows and len(lines) == 18


def test_method_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task: SweepTask, values: Values, seed: int) -> nn.Module:
        raise ValueError("too few examples")

    monkeypatch.setitem(METHODS, "jtt", SweepMethod(fail))
    lines: list[str] = []
    rows = run_plan(SweepPlan(("jtt", "erm"), 1, (100,), (200,)), task, SweepLog(None, "p"), lines.append)
    assert [row["method"] for row in rows] == ["erm"] and "not trained: too few examples" in lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(methods=("ermm",)), "methods must be one of .*erm"),
        (dict(trials=0), "trials must be 1 or more"),
        (dict(trials=1000), "trials must be at most"),
        (dict(reported=(100,)), "seed 100 is a development seed and a reported seed"),
        (dict(methods=()), "must have one value or more"),
    ],
)
def test_invalid_plans(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepPlan(**{"methods": ("erm",), "trials": 1, "development": (100,), "reported": (200,), **change})
