"""Trains the methods of the demo: a shared pre-training, then the same number of batches with each method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from spurmix.cli.demo.attributed import DemoData, attribute_shares
from spurmix.cli.demo.policies import COMPARED, demo_policies
from spurmix.core import checks, policies
from spurmix.train.checkpoint import check_writable
from spurmix.train.evaluate import evaluate
from spurmix.train.infer import infer_groups

if TYPE_CHECKING:
    from spurmix.core.audit import Audit
    from spurmix.core.policy import MixPolicy
    from spurmix.train.evaluation import Evaluation
    from spurmix.train.finetune import AfterStep

EVALUATED_AFTER = (0.8, 0.9, 1.0)
"""Fractions of the training with a method after which the model is evaluated on the validation split. Earlier, the learning
rate is high, and 25 examples per group are too few to choose between weights that fluctuate."""


@dataclass(frozen=True)
class Experiment:
    """Model and data of one seed.

    Attributes:
        model: The model. It is trained in place.
        data: The data.
        batches: Number of batches of the training with a method.
        fit: Trains the model with a policy. The number is 0 for pre-training, 1 for the training with a method.
        features: Computes the features of the training examples.
        unmixed: Share of unmixed samples of balance_attributes.
    """

    model: nn.Module
    data: DemoData
    batches: int
    fit: Callable[[MixPolicy, int, AfterStep | None], object]
    features: Callable[[], Tensor]
    unmixed: float = 0.0


@dataclass(frozen=True)
class SeedResult:
    """Results of one seed.

    Attributes:
        seed: The seed.
        test: Evaluation on the test set, by method.
        validation: Worst-group accuracy on the validation split, by method.
        kept: Fraction of the training with the method after which its weights were kept, by method.
        policies: All policies by name.
        audits: Audits of all policies, by name.
        prior: For each class, the inferred attribute shares of the examples whose attribute is unknown.
    """

    seed: int
    test: dict[str, Evaluation]
    validation: dict[str, float]
    kept: dict[str, float]
    policies: dict[str, MixPolicy]
    audits: dict[str, Audit]
    prior: list[list[float]]


class BestWeights:
    """Keeps the weights with the highest worst-group accuracy on the validation split, the later ones if equal.

    Args:
        experiment: Model and data.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._model, self._data = experiment.model, experiment.data
        self._due = {max(1, round(experiment.batches * share)) for share in EVALUATED_AFTER}
        self._state: dict[str, Any] = {}
        self.worst_group = -1.0
        self.step = 0

    def is_due(self, step: int) -> bool:
        """Whether the model is evaluated after `step` batches."""
        return step in self._due

    def __call__(self, step: int) -> None:
        """Evaluate the model if it is due, and keep its weights if they are the best."""
        if not self.is_due(step):
            return
        worst_group = evaluate(self._model, self._data.validation, self._data.validation_groups).worst_group
        if worst_group >= self.worst_group:
            self.worst_group, self.step = worst_group, step
            self._state = copy.deepcopy(self._model.state_dict())

    def restore(self) -> None:
        """Load the kept weights into the model."""
        self._model.load_state_dict(self._state)


def run_seeds(
    prepare: Callable[[int], Experiment], policy: str, seed: int, seeds: int, *, compare: bool
) -> tuple[Experiment, list[SeedResult]]:
    """Train with ERM and with a policy, or with all compared policies, for several seeds.

    Args:
        prepare: Function that makes the model and the data of a seed.
        policy: Name of the policy.
        seed: The first seed.
        seeds: Number of seeds.
        compare: Whether to train with all compared policies.

    Returns:
        The experiment of the first seed, in which the model has the weights of `policy`. Then the results of every seed.

    Raises:
        ValueError: If `seeds` is not positive.
    """
    if seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, got {seeds}")
    first = prepare(seed)
    print(first.data.train_groups.table())
    results = [_run_methods(first, policy, seed, compare)]
    print(results[0].audits[policy])
    for number in range(seed + 1, seed + seeds):
        print(f"seed {number}")
        results.append(_run_methods(prepare(number), policy, number, compare))
    return first, results


def _run_methods(experiment: Experiment, policy: str, seed: int, compare: bool) -> SeedResult:
    """Train with every method of one seed, `policy` last, and evaluate each model on the test set once."""
    print("pre-training without debiasing")
    model, data = experiment.model, experiment.data
    experiment.fit(policies.erm(), 0, None)
    start = copy.deepcopy(model.state_dict())
    inferred = infer_groups(
        model, data.train, data.groups, "pseudo_labels", features=experiment.features(), confidence=0
    )
    prior = attribute_shares(data.groups, inferred)
    candidates = demo_policies(prior, experiment.unmixed)
    audits = {name: p.audit(data.groups, prior=prior) for name, p in candidates.items()}
    compared = COMPARED if compare else ("erm",)
    tests, validation, kept = {}, {}, {}
    for name in [*(name for name in compared if name != policy), policy]:
        print(f"training with {name}")
        model.load_state_dict(start)
        best = BestWeights(experiment)
        experiment.fit(candidates[name], 1, best)
        best.restore()
        tests[name] = evaluate(model, data.test, data.test_groups, train_groups=data.train_groups)
        validation[name], kept[name] = best.worst_group, best.step / experiment.batches
    return SeedResult(seed, tests, validation, kept, candidates, audits, prior)


def check_options(out: Path, policy: str) -> None:
    """Check the options that all tasks share.

    Args:
        out: Folder of the results.
        policy: Name of the policy.

    Raises:
        ValueError: If the policy does not exist or the folder cannot be written.
    """
    checks.choice(policy, "--policy", policies.__all__)
    check_writable(out)
