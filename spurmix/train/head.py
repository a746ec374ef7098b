"""Retraining the last layer on features of a frozen encoder: seconds where fine-tuning takes hours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import FeatureSource
from spurmix.train.evaluate import over_batches
from spurmix.train.finetune import TrainResult, finetune
from spurmix.train.models import head_layer
from spurmix.train.text import apply


def extract_features(
    model: nn.Module,
    source: Any,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Tensor:
    """What the last linear layer of the head takes, for every example: float32 `[N, D]` on the CPU.

    Args:
        model, source, batch_size, device: as for `evaluate`; the encoder is frozen and in evaluation mode.
        progress: show a bar; default: on a terminal.

    Raises:
        ValueError: for a model without a head, or one whose last layer is not applied to one feature an example.
    """
    layer = head_layer(checks.instance(model, "model", nn.Module))
    taken: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[0]))

    def step(inputs: Any) -> Tensor:
        taken.clear()
        apply(model, inputs)
        if len(taken) != 1 or taken[0].dim() != 2:
            shapes = ", ".join(str(list(t.shape)) for t in taken)
            raise ValueError(f"the head's last layer must take one feature an example, it took {shapes or 'nothing'}")
        return taken[0]

    try:
        return over_batches(model, source, step, batch_size=batch_size, device=device, progress=progress)
    finally:
        hook.remove()


def retrain_head(
    model: nn.Module,
    source: Any,
    groups: GroupIndex,
    policy: MixPolicy,
    *,
    features: Tensor | None = None,
    batch_size: int = 256,
    seed: int = 0,
    steps: int | None = None,
    epochs: float | None = None,
    progress: bool | None = None,
    **options: Any,
) -> TrainResult:
    """Train the last linear layer of the head of `model`, in place, on mixed features; the rest stays as it is.

    Args:
        source, groups: the training data.
        features: what `extract_features(model, source)` gave; default: it is called.
        batch_size, seed, steps, epochs: as for `MixLoader`. options: as for `finetune`.

    Raises:
        TypeError, ValueError: as of `extract_features`, `MixLoader` and `finetune`.
    """
    layer = head_layer(checks.instance(model, "model", nn.Module))
    if features is None:
        features = extract_features(model, source, progress=progress)
    checks.instance(features, "features", Tensor)
    if features.dim() != 2 or features.shape[1] != layer.in_features:
        raise ValueError(f"features must have shape [N, {layer.in_features}], got {list(features.shape)}")
    device = layer.weight.device
    loader = MixLoader(
        FeatureSource(features), groups, policy, batch_size, seed=seed, steps=steps, epochs=epochs, device=device
    )
    return finetune(layer, loader, progress=progress, **options)
