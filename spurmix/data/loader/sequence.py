"""The sample sequence of a rank, and functions that draw the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spurmix.core.cells import host_module
from spurmix.core.groups import GroupIndex
from spurmix.data.sources.arrays import ImageSource, as_tensor
from spurmix.data.sources.tokens import TokenSource
from spurmix.ops.augment import Augment
from spurmix.ops.backends import implementation
from spurmix.ops.reference import draw as reference_draw
from spurmix.ops.tables import DrawTables

Samples = tuple[Tensor, Tensor, Tensor, Tensor]
"""index, partner, lam and group of the samples of a batch."""


@dataclass(frozen=True)
class SampleSequence:
    """The samples that one rank reads.

    Attributes:
        tables: Draw tables, on the device where batches are made.
        labels: Labels of the dataset, integers `[N]`, on the same device.
        seed: Seed of the sequence.
        batch_size: Global batch size.
        first: Position of this rank's first sample in a global batch.
        count: Samples of a batch that this rank reads.
    """

    tables: DrawTables
    labels: Tensor
    seed: int
    batch_size: int
    first: int
    count: int

    @classmethod
    def of_rank(
        cls,
        tables: DrawTables,
        groups: GroupIndex,
        seed: int,
        batch_size: int,
        rank: int,
        ranks: int,
        device: torch.device,
    ) -> SampleSequence:
        """Return the sequence of rank `rank` of `ranks`, with its tables and labels on `device`."""
        count = batch_size // ranks
        return cls(tables.to(device), label_tensor(groups).to(device), seed, batch_size, rank * count, count)

    def start(self, step: int) -> int:
        """Return the number of this rank's first sample in batch `step`."""
        return step * self.batch_size + self.first


def direct_draw(sequence: SampleSequence) -> Callable[[int], Samples]:
    """Return a function that draws this rank's samples of a batch."""
    draw = implementation("draw", "auto", sequence.tables.packed.device)
    packed, members, seed, count = sequence.tables.packed, sequence.tables.members, sequence.seed, sequence.count
    return lambda step: draw(packed, members, seed, sequence.start(step), count)


def bucketed_draw(source: TokenSource, sequence: SampleSequence, bucket: int, steps: int) -> Callable[[int], Samples]:
    """Return a function that draws batches of texts of similar length.

    The samples of `bucket` batches are drawn together and assigned to these batches by length. The last window ends with
    the run. Samples keep the order of the sequence within a batch, so that every rank gets long and short texts. The
    batches of a window are shuffled, because they would otherwise run from short to long. The result depends only on the
    seed, the window and the number of batches.
    """
    size, seed, first, count = sequence.batch_size, sequence.seed, sequence.first, sequence.count
    tables = sequence.tables
    draw = implementation("draw", "auto", tables.packed.device)
    cache: dict[int, tuple[Tensor, Samples]] = {}

    def window(number: int) -> tuple[Tensor, Samples]:
        batches = min(bucket, steps - number * bucket)
        samples = draw(tables.packed, tables.members, seed, number * bucket * size, batches * size)
        by_length = np.argsort(source.pair_lengths(samples[0], samples[1]), kind="stable")
        order = np.sort(by_length.reshape(batches, size), axis=1)
        words = np.random.Philox(key=[seed, number]).random_raw(batches)
        return torch.from_numpy(order[np.argsort(words, kind="stable")]), samples

    def drawn(step: int) -> Samples:
        number, place = divmod(step, bucket)
        if number not in cache:
            cache.clear()
            cache[number] = window(number)
        order, (index, partner, lam, group) = cache[number]
        chosen = order[place, first : first + count]
        return index[chosen], partner[chosen], lam[chosen], group[chosen]

    return drawn


def crops_and_flips(
    source: ImageSource, sequence: SampleSequence, augment: Augment, step: int
) -> tuple[Tensor | None, Tensor | None]:
    """Draw the crops and flips of the fused op on the host.

    Args:
        source: Source of the images.
        sequence: The samples.
        augment: Augmentation.
        step: Number of the batch.

    Returns:
        Crop boxes, float32 `[B, 2, 4]`, and flips, uint8 `[B, 2]`. None for a disabled one.
    """
    start, count, host = sequence.start(step), sequence.count, host_module()
    height, width, _ = source.shape
    boxes = flips = None
    if augment.crop and host is not None:
        boxes = torch.from_numpy(host.boxes(sequence.seed, start, count, height, width, *augment.scale, *augment.ratio))
    elif augment.crop:
        n = torch.arange(start, start + count)
        boxes = reference_draw.crop_boxes(n, sequence.seed, height, width, augment.scale, augment.ratio)
    if augment.flip and host is not None:
        flips = torch.from_numpy(host.flips(sequence.seed, start, count))
    elif augment.flip:
        packed, members = sequence.tables.packed, sequence.tables.members
        flips = reference_draw.flip_flags(
            reference_draw.draw_samples(packed, members, sequence.seed, start, count).flip_bits
        )
    return boxes, flips


def label_tensor(groups: GroupIndex) -> Tensor:
    """Return the labels in an integer dtype that the ops support. Torch cannot index by most unsigned types."""
    labels = groups.labels
    kind = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(labels.dtype.name)
    return as_tensor(labels.astype(kind) if kind else labels, "labels").contiguous()
