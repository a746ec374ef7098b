"""The model and the data that all methods of a comparison share."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from spurmix.core import policies
from spurmix.core.groups import UNKNOWN, GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.train.finetune import finetune
from spurmix.train.head import extract_features
from spurmix.train.infer import infer_groups
from spurmix.train.objectives import Objective
from spurmix.train.runs.config import RunConfig
from spurmix.train.runs.data import SplitData
from spurmix.train.runs.processes import Processes
from spurmix.train.runs.run import make_loader


@dataclass(frozen=True)
class SweepTask:
    """A pre-trained model and its data.

    Attributes:
        config: Settings of the training with each method: batch size, epochs, learning rate, crops.
        model: Pre-trained model. It is copied and not changed.
        train: Examples to train on. Some attributes may be unknown.
        validation: Examples that choose hyperparameters.
        test: Examples of the reported results.
        processes: This process, and its device.
    """

    config: RunConfig
    model: nn.Module
    train: SplitData
    validation: SplitData
    test: SplitData
    processes: Processes

    @cached_property
    def features(self) -> Tensor:
        """Features of the training examples by the pre-trained model, float32 `[N, D]`."""
        return extract_features(self.model, self.train.source, progress=False)

    @cached_property
    def prior(self) -> list[list[float]] | None:
        """For each class, the attribute shares of the examples of unknown attribute. None if all are known.

        They are inferred by a logistic regression on the features of the attributed examples. The true shares are not
        used.
        """
        groups = self.train.groups
        known = groups.spurious_attributes
        if known is None or not (known == UNKNOWN).any() or (known == UNKNOWN).all():
            return None
        inferred = infer_groups(
            self.model,
            self.train.source,
            groups,
            "pseudo_labels",
            features=self.features,
            confidence=0.0,
            progress=False,
        ).spurious_attributes
        assert inferred is not None
        shares = []
        for label in range(groups.num_classes):
            mine = groups.labels == label
            rest = inferred[mine & (known == UNKNOWN)]
            chosen = rest if rest.size else inferred[mine]
            counts = np.bincount(chosen, minlength=groups.num_attributes)[: groups.num_attributes]
            shares.append((counts / max(1, counts.sum())).tolist())
        return shares

    def finetuned(
        self,
        policy: MixPolicy,
        seed: int,
        *,
        rate: float = 1.0,
        weight_decay: float | None = None,
        groups: GroupIndex | None = None,
        objective: Objective | None = None,
    ) -> nn.Module:
        """Fine-tune a copy of the model with the budget of the task.

        Args:
            policy: Policy that draws and mixes examples.
            seed: Random seed.
            rate: Factor of the learning rate.
            weight_decay: Weight decay. Default: setting of the task.
            groups: Groups of the training examples. Default: those of the task.
            objective: Objective. Default: the mean loss.

        Returns:
            The model.
        """
        decay = self.config.weight_decay if weight_decay is None else weight_decay
        changes = {"seed": seed, "learning_rate": rate * self.config.learning_rate, "weight_decay": decay}
        config = dataclasses.replace(self.config, **changes)  # type: ignore[arg-type]  # keys of several types
        data = self.train if groups is None else dataclasses.replace(self.train, groups=groups)
        model = copy.deepcopy(self.model).to(self.processes.device)
        torch.manual_seed(seed)
        loader = make_loader(config, data, policy, self.processes)
        finetune(model, loader, options=config.finetune_options(), objective=objective, progress=False)
        return model

    @cached_property
    def _erm(self) -> dict[int, nn.Module]:
        return {}

    def erm(self, seed: int) -> nn.Module:
        """Return a copy of the model fine-tuned by ERM, which the methods that retrain its head share."""
        if seed not in self._erm:
            self._erm.clear()
            self._erm[seed] = self.finetuned(policies.erm(), seed)
        return copy.deepcopy(self._erm[seed])
