"""AFR: retrains the last layer on examples weighted by the errors of the model, without attributes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.group_join import check_name_order
from spurmix.core.groups import GroupIndex
from spurmix.core.progress import bar
from spurmix.data.sources.arrays import Source
from spurmix.train.head import Validation, extract_features
from spurmix.train.heads.fit import checked_features
from spurmix.train.heads.result import HeadFit, HeadTrial
from spurmix.train.heads.rows import Standardization
from spurmix.train.heads.validation import HeldOut
from spurmix.train.models import head_layer


def retrain_afr(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    groups: GroupIndex,
    *,
    gamma: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0),
    l2: Sequence[float] = (0.01, 0.1, 1.0),
    features: Tensor | None = None,
    validation: Validation | None = None,
    progress: bool | None = None,
) -> HeadFit:
    """Retrain the last linear layer of the head in place by automatic feature reweighting (AFR).

    Example i has a weight proportional to exp(-gamma * p_i) / n_y. p_i is the probability that the model gives to its
    class y, and n_y is the number of examples of the class. The weights sum to 1. The layer minimizes the weighted cross
    entropy plus l2 * |theta - theta_0|^2, where theta_0 are its weights and biases before. If there are several settings,
    the one with the best worst group of the validation examples is chosen.

    The paper holds out 20 % of the training examples from the training of the model, retrains on them, and stops
    gradient descent early. Here, the minimum is computed exactly (L-BFGS), so `l2` must be positive.

    Args:
        model: Model trained by ERM, with a head, see `models.head_of`.
        source: Examples that the model was not trained on, as for `MixLoader`. Not read if `features` is given.
        groups: Groups of the examples. Only the labels are used.
        gamma: Strengths of the weights to try, 0 or more. 0 only balances the classes.
        l2: Strengths of the penalty to try, positive.
        features: Features `[N, D]`, the result of `extract_features(model, source)`. Default: they are computed.
        validation: Source and groups of held-out examples with known attributes, which choose `gamma` and `l2`. Required
            if there are several settings.
        progress: Whether to show progress bars. Default: only on a terminal.

    Returns:
        The fitted head, and the trials of the search.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, features are not finite, or the fit does not converge.

    Example:
        >>> head = retrain_afr(model, held_out, groups, validation=(val_images, val_groups))
        >>> print(head)

    References:
        Qiu et al., Simple and Fast Group Robustness by Automatic Feature Reweighting, ICML 2023, arXiv 2306.11074.
    """
    checks.instance(groups, "groups", GroupIndex)
    settings = [
        (checks.number(g, "gamma", 0), checks.number(penalty, "l2", positive=True))
        for g, penalty in itertools.product(gamma, l2)
    ]
    if not settings:
        raise ValueError("gamma and l2 must have one value or more, got none")
    if len(settings) > 1 and validation is None:
        raise ValueError(
            "validation is required to choose among several values of gamma and l2; give it, or one of each"
        )
    layer = head_layer(checks.instance(model, "model", nn.Module))
    if layer.out_features < groups.num_classes:
        raise ValueError(f"the head has {layer.out_features} outputs, but the groups have {groups.num_classes} classes")
    if features is None:
        features = extract_features(model, source, progress=progress)
    x = checked_features(features, groups, "features").astype(np.float64)
    if x.shape[1] != layer.in_features:
        raise ValueError(f"features must have {layer.in_features} columns like the head, got {x.shape[1]}")
    labels = groups.labels.astype(np.int64)
    bias = layer.bias if layer.bias is not None else torch.zeros(layer.out_features)
    initial = torch.cat([layer.weight, bias[:, None]], dim=1).detach().double().cpu().numpy()
    fitted = [
        _minimize(x, labels, afr_weights(x, labels, initial, g), initial, penalty)
        for g, penalty in bar(settings, "afr", total=len(settings), size=1, unit="fits", shown=progress)
    ]
    trials: list[HeadTrial] = []
    if validation is not None:
        values = extract_features(model, validation[0], progress=progress)
        held_out = checked_features(values, validation[1], "validation features")
        check_name_order(groups.class_names or (), validation[1], "validation")
        if validation[1].num_classes > layer.out_features:
            raise ValueError(f"validation has class {validation[1].num_classes - 1}, but the head has no output for it")
        identity = Standardization(np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32))
        found = HeldOut.of(held_out, validation[1], validation[1]).accuracies(identity, np.array(fitted))
        for (g, penalty), accuracy in zip(settings, found, strict=True):
            setting = {"gamma": g, "l2": penalty}
            trials.append(HeadTrial(setting, float(accuracy.min()), float(accuracy.mean()), 1.0))
    best = max(range(len(fitted)), key=lambda k: (trials[k].worst_group, trials[k].average)) if trials else 0
    weight = torch.from_numpy(fitted[best].astype(np.float32))
    head = HeadFit(
        "afr", weight[:, :-1].contiguous(), weight[:, -1].contiguous(), trials[best] if trials else None, tuple(trials)
    )
    head.copy_to(layer)
    return head


def afr_weights(features: FloatArray, labels: Int64Array, head: FloatArray, gamma: float) -> FloatArray:
    """Compute the weights of examples by the predictions of a head.

    Args:
        features: float64 `[N, D]`.
        labels: Classes, `[N]`.
        head: Weights and biases, `[C, D + 1]`.
        gamma: Strength of the weights.

    Returns:
        Weights `[N]`, which sum to 1.
    """
    logits = features @ head[:, :-1].T + head[:, -1]
    correct = softmax(logits, axis=1)[np.arange(labels.size), labels]
    weights: FloatArray = np.exp(-gamma * correct) / np.bincount(labels)[labels]
    return weights / weights.sum()


def _minimize(x: FloatArray, labels: Int64Array, weights: FloatArray, initial: FloatArray, l2: float) -> FloatArray:
    """Minimize sum(weights * cross entropy) + l2 * |theta - initial|^2."""
    target = np.zeros((labels.size, len(initial)))
    target[np.arange(labels.size), labels] = 1.0

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        theta = flat.reshape(initial.shape)
        logs = log_softmax(x @ theta[:, :-1].T + theta[:, -1], axis=1)
        residual = weights[:, None] * (np.exp(logs) - target)
        change = theta - initial
        gradient = np.concatenate([residual.T @ x, residual.sum(axis=0)[:, None]], axis=1) + 2 * l2 * change
        value = -(weights * logs[np.arange(labels.size), labels]).sum() + l2 * (change**2).sum()
        return float(value), gradient.ravel()

    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-13, "gtol": 1e-9}
    found = minimize(loss, initial.ravel(), jac=True, method="L-BFGS-B", options=options)
    if found.status == 1:  # the limit of iterations
        raise ValueError(f"the fit with l2={l2:g} does not converge ({found.message}); use a larger l2")
    solution: FloatArray = found.x.reshape(initial.shape)
    return solution
