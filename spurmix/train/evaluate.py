"""Per-group evaluation of a model on a source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spurmix.core.groups import GroupIndex
from spurmix.data.sources import as_source
from spurmix.train.metrics import Cells, Evaluation, evaluate_logits
from spurmix.train.models import device_of, logits_of


def predict(
    model: nn.Module, source: Any, *, batch_size: int = 256, device: torch.device | str | None = None
) -> torch.Tensor:
    """Logits of every example of `source`, float32 `[N, classes]` on the CPU; the model's mode is left as it was."""
    source = as_source(source)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    target = torch.device(device) if device is not None else device_of(model)
    training = {module: module.training for module in model.modules()}
    model.eval()
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, len(source), batch_size):
                index = torch.arange(start, min(start + batch_size, len(source)))
                parts.append(logits_of(model(source.gather(index).to(target))).float().cpu())
    finally:
        for module, mode in training.items():
            module.training = mode
    return torch.cat(parts)


def evaluate(
    model: nn.Module,
    source: Any,
    groups: GroupIndex,
    *,
    batch_size: int = 256,
    train_groups: GroupIndex | None = None,
    membership: Any = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Accuracy of each group with 95% Wilson intervals, worst group, average and adjusted average.

    Args:
        model: maps the source's inputs to logits (tensor, `.logits` or tuple).
        source: images or features, as for `MixLoader`.
        groups: the groups of the same examples.
        train_groups: groups whose sizes weigh the adjusted average; default: the evaluated groups' own.
        membership: bool `[N, K]`, cells that may overlap, such as the 16 of CivilComments (identity mentioned x label).
            The worst group is then the worst cell; the adjusted average remains one over `groups`. cell_names: K names.
        min_group_size: groups (cells) of fewer examples are reported, but do not decide the worst group.

    Raises:
        TypeError: for a membership matrix that is not boolean.
        ValueError: where lengths differ, a label has no logit, logits are not finite, or no group is large enough.
    """
    source = as_source(source)
    if len(source) != groups.num_examples:
        raise ValueError(f"source has {len(source)} examples, the groups have {groups.num_examples}")
    if membership is not None:  # before the model works for minutes
        Cells.of(membership, cell_names, groups.num_examples)
    logits = predict(model, source, batch_size=batch_size, device=device)
    return evaluate_logits(
        logits, groups, train_groups=train_groups, membership=membership, cell_names=cell_names,
        min_group_size=min_group_size,
    )  # fmt: skip
