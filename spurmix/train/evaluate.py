"""Per-group evaluation of a model on a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spurmix.core.groups import GroupIndex
from spurmix.data.sources import Source, as_source
from spurmix.data.text import TokenSource
from spurmix.ops.flags import check
from spurmix.train.metrics import Cells, Evaluation, evaluate_logits
from spurmix.train.models import device_of, logits_of
from spurmix.train.progress import bar
from spurmix.train.text import apply


def predict(
    model: nn.Module, source: Any, *, batch_size: int = 256, device: torch.device | str | None = None
) -> Tensor:
    """Logits of every example of `source`, float32 `[N, classes]` on the CPU; the model's mode is left as it was.

    Texts go through in order of length, so that little of a batch is padding.
    """
    return over_batches(model, source, lambda x: logits_of(apply(model, x)), batch_size=batch_size, device=device)


def over_batches(
    model: nn.Module,
    source: Any,
    step: Callable[[Any], Tensor],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool | None = False,
) -> Tensor:
    """Float32 `[N, ...]` on the CPU: what `step` makes of every batch of unmixed inputs, without gradients and with the
    model in evaluation mode; progress: show a bar, None: on a terminal."""
    source = as_source(source)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if isinstance(source, TokenSource):
        source.check_model(model)
    target = torch.device(device) if device is not None else device_of(model)
    training = {module: module.training for module in model.modules()}
    model.eval()
    batches = reading_order(source).split(batch_size)
    result: Tensor | None = None
    try:
        with torch.inference_mode():
            for index in bar(batches, "reading", total=len(batches), size=batch_size, shown=progress):
                part = step(source.gather(index).to(target)).float().cpu()
                if result is None:
                    with torch.inference_mode(False):  # a tensor like any other
                        result = torch.empty((len(source), *part.shape[1:]))
                result[index] = part
        check(target)
    finally:
        for module, mode in training.items():
            module.training = mode
    assert result is not None  # no source is empty
    return result


def reading_order(source: Source) -> Tensor:
    """Example numbers in the order to read them: texts by length."""
    if isinstance(source, TokenSource):
        return torch.from_numpy(np.argsort(source.lengths, kind="stable"))
    return torch.arange(len(source))


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
