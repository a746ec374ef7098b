"""Retrains the last layer on features of a frozen encoder, in seconds instead of hours."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, Unpack, get_args, overload

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
from spurmix.train.heads.fit import fit_head
from spurmix.train.heads.options import HeadMethod, HeadOptions
from spurmix.train.heads.result import HeadFit
from spurmix.train.models import head_layer
from spurmix.train.text import apply

Validation: TypeAlias = tuple[Source | ArrayLike | Tensor, GroupIndex]
"""Source and groups of held-out examples."""


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


@overload
def retrain_head(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    groups: GroupIndex,
    policy: MixPolicy,
    *,
    method: Literal["sgd"] = "sgd",
    features: Tensor | None = None,
    batch_size: int = 256,
    seed: int = 0,
    steps: int | None = None,
    epochs: float | None = None,
    progress: bool | None = None,
    **options: Unpack[FinetuneArguments],
) -> TrainResult: ...
@overload
def retrain_head(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    groups: GroupIndex,
    policy: None = None,
    *,
    method: HeadMethod,
    features: Tensor | None = None,
    validation: Validation | None = None,
    head_options: HeadOptions | None = None,
    progress: bool | None = None,
) -> HeadFit: ...
def retrain_head(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    groups: GroupIndex,
    policy: MixPolicy | None = None,
    *,
    method: HeadMethod | Literal["sgd"] = "sgd",
    features: Tensor | None = None,
    validation: Validation | None = None,
    head_options: HeadOptions | None = None,
    batch_size: int = 256,
    progress: bool | None = None,
    **options: Any,
) -> TrainResult | HeadFit:
    """Retrain the last linear layer of the head in place. Other parameters do not change.

    Args:
        model: Model with a head, see `models.head_of`.
        source: Training examples, as for `MixLoader`. Not read if `features` is given.
        groups: Groups of the training examples.
        policy: Policy that draws and mixes features. Required by method "sgd", and not used by the others.
        method: "sgd" trains on mixed features, starting from the layer's weights. "dfr", "inferred", "dispel" and
            "logistic" fit the layer by penalized logistic regression, see `fit_head`.
        features: Features `[N, D]`, the result of `extract_features(model, source)`. Default: they are computed.
        validation: Source and groups of held-out examples that choose hyperparameters, for the other methods than
            "sgd". Default: half of the attributed examples, see `fit_head`.
        head_options: Hyperparameters of the other methods than "sgd".
        batch_size: Number of examples per batch of method "sgd".
        progress: Whether to show progress bars. Default: only on a terminal.
        **options: For "sgd": `seed`, and `steps` or `epochs`, as for `MixLoader`, and further arguments of `finetune`.

    Returns:
        For "sgd" the number of optimizer steps, the loss of every batch and the speed, else the fitted head and the
        trials of the search.

    Raises:
        TypeError: If an argument has the wrong type, or belongs to another method.
        ValueError: If an argument is invalid. See also `extract_features`, `MixLoader`, `finetune` and `fit_head`.

    Example:
        >>> retrain_head(model, images, groups, policies.balance_attributes(), epochs=10)
        >>> retrain_head(model, images, groups, method="dfr")
        >>> evaluate(model, test_images, test_groups).worst_group
    """
    checks.choice(method, "method", ("sgd", *get_args(HeadMethod)))
    layer = head_layer(checks.instance(model, "model", nn.Module))
    _check_arguments(method, policy, validation, head_options, options)
    if features is None:
        features = extract_features(model, source, progress=progress)
    checks.instance(features, "features", Tensor)
    if features.dim() != 2 or features.shape[1] != layer.in_features:
        raise ValueError(f"features must have shape [N, {layer.in_features}], got {list(features.shape)}")
    if method != "sgd":
        held_out = None
        if validation is not None:
            held_out = extract_features(model, validation[0], progress=progress), validation[1]
        head = fit_head(features, groups, method, validation=held_out, options=head_options, progress=progress)
        head.copy_to(layer)
        return head
    assert policy is not None
    sampling = {name: options.pop(name) for name in ("seed", "steps", "epochs") if name in options}
    loader = MixLoader(FeatureSource(features), groups, policy, batch_size, device=layer.weight.device, **sampling)
    return finetune(layer, loader, progress=progress, **options)


def _check_arguments(
    method: str,
    policy: MixPolicy | None,
    validation: Validation | None,
    head_options: HeadOptions | None,
    options: dict[str, Any],
) -> None:
    """Check that all arguments belong to the method."""
    if method == "sgd":
        if policy is None:
            raise TypeError('method "sgd" requires a policy (see spurmix.policies)')
        foreign = [
            name for name, value in (("validation", validation), ("head_options", head_options)) if value is not None
        ]
    else:
        foreign = [*options, *(["policy"] if policy is not None else [])]
    if foreign:
        raise TypeError(f"{foreign[0]} is not an argument of method {method!r}")
