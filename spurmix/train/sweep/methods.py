"""Methods that `spurmix sweep` and `python -m bench.debias` compare. `METHODS` maps names to functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.core.lam import Beta
from spurmix.core.policy import MixPolicy
from spurmix.train.afr import retrain_afr
from spurmix.train.head import extract_features, retrain_head
from spurmix.train.heads.options import DFR_C, HeadOptions
from spurmix.train.infer import infer_groups
from spurmix.train.objectives import GroupDRO
from spurmix.train.sweep.task import SweepTask

Values = Mapping[str, float]
"""Values of the hyperparameters of a trial."""
RATES, DECAYS = (1.0, 0.3, 3.0), (1e-2, 1e-1, 1e-4)
"""Factors of the learning rate, and weight decays, of all methods that fine-tune. The first values are the defaults."""
TRAINING: dict[str, tuple[float, ...]] = {"rate": RATES, "weight_decay": DECAYS}
HELD_OUT = 0.2
"""Share of the training examples that AFR retrains on, as in its paper."""


@dataclass(frozen=True)
class SweepMethod:
    """A method.

    Attributes:
        train: Trains a model from a task, the values of a trial and a seed.
        space: Values of each hyperparameter. The first of each is the default.
        policy: Policy that the method trains with, from a task and the values of a trial. None if it trains with ERM.
        debiases: Whether the method is meant to debias.
    """

    train: Callable[[SweepTask, Values, int], nn.Module]
    space: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: TRAINING)
    policy: Callable[[SweepTask, Values], MixPolicy] | None = None
    debiases: bool = True

    def trials(self, count: int, seed: int = 0) -> list[dict[str, float]]:
        """Choose the values of trials: the defaults, then different random combinations.

        Args:
            count: Number of trials.
            seed: Seed of the choice.

        Returns:
            The values of each trial.

        Raises:
            ValueError: If there are fewer combinations.
        """
        combinations = [
            dict(zip(self.space, values, strict=True)) for values in itertools.product(*self.space.values())
        ]
        if count > len(combinations):
            raise ValueError(f"trials must be at most {len(combinations)}, the number of combinations, got {count}")
        rest = np.random.default_rng(seed).permutation(np.arange(1, len(combinations)))
        return [combinations[k] for k in (0, *rest[: count - 1])]


def _with_policy(
    make: Callable[[SweepTask, Values], MixPolicy], debiases: bool = True, **space: tuple[float, ...]
) -> SweepMethod:
    """A method that fine-tunes with a policy."""

    def train(task: SweepTask, values: Values, seed: int) -> nn.Module:
        return task.finetuned(make(task, values), seed, rate=values["rate"], weight_decay=values["weight_decay"])

    return SweepMethod(train, {**TRAINING, **space}, make, debiases)


def _balance_attributes(task: SweepTask, values: Values) -> MixPolicy:
    lam = Beta(values["beta"], values["beta"]) if values["beta"] else None
    return policies.balance_attributes(lam=lam, prior=task.prior)


def _group_dro(task: SweepTask, values: Values, seed: int) -> nn.Module:
    objective = GroupDRO(task.train.groups, values["step"], values["adjustment"])
    return task.finetuned(
        policies.group_balanced(), seed, rate=values["rate"], weight_decay=values["weight_decay"], objective=objective
    )


def _jtt(task: SweepTask, values: Values, seed: int) -> nn.Module:
    """The errors are those of the pre-trained model, which was trained for fewer epochs."""
    groups = infer_groups(task.model, task.train.source, task.train.groups, "errors")
    policy = policies.upweight({"misclassified": values["factor"]})
    return task.finetuned(policy, seed, rate=values["rate"], weight_decay=values["weight_decay"], groups=groups)


def _head(method: Literal["dfr", "dispel", "inferred"]) -> Callable[[SweepTask, Values, int], nn.Module]:
    """ERM with the budget of the task, then a new head by `fit_head`."""

    def train(task: SweepTask, values: Values, seed: int) -> nn.Module:
        model = task.erm(seed)
        mixing = {"s": (values["s"],), "alpha": (1.0,)} if method == "dispel" else {}
        penalty: Literal["l1", "l2"] = "l2" if method == "inferred" else "l1"
        options = HeadOptions(C=(values["C"],), penalty=penalty, seed=seed, **mixing)  # type: ignore[arg-type]
        held_out = task.validation.source, task.validation.groups
        retrain_head(
            model, task.train.source, task.train.groups, method=method, validation=held_out, head_options=options,
            progress=False,
        )  # fmt: skip
        return model

    return train


def _afr(task: SweepTask, values: Values, seed: int) -> nn.Module:
    """ERM on 80% of the examples, then AFR on the others."""
    groups = task.train.groups
    flag = (np.random.default_rng([seed, 5]).random(groups.num_examples) < HELD_OUT).astype(np.int64)
    halves = GroupIndex(groups.labels, flag, class_names=groups.class_names, attribute_names=["training", "held out"])
    policy = policies.upweight({"training": 1.0, "held out": 0.0})
    model = task.finetuned(policy, seed, groups=halves)
    held_out = np.flatnonzero(flag)
    features = extract_features(model, task.train.source, progress=False)[held_out]
    subset = GroupIndex(groups.labels[held_out], class_names=groups.class_names)
    retrain_afr(
        model,
        task.train.source,
        subset,
        gamma=(values["gamma"],),
        l2=(values["l2"],),
        features=features,
        progress=False,
    )
    return model


METHODS: dict[str, SweepMethod] = {
    "erm": _with_policy(lambda task, values: policies.erm(), debiases=False),
    "class_balanced": _with_policy(lambda task, values: policies.class_balanced(), debiases=False),
    "mixup": _with_policy(lambda task, values: policies.mixup(values["alpha"]), debiases=False, alpha=(0.2, 0.4, 1.0)),
    "group_balanced": _with_policy(lambda task, values: policies.group_balanced()),
    "lisa": _with_policy(lambda task, values: policies.lisa(values["p"]), p=(0.5, 0.0, 1.0)),
    "selecmix": _with_policy(lambda task, values: policies.selecmix()),
    "mixpro": _with_policy(lambda task, values: policies.mixpro("attributed", values["s"]), s=(0.5, 0.3, 0.7)),
    "dispel_policy": _with_policy(lambda task, values: policies.dispel(values["s"], 1.0), s=(0.7, 0.5, 0.9, 1.0)),
    "balance_attributes": _with_policy(_balance_attributes, beta=(0.0, 0.4)),
    "group_dro": SweepMethod(_group_dro, {**TRAINING, "step": (0.01, 0.1), "adjustment": (0.0, 1.0)}),
    "jtt": SweepMethod(_jtt, {**TRAINING, "factor": (20.0, 5.0, 50.0)}),
    "afr": SweepMethod(_afr, {"gamma": (4.0, 1.0, 2.0, 8.0, 16.0), "l2": (0.1, 0.01, 1.0)}),
    "dfr": SweepMethod(_head("dfr"), {"C": (0.1, *(c for c in DFR_C if c != 0.1), 0.003)}),
    "dispel": SweepMethod(_head("dispel"), {"C": (0.1, 0.03, 0.3, 1.0), "s": (0.9, 0.7, 0.8, 1.0)}),
    "inferred": SweepMethod(_head("inferred"), {"C": (0.1, 0.01, 1.0, 0.001, 0.3, 0.03, 0.003, 3.0)}),
}
"""Methods by name. A further method is an entry here."""
