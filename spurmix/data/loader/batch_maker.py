"""Fillers: what makes batch number `step` of a source, with its ops and arguments looked up once.

The prefetch thread keeps a filler, so none may keep the loader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spurmix.core.groups import GroupIndex
from spurmix.data.batch import Batch, TokenPairs
from spurmix.data.loader.buffers import narrowed
from spurmix.data.loader.prefetch import Fill
from spurmix.data.sources.arrays import FeatureSource, ImageSource, as_tensor
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops.augment import Augment
from spurmix.ops.backends import implementation
from spurmix.ops.tables import DrawTables


@dataclass(frozen=True)
class Stream:
    """The samples a rank reads: of batch number k those from k * batch_size + first on; labels are the dataset's."""

    tables: DrawTables
    labels: Tensor
    seed: int
    batch_size: int
    first: int


Write = Callable[[int, Tensor | None, Batch], None]
"""write(start, counter, batch): the samples from `start` on, plus the number in `counter` where given, into a batch."""


def image_writer(source: ImageSource, stream: Stream, augment: Augment) -> Write:
    """Batches of images, each in one pass; a pinned source's on the device of the stream's tables."""
    tables, labels = stream.tables, stream.labels
    device = tables.packed.device
    mix = implementation("mix_image_batch_out", "auto", device)
    fixed = (
        source.images, labels, tables.packed, tables.members, source.mean.to(device), source.std.to(device),
        augment.crop, *augment.scale, *augment.ratio, augment.flip, stream.seed,
    )  # fmt: skip

    def write(start: int, counter: Tensor | None, batch: Batch) -> None:
        mix(*fixed, start, counter, *batch.tensors())

    return write


def feature_writer(source: FeatureSource, stream: Stream) -> Write:
    """Batches of mixed rows."""
    features, labels, keep = source.features, stream.labels, stream.tables.keeps_labels
    packed, members, seed = stream.tables.packed, stream.tables.members, stream.seed
    draw = implementation("draw_out", "auto", features.device)
    mix_rows = implementation("mix_rows_out", "auto", features.device)

    def write(start: int, counter: Tensor | None, batch: Batch) -> None:
        index, partner, lam = batch.index, batch.partner, batch.lam
        draw(packed, members, seed, start, counter, index, partner, lam, batch.group)
        mix_rows(features, index, partner, lam, batch.input)
        batch.label.copy_(labels.index_select(0, index))
        batch.partner_label.copy_(batch.label if keep else labels.index_select(0, partner))

    return write


def fill_by(write: Write, stream: Stream, fresh: Callable[[], Batch]) -> Fill:
    """Batch number `step` by a writer."""

    def fill(step: int, buffers: Batch | None) -> Batch:
        batch = buffers if buffers is not None else fresh()
        write(step * stream.batch_size + stream.first, None, batch)
        torch.autograd.graph.increment_version(batch.tensors())
        return batch

    return fill


def fill_tokens(
    source: TokenSource, stream: Stream, count: int, bucket: int, steps: int, fresh: Callable[[int], Batch]
) -> Fill:
    """Batches of `count` token pairs, padded together; `fresh` takes their width."""
    labels, keep = stream.labels, stream.tables.keeps_labels
    drawn = _drawn(stream, count) if bucket == 1 else _bucketed(source, stream, count, bucket, steps)

    def fill(step: int, buffers: Batch | None) -> Batch:
        index, partner, lam, group = drawn(step)
        width = source.width(int(source.pair_lengths(index, partner).max()))
        batch = narrowed(buffers, width) if buffers is not None else fresh(width)
        pairs = batch.input
        assert isinstance(pairs, TokenPairs)
        source.pack(index, pairs.ids, pairs.mask)
        source.pack(partner, pairs.partner_ids, pairs.partner_mask)
        for field, values in ((batch.index, index), (batch.partner, partner), (batch.lam, lam), (batch.group, group)):
            field.copy_(values)
        batch.label.copy_(labels.index_select(0, index))
        batch.partner_label.copy_(batch.label if keep else labels.index_select(0, partner))
        torch.autograd.graph.increment_version(batch.tensors())
        return batch

    return fill


Drawn = Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]]
"""drawn(step) -> index, partner, lam, group of this rank's part of a batch."""


def _drawn(stream: Stream, count: int) -> Drawn:
    draw = implementation("draw", "auto", stream.tables.packed.device)
    packed, members, seed = stream.tables.packed, stream.tables.members, stream.seed
    return lambda step: draw(packed, members, seed, step * stream.batch_size + stream.first, count)


def _bucketed(source: TokenSource, stream: Stream, count: int, bucket: int, steps: int) -> Drawn:
    """Draws of windows of `bucket` batches, the window's samples handed to its batches by length.

    A window holds the samples it would hold without buckets, its last one those up to the end of the run. Within a batch
    they keep the sequence's order, so that ranks have equal shares of long ones; batches come in an order of their own,
    else each window would run from short to long. Only seed, window and number of batches decide.
    """
    size, seed = stream.batch_size, stream.seed
    tables = stream.tables
    draw = implementation("draw", "auto", tables.packed.device)
    kept: dict[int, tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]] = {}

    def window(number: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        batches = min(bucket, steps - number * bucket)
        samples = draw(tables.packed, tables.members, seed, number * bucket * size, batches * size)
        by_length = np.argsort(source.pair_lengths(samples[0], samples[1]), kind="stable")
        order = np.sort(by_length.reshape(batches, size), axis=1)
        words = np.random.Philox(key=[seed, number]).random_raw(batches)
        return torch.from_numpy(order[np.argsort(words, kind="stable")]), samples

    def drawn(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        number, place = divmod(step, bucket)
        if number not in kept:
            kept.clear()
            kept[number] = window(number)
        order, (index, partner, lam, group) = kept[number]
        chosen = order[place, stream.first : stream.first + count]
        return index[chosen], partner[chosen], lam[chosen], group[chosen]

    return drawn


def label_tensor(groups: GroupIndex) -> Tensor:
    """The labels as a tensor of an integer dtype the ops read; unsigned ones torch cannot index by are converted."""
    labels = groups.labels
    kind = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(labels.dtype.name)
    return as_tensor(labels.astype(kind) if kind else labels, "labels").contiguous()
