"""Objectives of fine-tuning: GroupDRO against an implementation in NumPy, resume, selection of groups, errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_network import ATTRIBUTES, FEATURES, GROUPS, LABELS, network
from torch import nn

from spurmix import Batch, GroupDRO, GroupIndex, MixLoader, MixPolicy, Objective, finetune, policies


def loader(policy: MixPolicy | None = None, groups: GroupIndex = GROUPS, **options: Any) -> MixLoader:
    arguments: dict[str, Any] = dict(batch_size=24, steps=11, seed=2, copy=True)
    return MixLoader(FEATURES, groups, policy or policies.lisa(), **arguments | options)


def linear() -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(6, 2)


def group_dro(
    batches: list[Batch], sizes: NDArray[np.int64], weight: NDArray[Any], bias: NDArray[Any], rate: float, step: float,
    adjustment: float, decay: float = 0.0,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[float]]:  # fmt: skip
    """Train a linear model with plain SGD. Return its weights and biases, the weights of the groups and the losses."""
    q = np.ones(len(sizes)) / len(sizes)
    losses = []
    for batch in batches:
        x, lam = batch.input.numpy().astype(np.float64), batch.lam.numpy().astype(np.float64)
        target = lam[:, None] * np.eye(2)[batch.label] + (1 - lam[:, None]) * np.eye(2)[batch.partner_label]
        logits = x @ weight.T + bias
        probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss = -(target * np.log(probability)).sum(axis=1)
        group = batch.group.numpy()
        error = np.zeros_like(logits)
        mean = np.zeros(len(sizes))
        for g in range(len(sizes)):
            if (group == g).any():
                mean[g] = loss[group == g].mean()
                q[g] *= np.exp(step * (mean[g] + adjustment / np.sqrt(sizes[g])))
        q /= q.sum()
        for g in range(len(sizes)):
            if (group == g).any():
                error[group == g] = q[g] / (group == g).sum() * (probability - target)[group == g]
        weight = weight - rate * (error.T @ x + decay * weight)
        bias = bias - rate * error.sum(axis=0)
        losses.append(float(q @ mean))
    return weight, bias, q, losses


@pytest.mark.parametrize("policy", [policies.lisa(), policies.group_balanced(), policies.erm(), policies.mixup()])
@pytest.mark.parametrize(("step", "adjustment"), [(0.01, 0.0), (0.5, 3.0)])
def test_group_dro_agrees_with_numpy(policy: MixPolicy, step: float, adjustment: float) -> None:
    rare = np.flatnonzero((LABELS == 1) & (ATTRIBUTES == 1))[3:]  # few enough to be missing from some batches
    groups = GroupIndex(LABELS, np.where(np.isin(np.arange(120), rare), 0, ATTRIBUTES))
    data, model = loader(policy, groups, steps=60), linear()
    batches = [data.batch(n) for n in range(60)]
    if policy.strata == "all":
        assert any(len(batch.group.unique()) < 4 for batch in batches)
    weight, bias = (p.detach().numpy().astype(np.float64) for p in (model.weight, model.bias))
    expected = group_dro(batches, groups.sizes, weight, bias, 0.2, step, adjustment, decay=0.01)
    objective = GroupDRO(groups, step, adjustment)
    result = finetune(
        model, data, objective=objective, optimizer="sgd", learning_rate=0.2, momentum=0, schedule="constant",
        weight_decay=0.01,
    )  # fmt: skip
    np.testing.assert_allclose(model.weight.detach(), expected[0], atol=1e-5)
    np.testing.assert_allclose(model.bias.detach(), expected[1], atol=1e-5)
    np.testing.assert_allclose(objective.weights, expected[2], rtol=1e-5)
    np.testing.assert_allclose(result.losses, expected[3], rtol=1e-4)
    assert np.ptp(expected[2]) > 0.01


def test_weights_of_equal_steps_are_the_mean_of_groups() -> None:
    data = loader(policies.group_balanced())
    models = linear(), linear()
    finetune(models[0], data, objective=GroupDRO(GROUPS, step=0), learning_rate=0.1)
    finetune(models[1], loader(policies.group_balanced()), learning_rate=0.1)
    torch.testing.assert_close(models[0].weight, models[1].weight)


@pytest.mark.parametrize("at", [4, 8])
def test_resume_is_bit_identical(tmp_path: Path, at: int) -> None:
    whole, objective = network(), GroupDRO(GROUPS, 0.3)
    options: Any = dict(save_every=4, max_checkpoints=9, accumulate=2)
    finetune(whole, loader(), output=tmp_path, objective=objective, **options)
    for path in (tmp_path / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > at:
            shutil.rmtree(path)
    resumed, after = network(), GroupDRO(GROUPS, 0.3)
    torch.manual_seed(99)
    finetune(resumed, loader(), output=tmp_path, resume=True, objective=after, **options)
    assert torch.equal(objective.weights, after.weights)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_starts_with_equal_weights_again() -> None:
    objective = GroupDRO(GROUPS, 1.0)
    finetune(linear(), loader(), objective=objective)
    first = objective.weights
    finetune(linear(), loader(), objective=objective)
    assert torch.equal(objective.weights, first)


def test_checkpoint_of_another_objective_is_an_error(tmp_path: Path) -> None:
    finetune(network(), loader(), output=tmp_path / "dro", objective=GroupDRO(GROUPS, 0.3))
    for objective in (None, GroupDRO(GROUPS, 0.2)):
        with pytest.raises(
            ValueError, match=r"different: objective \('GroupDRO\(step=0.3, adjustment=0\)' in the checkp"
        ):
            finetune(network(), loader(), output=tmp_path / "dro", resume=True, objective=objective)
    finetune(network(), loader(), output=tmp_path / "erm")
    with pytest.raises(ValueError, match=r"different: objective \(None in the checkpoint"):
        finetune(network(), loader(), output=tmp_path / "erm", resume=True, objective=GroupDRO(GROUPS))


def test_groups_that_are_not_drawn_have_no_weight() -> None:
    attributes = np.where(np.arange(120) % 3 == 0, -1, ATTRIBUTES)
    groups = GroupIndex(LABELS, attributes)
    objective = GroupDRO(groups)
    assert objective.weights.tolist() == pytest.approx([1 / 6] * 6)
    objective.start(loader(policies.group_balanced(), groups))
    assert objective.weights.tolist() == pytest.approx([0, 1 / 4, 1 / 4, 0, 1 / 4, 1 / 4])
    objective.start(loader(policies.mixpro(np.arange(30) * 4), groups))  # targets are groups of weight 0
    assert objective.weights.tolist() == pytest.approx([1 / 6] * 6 + [0, 0])


def test_large_losses_do_not_overflow() -> None:
    objective, data = GroupDRO(GROUPS, 1.0), loader(policies.group_balanced())
    for n in range(3):
        batch = data.batch(n)
        loss = objective(1e6 * (1 + batch.group.float()), batch)
    assert objective.weights.tolist() == [0, 0, 0, 1] and loss == pytest.approx(4e6)


class Largest(Objective):
    """The mean of the largest losses."""

    def __call__(self, losses: torch.Tensor, batch: Batch) -> torch.Tensor:
        return losses.topk(8).values.mean()


def test_objectives_of_users(tmp_path: Path) -> None:
    largest = finetune(linear(), loader(), objective=Largest(), output=tmp_path).losses
    mean, default = finetune(linear(), loader(), objective=Objective()), finetune(linear(), loader())
    assert largest[0] > mean.losses[0] == pytest.approx(default.losses[0], rel=1e-6)
    assert finetune(linear(), loader(), objective=Largest(), output=tmp_path, resume=True).losses == largest


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision(precision: str) -> None:
    objective = GroupDRO(GROUPS, 0.1)
    result = finetune(network(), loader(steps=40), objective=objective, learning_rate=0.05, mixed_precision=precision)
    assert result.losses[-1] < result.losses[0]
    assert objective.weights.sum().item() == pytest.approx(1)


def test_bad_arguments() -> None:
    other = GroupIndex(LABELS)
    for arguments, error, text in (
        ((GROUPS, -0.1), ValueError, "step must be 0 or more, got -0.1"),
        ((GROUPS, float("nan")), ValueError, "step must be 0 or more"),
        ((GROUPS, 0.1, -1.0), ValueError, "adjustment must be 0 or more, got -1"),
        ((LABELS,), TypeError, "groups must be a GroupIndex"),
    ):
        with pytest.raises(error, match=text):
            GroupDRO(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups of GroupDRO differ from the groups of the loader"):
        finetune(linear(), loader(), objective=GroupDRO(other))
    with pytest.raises(TypeError, match="objective must be an Objective or None, got str"):
        finetune(linear(), loader(), objective="group_dro")  # type: ignore[arg-type]
