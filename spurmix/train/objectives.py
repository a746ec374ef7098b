"""Objectives of `finetune`: how the losses of a batch become the loss that training minimizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.data.batch import Batch
from spurmix.train.evaluate import reduce

if TYPE_CHECKING:
    from spurmix.core.array_types import Int64Array
    from spurmix.data.loader.mix_loader import MixLoader


class Objective:
    """Maps the losses of the samples of a batch to a scalar. This base class is the mean, as in ERM.

    Subclasses override `__call__`. One with a state also overrides `start`, `state_dict` and `load_state_dict`, so that
    a resumed run continues exactly. The repr is part of what a checkpoint must agree with, so it must show all settings.

    Example:
        >>> class Largest(Objective):
        ...     def __call__(self, losses, batch):
        ...         return losses.topk(8).values.mean()
        >>> finetune(model, loader, objective=Largest())
    """

    def __call__(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return the loss of a batch. With several processes, the gradient is the mean over the processes.

        Args:
            losses: Loss of each sample, float `[B]`.
            batch: The batch, on the device of the losses. `batch.group` is the group of each sample's index.

        Returns:
            The loss, a scalar.
        """
        return losses.mean()

    def start(self, loader: MixLoader) -> None:
        """Set the initial state. `finetune` calls this method before it loads a checkpoint.

        Args:
            loader: Loader of the run.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a checkpoint stores."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a result of `state_dict`.

        Args:
            state: The state.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class GroupDRO(Objective):
    """Group distributionally robust optimization: the groups with the largest losses get the largest weights.

    For each batch, the weights q of the groups are updated to q_g * exp(step * (loss_g + adjustment / sqrt(n_g))) and
    normalized, and the loss is the sum of q_g * loss_g. loss_g is the mean loss of the samples of group g in the global
    batch, and n_g is the number of training examples of the group that are drawn. A group without samples in the batch
    keeps its weight until weights are normalized. The group of a mixed sample is that of its index.

    The paper draws groups equally often (`policies.group_balanced()`) and uses strong weight decay. Weights are updated
    once for each batch, also if gradients are accumulated. The result does not depend on the number of processes.

    Args:
        groups: Groups of the training examples, the same as those of the loader.
        step: Step size of the weights, 0 or more. 0 keeps them equal.
        adjustment: Adjustment C for the generalization gap of small groups, 0 or more.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> loader = MixLoader(images, groups, policies.group_balanced(), 128, epochs=10)
        >>> objective = GroupDRO(groups, step=0.01)
        >>> finetune(model, loader, objective=objective, weight_decay=0.1)
        >>> objective.weights

    References:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020, arXiv 1911.08731, algorithm 1
        and section 3.3.
    """

    def __init__(self, groups: GroupIndex, step: float = 0.01, adjustment: float = 0.0) -> None:
        self._groups = checks.instance(groups, "groups", GroupIndex)
        self.step = checks.number(step, "step", 0)
        self.adjustment = checks.number(adjustment, "adjustment", 0)
        self._initialize(self._groups.sizes)

    def _initialize(self, sizes: Int64Array) -> None:
        """Give all groups that have examples the same weight."""
        filled = torch.from_numpy(sizes > 0)
        self._log_weights = torch.where(filled, -torch.log(filled.sum().double()), -torch.inf)
        self._adjustments = self.adjustment / torch.from_numpy(sizes).clamp(min=1).double().sqrt()

    @property
    def weights(self) -> Tensor:
        """Weight of each group, float64 `[G]` on the CPU. The sum is 1."""
        return self._log_weights.exp().cpu()

    def start(self, loader: MixLoader) -> None:
        """Set equal weights for all groups that the loader draws.

        Args:
            loader: Loader of the run.

        Raises:
            ValueError: If the loader has other groups.
        """
        if loader.groups is not self._groups and loader.groups.fingerprint() != self._groups.fingerprint():
            raise ValueError("groups of GroupDRO differ from the groups of the loader; use the same GroupIndex")
        resolved = loader.policy.resolve_arrays(loader.groups, loader.seed)
        drawn = np.repeat(resolved.weights > 0, np.diff(resolved.first_group))
        self._initialize(np.where(drawn, resolved.selection.groups.sizes, 0))

    def __call__(self, losses: Tensor, batch: Batch) -> Tensor:
        """Update the weights of the groups, and return the weighted sum of their losses.

        Args:
            losses: Loss of each sample, float `[B]`.
            batch: The batch, on the device of the losses.

        Returns:
            The loss, a scalar. With several processes, the mean over the processes is the loss of the global batch.
        """
        self._log_weights = self._log_weights.to(losses.device)
        self._adjustments = self._adjustments.to(losses.device)
        number = torch.arange(len(self._log_weights), device=losses.device)
        member = (batch.group[:, None] == number).double()  # [B, G]; a matrix product is deterministic on a GPU
        sums = torch.stack([losses.detach().double(), torch.ones_like(losses, dtype=torch.float64)]) @ member
        processes = 1
        if torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            reduce(sums, torch.distributed.ReduceOp.SUM)
        total, count = sums
        gain = self.step * (total / count.clamp(min=1) + self._adjustments)
        self._log_weights = torch.log_softmax(self._log_weights + torch.where(count > 0, gain, 0.0), dim=0)
        share = member @ (self._log_weights.exp() / count.clamp(min=1))
        return processes * (losses * share.to(losses.dtype)).sum()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the logarithms of the weights."""
        return {"log_weights": self._log_weights.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the weights.

        Args:
            state: A result of `state_dict`.

        Raises:
            ValueError: If the state has another number of groups.
        """
        saved = state["log_weights"]
        if saved.shape != self._log_weights.shape:
            raise ValueError(f"the state has {len(saved)} group weights, the groups are {len(self._log_weights)}")
        self._log_weights = saved.to(self._log_weights.device, torch.float64, copy=True)

    def __repr__(self) -> str:
        return f"GroupDRO(step={self.step:g}, adjustment={self.adjustment:g})"
