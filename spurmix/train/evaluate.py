"""Per-group evaluation of a model on a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.core.progress import bar
from spurmix.data.sources.arrays import Source, as_source
from spurmix.data.sources.tokens import TokenSource
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops import validate
from spurmix.ops.flags import check
from spurmix.train.metrics import Evaluation, check_options, evaluate_predictions
from spurmix.train.models import device_of, logits_of, modes_kept
from spurmix.train.text import apply


def predict(
    model: nn.Module,
    source: Any,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    sharded: bool = False,
) -> Tensor:
    """Logits of every example of `source`, float32 `[N, classes]` on the CPU; the model's mode is left as it was.

    Texts go through in order of length, so that little of a batch is padding. sharded: see `evaluate`.
    """

    def step(inputs: Any) -> Tensor:
        return logits_of(apply(model, inputs))

    return over_batches(model, source, step, batch_size=batch_size, device=device, sharded=sharded)


def over_batches(
    model: nn.Module,
    source: Any,
    step: Callable[[Any], Tensor],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool | None = False,
    sharded: bool = False,
) -> Tensor:
    """Float32 `[N, ...]` on the CPU: what `step` makes of every batch of unmixed inputs, without gradients and with the
    model in evaluation mode; progress: show a bar, None: on a terminal; sharded: every process reads its share."""
    checks.instance(model, "model", nn.Module)
    source = as_source(source)
    batch_size = checks.integer(batch_size, "batch_size", 1)
    checks.flag(sharded, "sharded")
    if progress is not None:
        checks.flag(progress, "progress")
    if isinstance(source, TokenSource):
        source.check_model(model)
    target = validate.device(device) if device is not None else device_of(model)
    batches = reading_order(source).split(batch_size)
    if sharded:
        if not torch.distributed.is_initialized():
            raise ValueError("sharded: there is no process group; start with torchrun or accelerate launch")
        world = torch.distributed.get_world_size()
        # Each process has a batch at least, so that all know what `step` makes; the first ones may be read twice.
        mine = range(torch.distributed.get_rank(), max(len(batches), world), world)
        own = [batches[k] if k < len(batches) else batches[0] for k in mine]
        first_use = [k < len(batches) for k in mine]
    else:
        own, first_use = list(batches), [True] * len(batches)
    result: Tensor | None = None
    with modes_kept(model):
        model.eval()
        with torch.inference_mode():
            shown = bar(own, "reading", total=len(own), size=batch_size, shown=progress)
            for used, index, inputs in zip(first_use, shown, _inputs(source, own), strict=True):
                part = step(inputs.to(target)).float().cpu()
                if result is None:
                    with torch.inference_mode(False):  # a tensor like any other
                        result = torch.zeros((len(source), *part.shape[1:]))
                if used:
                    result[index] = part
        check(target)
    assert result is not None  # no source is empty
    return _summed(result, target) if sharded else result


def _inputs(source: Source, batches: Sequence[Tensor]) -> Iterator[Any]:
    """Unmixed inputs of every batch; of images read from a file, the next batch is read while one is used."""
    if not isinstance(source, WindowedImages):
        yield from map(source.gather, batches)
        return
    with ThreadPoolExecutor(1, "spurmix-gather") as reader:
        ahead = reader.submit(source.gather, batches[0])
        for index in batches[1:]:
            inputs = ahead.result()
            ahead = reader.submit(source.gather, index)
            yield inputs
        yield ahead.result()


def _summed(result: Tensor, device: torch.device) -> Tensor:
    """The sum over all processes, each of which filled its rows."""
    there = result.to(device) if torch.distributed.get_backend() == "nccl" else result
    torch.distributed.all_reduce(there)
    return there.cpu()


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
    sharded: bool = False,
) -> Evaluation:
    """Measure the accuracy of a model on each group, with 95% Wilson intervals.

    Args:
        model: Model that maps the inputs of the source to logits (a tensor, an object with `.logits`, or a tuple).
        source: Images, texts or features, as for `MixLoader`.
        groups: Groups of the same examples.
        batch_size: Number of examples per batch.
        train_groups: Groups whose sizes weight the adjusted average. Default: `groups`.
        membership: Boolean matrix `[N, K]` of K cells that may overlap, such as the 16 cells of CivilComments
            (identity x label). If given, the worst group is the worst cell. The adjusted average still uses `groups`.
        cell_names: Names of the K cells.
        min_group_size: Minimum size of a group or cell that can be the worst group. Smaller ones are only reported.
        device: Device of the inputs. Default: the device of the model.
        sharded: If True, each process of torch.distributed reads its share of the examples. All processes must call
            and all get the same result.

    Returns:
        Accuracy of each group and cell, worst group, average and adjusted average.

    Raises:
        TypeError: If `membership` is not boolean.
        ValueError: If lengths differ, a label has no logit, logits are not finite, or no group is large enough.

    Example:
        >>> result = evaluate(model, features, groups)
        >>> result.worst_group
    """
    source = as_source(source)
    checks.instance(groups, "groups", GroupIndex)
    if len(source) != groups.num_examples:
        raise ValueError(f"source has {len(source)} examples, the groups have {groups.num_examples}")
    options: Any = dict(
        train_groups=train_groups, membership=membership, cell_names=cell_names, min_group_size=min_group_size
    )
    check_options(groups, **options)
    classes = 0

    def predicted_class(inputs: Any) -> Tensor:
        nonlocal classes
        logits = logits_of(apply(model, inputs)).float()
        if logits.ndim != 2:
            shape = [groups.num_examples, *logits.shape[1:]]
            raise ValueError(f"logits must have shape [{groups.num_examples}, classes], got {shape}")
        classes = logits.shape[1]
        predicted = logits.argmax(dim=1)
        # float32 holds class numbers up to 2^24 exactly.
        return torch.where(logits.isfinite().all(dim=1), predicted, -1).float()

    # One number an example is kept, as logits of many classes may not fit in memory.
    predicted = over_batches(model, source, predicted_class, batch_size=batch_size, device=device, sharded=sharded)
    return evaluate_predictions(predicted.numpy().astype(np.int64), classes, groups, **options)
