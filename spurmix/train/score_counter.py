"""Counts confidences and scores of a model on the device of its logits. `scores.count_scores` is the NumPy equivalent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spurmix.train.scores import (
    CONFIDENCE_BINS,
    CONFIDENCE_UNIT,
    SCORE_BINS,
    SCORE_SCALE,
    SCORES_PER_UNIT,
    ScoreLayout,
)


class ScoreCounter:
    """Adds batches to flat counts.

    Args:
        layout: Shapes of the counts.
        flat: Counts of groups, cells and scores, int64, with as many entries as `layout.sizes`.
    """

    def __init__(self, layout: ScoreLayout, flat: tuple[Tensor, ...]) -> None:
        self._layout = layout
        self._of_groups, self._of_cells, self._of_scores = flat

    def add(
        self, logits: Tensor, predicted: Tensor, label: Tensor, group: Tensor, attribute: Tensor, members: Tensor | None
    ) -> None:
        """Count a batch.

        Args:
            logits: float32 `[B, C]`. Logits that are not finite are counted in an arbitrary bin.
            predicted: Predicted classes, int64 `[B]`.
            label: Classes, int64 `[B]`.
            group: Group of each example, int64 `[B]`.
            attribute: Position of each attribute in the counts, int64 `[B]`.
            members: Membership in cells, bool `[B, K]`, or None.
        """
        shifted = logits.double()
        shifted.sub_(shifted.amax(dim=1, keepdim=True))
        total = shifted.exp().sum(dim=1)
        confidence = (CONFIDENCE_UNIT / total).nan_to_num_(0.0).round_().long()
        correct = (predicted == label).long()
        bins = (confidence * CONFIDENCE_BINS - 1).clamp_(min=0) // CONFIDENCE_UNIT
        entry = (group * CONFIDENCE_BINS + bins) * 3
        self._of_groups.index_add_(0, entry + correct, torch.ones_like(entry))
        self._of_groups.index_add_(0, entry + 2, confidence)
        if members is not None:  # sums of integers below 2^53 are exact in float64
            parts = torch.stack([1 - correct, correct, confidence], dim=1).double()
            one_hot = torch.nn.functional.one_hot(bins, CONFIDENCE_BINS).double()
            of_examples = (one_hot[:, :, None] * parts[:, None, :]).flatten(1)
            self._of_cells += (members.T.double() @ of_examples).flatten().long()
        if self._layout.columns:
            self._add_scores(shifted, total, label, attribute)

    def _add_scores(self, shifted: Tensor, total: Tensor, label: Tensor, attribute: Tensor) -> None:
        """Count the log-odds of the classes by attribute, class and bin."""
        columns = self._layout.columns
        classes = torch.arange(columns, device=shifted.device)
        if columns == 1:
            odds, same = shifted[:, 1:] - shifted[:, :1], label[:, None]
        else:
            share = shifted - total.log()[:, None]
            odds = share - share.expm1().neg_().log_() + math.log(columns - 1)
            same = (label[:, None] == classes).long()
        scaled = (odds.mul_(SCORE_SCALE).asinh_() * SCORES_PER_UNIT).floor_().nan_to_num_(0.0)
        bins = scaled.clamp_(-SCORE_BINS // 2, SCORE_BINS // 2 - 1).long() + SCORE_BINS // 2
        row = attribute[:, None] * columns + classes
        entry = ((row * 2 + same) * SCORE_BINS + bins).flatten()
        self._of_scores.index_add_(0, entry, torch.ones_like(entry))
