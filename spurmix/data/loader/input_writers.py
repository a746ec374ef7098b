"""Strategies that write the input of a batch: images and features in memory, texts, and images of a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spurmix.data.batch import Batch, TokenPairs
from spurmix.data.loader.batch_maker import FusedOp
from spurmix.data.loader.buffers import narrowed
from spurmix.data.loader.sequence import Samples, SampleSequence, bucketed_draw, crops_and_flips, direct_draw
from spurmix.data.loader.window_plan import PlannedBatch, PlannedImages, WindowPlan
from spurmix.data.sources.arrays import FeatureSource, ImageSource
from spurmix.data.sources.tokens import TokenSource
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops.augment import Augment
from spurmix.ops.backends import implementation


class FusedImageWriter:
    """Images in memory, drawn, labeled and mixed in one launch. Pinned images are read by the GPU."""

    def __init__(
        self, source: ImageSource, sequence: SampleSequence, augment: Augment, new_batch: Callable[[], Batch]
    ) -> None:
        self._source, self._sequence, self._augment, self.new_batch = source, sequence, augment, new_batch

    def fused(self) -> FusedOp:
        """Return the fused op."""
        source, augment, tables = self._source, self._augment, self._sequence.tables
        device = tables.packed.device
        mix = implementation("mix_image_batch_out", "auto", device)
        fixed = (
            source.images, self._sequence.labels, tables.packed, tables.members, source.mean.to(device),
            source.std.to(device), augment.crop, *augment.scale, *augment.ratio, augment.flip, self._sequence.seed,
        )  # fmt: skip

        def write(start: int, counter: Tensor | None, batch: Batch) -> None:
            mix(*fixed, start, counter, *batch.tensors())

        return write

    def write(self, batch: Batch) -> None:
        """Do nothing: the fused op writes the input."""


class FeatureWriter:
    """Feature vectors in memory, mixed row by row."""

    def __init__(self, source: FeatureSource, new_batch: Callable[[], Batch]) -> None:
        self._features, self.new_batch = source.features, new_batch
        self._mix_rows = implementation("mix_rows_out", "auto", source.device)

    def fused(self) -> None:
        """Return None: drawing and mixing are two ops."""

    def write(self, batch: Batch) -> None:
        """Write the mixed rows."""
        self._mix_rows(self._features, batch.index, batch.partner, batch.lam, batch.input)


@dataclass(slots=True)
class _PlannedTokens:
    source: TokenSource
    samples: Samples
    new_batch: Callable[[int], Batch]

    def buffers(self, reused: Batch | None) -> Batch:
        """Return buffers with the width of the longest text of the batch."""
        width = self.source.width(int(self.source.pair_lengths(self.samples[0], self.samples[1]).max()))
        return narrowed(reused, width) if reused is not None else self.new_batch(width)

    def write(self, batch: Batch) -> Batch:
        """Write the padded texts and their masks."""
        pairs = batch.input
        assert isinstance(pairs, TokenPairs)
        self.source.pack(self.samples[0], pairs.ids, pairs.mask)
        self.source.pack(self.samples[1], pairs.partner_ids, pairs.partner_mask)
        return batch


class TokenPlanner:
    """Pairs of texts, padded together, optionally in batches of similar length."""

    def __init__(
        self, source: TokenSource, sequence: SampleSequence, bucket: int, steps: int, new_batch: Callable[[int], Batch]
    ) -> None:
        self._source, self._new_batch = source, new_batch
        self._draw = direct_draw(sequence) if bucket == 1 else bucketed_draw(source, sequence, bucket, steps)

    def __call__(self, step: int) -> _PlannedTokens:
        """Draw the samples of batch `step`."""
        return _PlannedTokens(self._source, self._draw(step), self._new_batch)


class WindowedImagePlanner:
    """Images that are read from a file by windows, and mixed on the CPU."""

    def __init__(
        self,
        source: WindowedImages,
        sequence: SampleSequence,
        augment: Augment,
        steps: int,
        new_batch: Callable[[], Batch],
    ) -> None:
        self._source, self._sequence, self._augment, self.new_batch = source, sequence, augment, new_batch
        self._plan = WindowPlan(source, sequence, steps)
        self._mix = implementation("mix_images_out", "auto", torch.device("cpu"))

    def __call__(self, step: int) -> PlannedBatch:
        """Read the images of batch `step`."""
        return PlannedBatch(self._plan(step), step, self.new_batch, self.mix)

    def mix(self, planned: PlannedImages, step: int, batch: Batch) -> Batch:
        """Write the mixed images into the input of `batch`."""
        source = self._source
        boxes, flips = crops_and_flips(source, self._sequence, self._augment, step)
        self._mix(planned.images, *planned.place, batch.lam, source.mean, source.std, boxes, flips, batch.input)
        return batch
