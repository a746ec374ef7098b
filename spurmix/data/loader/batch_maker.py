"""BatchMaker: the pipeline that makes a batch. It draws samples, writes labels, and calls a strategy for the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from spurmix.data.batch import Batch
from spurmix.data.loader.sequence import Samples, SampleSequence
from spurmix.ops.backends import implementation

FusedOp = Callable[[int, Tensor | None, Batch], None]
"""op(start, counter, batch): draw, label and mix in one call, for sample number `start` plus `counter`."""


class InputWriter(Protocol):
    """Writes the input of batches from data in memory. The samples are already drawn into the batch."""

    def new_batch(self) -> Batch:
        """Allocate buffers of one batch."""
        ...

    def fused(self) -> FusedOp | None:
        """Return an op that does all the work of a batch in one call, if there is one."""
        ...

    def write(self, batch: Batch) -> None:
        """Write the input for the samples in `batch`."""
        ...


class PlannedInput(Protocol):
    """The input of a batch with samples that are drawn before buffers are chosen."""

    @property
    def samples(self) -> Samples:
        """index, partner, lam and group of each sample."""
        ...

    def buffers(self, reused: Batch | None) -> Batch:
        """Return the buffers to write: in `reused`, or fresh ones."""
        ...

    def write(self, batch: Batch) -> Batch:
        """Write the input and return the batch, which may be a part of the buffers."""
        ...


InputPlanner = Callable[[int], PlannedInput]
"""plan(step): strategy for inputs that require the samples first (texts, windows of a file, gathered images)."""


class BatchMaker:
    """Makes batch number `step` of a rank's sample sequence.

    The prefetch thread refers to the maker, so a maker must not refer to the loader.

    Args:
        sequence: The samples.
        writer: Strategy for the input.
    """

    def __init__(self, sequence: SampleSequence, writer: InputWriter | InputPlanner) -> None:
        tables = sequence.tables
        self._batch_size, self._first = sequence.batch_size, sequence.first
        self._labels, self._keeps_labels = sequence.labels, tables.keeps_labels
        self._drawn_from = tables.packed, tables.members, sequence.seed
        self._writer: InputWriter | None = None
        self._plan: InputPlanner | None = None
        self._fused: FusedOp | None = None
        if callable(writer):
            self._plan = writer
        else:
            self._writer, self._fused = writer, writer.fused()
        self._draw = implementation("draw_out", "auto", tables.packed.device)

    def __call__(self, step: int, buffers: Batch | None) -> Batch:
        """Make a batch.

        Args:
            step: Number of the batch.
            buffers: Memory to write it into. None allocates it.

        Returns:
            The batch, in `buffers` or a part of them.
        """
        if self._plan is None:
            assert self._writer is not None
            batch = buffers if buffers is not None else self._writer.new_batch()
            start = step * self._batch_size + self._first
            if self._fused is not None:
                self._fused(start, None, batch)
            else:
                self.write_at(start, None, batch)
        else:
            planned = self._plan(step)
            batch = planned.buffers(buffers)
            fields = (batch.index, batch.partner, batch.lam, batch.group)
            for field, values in zip(fields, planned.samples, strict=True):
                field.copy_(values)
            self._write_labels(batch)
            batch = planned.write(batch)
        torch.autograd.graph.increment_version(batch.tensors())
        return batch

    def write_at(self, start: int, counter: Tensor | None, batch: Batch) -> None:
        """Make the batch of the samples from number `start` on, plus the number in `counter` if given.

        Args:
            start: Number of the first sample.
            counter: int64 `[1]` on the device of the batch, so that a CUDA graph can replay the call.
            batch: Buffers to write.
        """
        if self._fused is not None:
            self._fused(start, counter, batch)
            return
        assert self._writer is not None
        self._draw(*self._drawn_from, start, counter, batch.index, batch.partner, batch.lam, batch.group)
        self._write_labels(batch)
        self._writer.write(batch)

    def _write_labels(self, batch: Batch) -> None:
        self._select_labels(batch.index, batch.label)
        if self._keeps_labels:
            batch.partner_label.copy_(batch.label)
        else:
            self._select_labels(batch.partner, batch.partner_label)

    def _select_labels(self, index: Tensor, out: Tensor) -> None:
        if self._labels.dtype == out.dtype:
            torch.index_select(self._labels, 0, index, out=out)
        else:
            out.copy_(self._labels.index_select(0, index))
