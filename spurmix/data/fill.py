"""Fillers: what makes batch number `step` of a source, with its ops and arguments looked up once.

The prefetch thread keeps a filler, so none may keep the loader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spurmix.data.batch import Batch
from spurmix.data.prefetch import Fill
from spurmix.data.sources import FeatureSource, ImageSource
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


def fill_images(source: ImageSource, stream: Stream, augment: Augment, fresh: Callable[[], Batch]) -> Fill:
    """Batches of images, each in one pass."""
    mix = implementation("mix_image_batch_out", "auto", source.images.device)
    tables, stride, first = stream.tables, stream.batch_size, stream.first
    fixed = (
        source.images, stream.labels, tables.packed, tables.members, source.mean, source.std,
        augment.crop, *augment.scale, *augment.ratio, augment.flip, stream.seed,
    )  # fmt: skip

    def fill(step: int, buffers: Batch | None) -> Batch:
        batch = buffers if buffers is not None else fresh()
        tensors = batch.tensors()
        mix(*fixed, step * stride + first, None, *tensors)
        torch.autograd.graph.increment_version(tensors)
        return batch

    return fill


def fill_features(source: FeatureSource, stream: Stream, fresh: Callable[[], Batch]) -> Fill:
    """Batches of mixed rows."""
    features, labels, keep = source.features, stream.labels, stream.tables.keeps_labels
    packed, members, seed = stream.tables.packed, stream.tables.members, stream.seed
    stride, first = stream.batch_size, stream.first
    draw = implementation("draw_out", "auto", features.device)
    mix_rows = implementation("mix_rows_out", "auto", features.device)

    def fill(step: int, buffers: Batch | None) -> Batch:
        batch = buffers if buffers is not None else fresh()
        index, partner, lam = batch.index, batch.partner, batch.lam
        draw(packed, members, seed, step * stride + first, None, index, partner, lam, batch.group)
        mix_rows(features, index, partner, lam, batch.input)
        batch.label.copy_(labels.index_select(0, index))
        batch.partner_label.copy_(batch.label if keep else labels.index_select(0, partner))
        torch.autograd.graph.increment_version(batch.tensors())
        return batch

    return fill
