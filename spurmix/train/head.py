"""Retrains the last layer on features of a frozen encoder, in seconds instead of hours."""

from __future__ import annotations

from typing import Unpack

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.core.policy import MixPolicy
from spurmix.data.loader.mix_loader import MixLoader
from spurmix.data.sources.arrays import FeatureSource, Source
from spurmix.train.evaluate import Inputs, over_batches
from spurmix.train.finetune import FinetuneArguments, TrainResult, finetune
from spurmix.train.models import head_layer
from spurmix.train.text import apply


def extract_features(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Compute the input of the last linear layer of the head for every example, with the model in evaluation mode.

    Args:
        model: Model with a head, see `models.head_of`.
        source: Images, texts or features of N examples, as for `MixLoader`.
        batch_size: Number of examples per batch.
        device: Device of the inputs. Default: the device of the model.
        progress: Whether to show a progress bar. Default: only on a terminal.

    Returns:
        Features, float32 `[N, D]` on the CPU.

    Raises:
        ValueError: If the model has no head, or the input of its last layer is not one vector per example.

    Example:
        >>> features = extract_features(model, images)
        >>> retrain_head(model, images, groups, policies.lisa(), features=features, epochs=10)
    """
    layer = head_layer(checks.instance(model, "model", nn.Module))
    captured: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: captured.append(arguments[0]))

    def step(inputs: Inputs) -> Tensor:
        captured.clear()
        apply(model, inputs)
        if len(captured) != 1 or captured[0].dim() != 2:
            shapes = ", ".join(str(list(t.shape)) for t in captured)
            raise ValueError(f"the input of the last layer must be features [B, D], got {shapes or 'no input'}")
        return captured[0]

    try:
        return over_batches(model, source, step, batch_size=batch_size, device=device, progress=progress)
    finally:
        hook.remove()


def retrain_head(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    groups: GroupIndex,
    policy: MixPolicy,
    *,
    features: Tensor | None = None,
    batch_size: int = 256,
    seed: int = 0,
    steps: int | None = None,
    epochs: float | None = None,
    progress: bool | None = None,
    **options: Unpack[FinetuneArguments],
) -> TrainResult:
    """Train the last linear layer of the head in place, on mixed features. Other parameters do not change.

    Args:
        model: Model with a head, see `models.head_of`.
        source: Training examples, as for `MixLoader`. Not read if `features` is given.
        groups: Groups of the training examples.
        policy: Policy that draws and mixes features.
        features: Features `[N, D]`, the result of `extract_features(model, source)`. Default: they are computed.
        batch_size: Number of examples per batch.
        seed: Random seed of sampling.
        steps: Number of batches. Give either `steps` or `epochs`.
        epochs: Number of passes over the examples.
        progress: Whether to show progress bars. Default: only on a terminal.
        **options: Further arguments of `finetune`.

    Returns:
        The number of optimizer steps, the loss of every batch and the speed.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid. See also `extract_features`, `MixLoader` and `finetune`.

    Example:
        >>> retrain_head(model, images, groups, policies.balance_attributes(), epochs=10)
        >>> evaluate(model, test_images, test_groups).worst_group
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
