"""Per-group evaluation of a model on a source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from spurmix.core import checks
from spurmix.core.groups import GroupIndex
from spurmix.core.progress import bar
from spurmix.data.batch import Tokens
from spurmix.data.sources.arrays import Source, as_source
from spurmix.data.sources.tokens import TokenSource
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops import functional, validate
from spurmix.ops.device_errors import check
from spurmix.train.evaluation import Evaluation
from spurmix.train.metrics import Cells, Counts, EvaluationOptions, LabelPairs, check_labels, check_options, summarize
from spurmix.train.models import device_of, logits_of, modes_kept
from spurmix.train.process import lost_process_named
from spurmix.train.score_counter import ScoreCounter
from spurmix.train.scores import ScoreCounts, ScoreLayout, attribute_blocks
from spurmix.train.text import apply

Inputs = Tensor | Tokens
"""Unmixed inputs of a batch."""


def evaluate(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    groups: GroupIndex,
    *,
    batch_size: int = 256,
    train_groups: GroupIndex | None = None,
    membership: ArrayLike | Tensor | None = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
    device: torch.device | str | None = None,
    sharded: bool = False,
) -> Evaluation:
    """Measure the accuracy of a model on each group, with 95% Wilson intervals.

    Predictions are counted on the device, batch by batch, so that memory does not grow with N times C. `predict` returns
    the logits.

    Args:
        model: Model that maps the inputs of the source to logits `[B, C]`. It returns a tensor, an object with
            `.logits`, or a tuple whose first element is the logits.
        source: Images, texts or features of N examples, as for `MixLoader`.
        groups: Groups of the same examples.
        batch_size: Number of examples per batch.
        train_groups: Groups whose sizes weight the adjusted average, usually those of the training examples. They are
            joined to `groups` by label and all attributes: by name where both have names, by number otherwise. Custom
            groups must have a single label and combination of attributes each. Default: `groups`.
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
        ValueError: If lengths differ, a label has no logit, logits are not finite, no group is large enough, or
            `train_groups` cannot be joined to `groups`.

    Example:
        >>> result = evaluate(model, features, groups)
        >>> result.worst_group
    """
    source = as_source(source)
    checks.instance(groups, "groups", GroupIndex)
    if len(source) != groups.num_examples:
        raise ValueError(f"source has {len(source)} examples, the groups have {groups.num_examples}")
    options = check_options(
        groups, train_groups=train_groups, membership=membership, cell_names=cell_names, min_group_size=min_group_size
    )
    return evaluate_examples(model, source, groups, options, batch_size=batch_size, device=device, sharded=sharded)


def evaluate_examples(
    model: nn.Module,
    source: Source,
    groups: GroupIndex,
    options: EvaluationOptions,
    *,
    batch_size: int,
    device: torch.device | str | None,
    sharded: bool,
    predicted: Tensor | None = None,
) -> Evaluation:
    """Evaluate a model with checked options, and optionally return the predicted class of each example.

    Args:
        model: See `evaluate`.
        source: See `evaluate`.
        groups: See `evaluate`.
        options: Checked options.
        batch_size: See `evaluate`.
        device: See `evaluate`.
        sharded: See `evaluate`.
        predicted: Zeros, int32 `[N]`, on the device of the model. The predicted classes are written into it.

    Returns:
        The evaluation.
    """
    pairs = LabelPairs.of(groups)
    counter = _Counter(groups, pairs, options.cells, predicted)

    def count(inputs: Inputs, index: Tensor) -> None:
        counter.add(logits_of(apply(model, inputs)), index)

    for_each_batch(model, source, count, batch_size=batch_size, device=device, sharded=sharded)
    return summarize(counter.result(sharded), groups, pairs, options)


_VALUES_PER_COUNT = 1 << 18
"""Logits of batches are collected up to this number, because counting takes about twenty small operations."""


class _Counter:
    """Counts predictions on the device of the logits, without waiting for it."""

    def __init__(
        self, groups: GroupIndex, pairs: LabelPairs, cells: Cells | None, predicted: Tensor | None = None
    ) -> None:
        self._predicted = predicted
        self._groups, self._pairs, self._cells = groups, torch.from_numpy(pairs.pairs), cells
        self._row = torch.from_numpy(pairs.row)
        self._attribute = torch.from_numpy(attribute_blocks(groups))
        self._ready = False
        self._logits: list[Tensor] = []
        self._index: list[Tensor] = []
        self._collected = 0

    def _allocate(self, classes: int, device: torch.device) -> None:
        """Allocate one buffer for all counts, so that processes sum them in one call."""
        groups, rows = self._groups.num_groups, len(self._pairs)
        cells = self._cells.members.shape[1] if self._cells is not None else 0
        self._layout = ScoreLayout.of(self._groups, cells, classes)
        sizes = [2 * groups, 2 * cells, rows * classes, *self._layout.sizes]
        self._counts = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        of_groups, of_cells, self._predictions, *self._of_scores = self._counts.split(sizes)
        self._scores = ScoreCounter(self._layout, tuple(self._of_scores))
        self._of_groups, self._of_cells = of_groups.view(groups, 2), of_cells.view(cells, 2)
        self._group_of_row, self._label_of_row = self._pairs.to(device).T.contiguous()
        self._first_invalid = torch.tensor(self._groups.num_examples, device=device)
        self._ready = True

    def add(self, logits: Tensor, index: Tensor) -> None:
        """Count the predictions of a batch.

        Args:
            logits: Logits `[B, C]`.
            index: Example numbers, int64 `[B]`. If empty, nothing is counted.

        Raises:
            ValueError: If the shape is wrong, or a label has no logit.
        """
        if logits.ndim != 2:
            raise ValueError(
                f"logits must have shape [{self._groups.num_examples}, C], "
                f"got {[self._groups.num_examples, *logits.shape[1:]]}"
            )
        if not self._ready:
            check_labels(self._groups, logits.shape[1])
            self._allocate(logits.shape[1], logits.device)
        self._logits.append(logits[: len(index)])
        self._index.append(index)
        self._collected += self._logits[-1].numel()
        if self._collected >= _VALUES_PER_COUNT:
            self._count()

    def _count(self) -> None:
        """Count the predictions of the collected batches."""
        if not self._logits:
            return
        logits, index = torch.cat(self._logits).float(), torch.cat(self._index)
        self._logits, self._index, self._collected = [], [], 0
        if not len(index):
            return
        classes, device = logits.shape[1], logits.device
        row = self._row.index_select(0, index).to(device)
        label, group = self._label_of_row.index_select(0, row), self._group_of_row.index_select(0, row)
        functional.group_counts(logits, label, group, out=self._of_groups)
        members = None
        if self._cells is not None:
            members = torch.from_numpy(self._cells.members[index.numpy()]).to(device)
            functional.group_counts(logits, label, members, out=self._of_cells)
        predicted = logits.argmax(dim=1)
        if self._predicted is not None:
            self._predicted[index.to(self._predicted.device)] = predicted.int()
        entry = row * classes + predicted
        self._predictions.index_add_(0, entry, torch.ones_like(entry))
        attribute = self._attribute.index_select(0, index).to(device)
        self._scores.add(logits, predicted, label, group, attribute, members)
        finite = (logits.amin(dim=1) > -math.inf) & (logits.amax(dim=1) < math.inf)  # False for NaN
        invalid = torch.where(finite, self._groups.num_examples, index.to(device))
        self._first_invalid = torch.minimum(self._first_invalid, invalid.min())

    def result(self, sharded: bool) -> Counts:
        """Return the counts of all batches.

        Args:
            sharded: Whether to add the counts of the other processes.

        Returns:
            The counts.

        Raises:
            ValueError: If logits are not finite.
        """
        with torch.inference_mode():
            self._count()
        if sharded:
            reduce(self._counts, torch.distributed.ReduceOp.SUM)
            if self._predicted is not None:
                reduce(self._predicted, torch.distributed.ReduceOp.SUM)
            reduce(self._first_invalid, torch.distributed.ReduceOp.MIN)
        first_invalid = int(self._first_invalid)
        if first_invalid < self._groups.num_examples:
            raise ValueError(f"logits of example {first_invalid} are not finite")
        predictions = self._predictions.view(len(self._pairs), -1)
        return Counts(
            groups=self._of_groups.cpu().numpy(),
            cells=self._of_cells.cpu().numpy(),
            predictions=predictions.cpu().numpy(),
            scores=ScoreCounts.of([counts.cpu().numpy() for counts in self._of_scores], self._layout),
        )


def reduce(values: Tensor, operation: torch.distributed.ReduceOp.RedOpType) -> None:
    """Reduce a tensor over all processes, in place. NCCL requires a GPU tensor."""
    on_gpu = torch.distributed.get_backend() == "nccl" and not values.is_cuda
    reduced = values.cuda() if on_gpu else values
    with lost_process_named():
        torch.distributed.all_reduce(reduced, operation)
    if on_gpu:
        values.copy_(reduced)


def predict(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    sharded: bool = False,
) -> Tensor:
    """Compute the logits of every example.

    Texts are read in order of length, so that batches have little padding. The mode of the model is restored.

    Args:
        model: See `evaluate`.
        source: See `evaluate`.
        batch_size: See `evaluate`.
        device: See `evaluate`.
        sharded: See `evaluate`.

    Returns:
        Logits, float32 `[N, C]` on the CPU.
    """

    def step(inputs: Inputs) -> Tensor:
        return logits_of(apply(model, inputs))

    return over_batches(model, source, step, batch_size=batch_size, device=device, sharded=sharded)


def over_batches(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    step: Callable[[Inputs], Tensor],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool | None = False,
    sharded: bool = False,
) -> Tensor:
    """Apply a function to every batch of unmixed inputs, and collect the results in the order of the examples.

    Args:
        model: See `for_each_batch`.
        source: See `for_each_batch`.
        step: Function that maps the inputs of a batch to a tensor `[B, ...]`.
        batch_size: See `for_each_batch`.
        device: See `for_each_batch`.
        progress: See `for_each_batch`.
        sharded: See `for_each_batch`.

    Returns:
        The results, float32 `[N, ...]` on the CPU.
    """
    source = as_source(source)
    result = torch.empty(0)

    def collect(inputs: Inputs, index: Tensor) -> None:
        nonlocal result
        part = step(inputs).float().cpu()
        if not len(result):
            with torch.inference_mode(False):  # so that autograd can use the result
                result = torch.zeros((len(source), *part.shape[1:]))
        result[index] = part[: len(index)]

    for_each_batch(model, source, collect, batch_size=batch_size, device=device, progress=progress, sharded=sharded)
    if sharded:
        reduce(result, torch.distributed.ReduceOp.SUM)
    return result


def for_each_batch(
    model: nn.Module,
    source: Source | ArrayLike | Tensor,
    step: Callable[[Inputs, Tensor], None],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool | None = False,
    sharded: bool = False,
) -> None:
    """Call a function with every batch of unmixed inputs, without gradients, the model in evaluation mode.

    Args:
        model: Model that `step` applies.
        source: Images, texts or features, as for `MixLoader`.
        step: Function of the inputs and the example numbers, int64 `[B]` on the CPU. A process without a batch gets
            the first batch with empty example numbers, so that it knows the shape of the outputs.
        batch_size: Number of examples per batch.
        device: Device of the inputs. Default: the device of the model.
        progress: Whether to show a progress bar. None: only on a terminal.
        sharded: If True, each process of torch.distributed reads its share of the examples.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, or there is no process group.
    """
    checks.instance(model, "model", nn.Module)
    source = as_source(source)
    batch_size = checks.integer(batch_size, "batch_size", 1)
    checks.flag(sharded, "sharded")
    if progress is not None:
        checks.flag(progress, "progress")
    if isinstance(source, TokenSource):
        source.check_model(model)
    target = validate.device(device) if device is not None else device_of(model)
    batches = list(reading_order(source).split(batch_size))
    if sharded:
        if not torch.distributed.is_initialized():
            raise ValueError("sharded requires a process group; start with torchrun or accelerate launch")
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        selected = batches[rank::world_size]
    else:
        selected = batches
    indices = selected or [batches[0][:0]]
    with modes_kept(model):
        model.eval()
        with torch.inference_mode():
            read = _read_ahead(source, selected or batches[:1])
            shown = bar(indices, "reading", total=len(indices), size=batch_size, shown=progress)
            for index, inputs in zip(shown, read, strict=True):
                step(inputs.to(target), index)
        check(target)


def _read_ahead(source: Source, batches: Sequence[Tensor]) -> Iterator[Inputs]:
    """Read the unmixed inputs of each batch. For images in a file, read the next batch while one is used."""
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


def reading_order(source: Source) -> Tensor:
    """Return the example numbers in reading order, int64 `[N]`: texts by length, others ascending."""
    if isinstance(source, TokenSource):
        return torch.from_numpy(source.lengths).argsort(stable=True)
    return torch.arange(len(source))
