"""Training of the demo's methods: equal budgets, and weights kept by the validation split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spurmix.cli.demo import experiment
from spurmix.cli.demo.attributed import DemoData
from spurmix.cli.demo.experiment import BestWeights, Experiment, run_seeds
from spurmix.cli.demo.policies import COMPARED
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.sources.arrays import FeatureSource
from spurmix.train.finetune import AfterStep

BATCHES = 12


class Recorder:
    """An experiment with a linear model. The bias of the model follows `path` instead of a training."""

    def __init__(self, path: list[float]) -> None:
        rng = np.random.default_rng(0)
        label = np.repeat([0, 1], 40)
        attribute = np.tile([0, 1], 40)
        features = rng.normal(size=(80, 3)).astype(np.float32)
        features[:, 0] = label - 0.5
        groups, source = GroupIndex(label, attribute), FeatureSource(features)
        known = GroupIndex(label, np.where(np.arange(80) % 40 < 20, attribute, -1))
        self.model = nn.Linear(3, 2)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]))
        self.path, self.calls, self.starts = path, [], []
        data = DemoData(source, known, groups, source, groups, source, groups)
        self.experiment = Experiment(self.model, data, BATCHES, self.fit, lambda: torch.from_numpy(features))

    def fit(self, policy: MixPolicy, phase: int, after_step: AfterStep | None) -> None:
        self.calls.append((policy.name, phase))
        self.starts.append(float(self.model.bias.detach()[0]))
        for step in range(1, BATCHES + 1):
            with torch.no_grad():
                self.model.bias.copy_(torch.tensor([self.path[step - 1] if phase else 0.25, 0.0]))
            if after_step is not None:
                after_step(step)


def test_the_best_weights_are_kept() -> None:
    recorder = Recorder([9.0] * 10 + [0.0, 9.0])
    best = BestWeights(recorder.experiment)
    recorder.fit(MixPolicy(strata="all"), 1, best)
    best.restore()
    assert (best.step, best.worst_group) == (11, 1.0)
    assert float(recorder.model.bias.detach()[0]) == 0.0


def test_the_later_of_equal_weights_are_kept() -> None:
    recorder = Recorder([0.1] * 11 + [0.0])
    best = BestWeights(recorder.experiment)
    recorder.fit(MixPolicy(strata="all"), 1, best)
    assert best.step == BATCHES


def test_every_method_starts_from_the_same_weights_and_the_policy_is_last() -> None:
    recorder = Recorder([0.1] * BATCHES)
    first, results = run_seeds(lambda seed: recorder.experiment, "lisa", 5, 1, compare=True)
    assert first is recorder.experiment
    names = [name for name, phase in recorder.calls if phase == 1]
    assert set(names) == set(COMPARED) and names[0] == "erm" and names[-1] == "lisa"
    assert recorder.starts[1:] == [0.25] * len(COMPARED)
    assert results[0].seed == 5 and set(results[0].test) == set(COMPARED)


def test_the_test_set_is_evaluated_once_for_each_method(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder([0.1] * BATCHES)
    test, calls = recorder.experiment.data.test_groups, []
    data = recorder.experiment.data
    validation_groups = GroupIndex(np.asarray(test.labels), np.asarray(test.attributes))
    data = DemoData(data.train, data.groups, data.train_groups, data.validation, validation_groups, data.test, test)
    evaluate = experiment.evaluate
    monkeypatch.setattr(
        experiment,
        "evaluate",
        lambda model, source, groups, **kw: (calls.append(groups), evaluate(model, source, groups, **kw))[1],
    )
    prepared = Experiment(recorder.model, data, BATCHES, recorder.fit, recorder.experiment.features)
    run_seeds(lambda seed: prepared, "balance_attributes", 0, 1, compare=False)
    assert sum(groups is test for groups in calls) == 2


def test_erm_as_the_policy_is_trained_once() -> None:
    recorder = Recorder([0.1] * BATCHES)
    _, results = run_seeds(lambda seed: recorder.experiment, "erm", 0, 2, compare=False)
    assert [name for name, phase in recorder.calls if phase == 1] == ["erm", "erm"]
    assert [result.seed for result in results] == [0, 1]
