"""Calibration, AUROC and the interval of the worst group, computed from counts in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.groups import UNKNOWN, GroupIndex

Logits: TypeAlias = NDArray[np.floating[Any]]
"""Logits of any floating dtype."""
CONFIDENCE_BINS = 15
"""Number of equal-width bins of the expected calibration error, as in Guo et al. 2017."""
CONFIDENCE_UNIT = 1 << 24
"""Confidences are summed as multiples of 1 / CONFIDENCE_UNIT, so that no sum depends on the order of the examples."""
SCORE_BINS = 2048
"""Number of bins of the scores of AUROC."""
SCORES_PER_UNIT = 128
"""Bins of a score x are floor(SCORES_PER_UNIT * asinh(SCORE_SCALE * x)): 0.00012 wide at 0, 0.8% of x for large scores."""
SCORE_SCALE = 64.0
MAX_SCORE_COLUMNS = 1024
"""Maximum number of attribute values times classes for AUROC. Its counts take up to 32 MiB."""
RESAMPLES = 1000
"""Number of bootstrap resamples of the interval of the worst group."""


@dataclass(frozen=True)
class ScoreLayout:
    """Shapes of the counts of an evaluation.

    Attributes:
        groups: Number of groups, G.
        cells: Number of overlapping cells, K.
        attributes: Number of attribute values and unknown, A. The first is unknown.
        columns: Number of scores of each example, S: 1 for two classes, the number of classes otherwise, 0 without AUROC.
    """

    groups: int
    cells: int
    attributes: int
    columns: int

    @classmethod
    def of(cls, groups: GroupIndex, cells: int, classes: int) -> ScoreLayout:
        """Compute the shapes for a model with `classes` classes."""
        attributes, columns = groups.num_attributes + 1, 1 if classes == 2 else classes
        enough = classes > 1 and attributes * columns <= MAX_SCORE_COLUMNS
        return cls(groups.num_groups, cells, attributes, columns if enough else 0)

    @property
    def sizes(self) -> list[int]:
        """Number of entries of `ScoreCounts.groups`, `.cells` and `.scores`."""
        per_cell = CONFIDENCE_BINS * 3
        return [self.groups * per_cell, self.cells * per_cell, self.attributes * self.columns * 2 * SCORE_BINS]


@dataclass(frozen=True)
class ScoreCounts:
    """Histograms of confidences and scores. They can be summed over batches and processes.

    Attributes:
        groups: Wrong predictions, correct predictions and sum of confidences of each group and bin, int64 `[G, 15, 3]`. A
            confidence is the probability of the predicted class, in units of 1 / CONFIDENCE_UNIT.
        cells: The same of each cell, int64 `[K, 15, 3]`.
        scores: Number of examples of each attribute (unknown first), score, other or same class, and bin, int64
            `[A, S, 2, SCORE_BINS]`.
    """

    groups: Int64Array
    cells: Int64Array
    scores: Int64Array

    @classmethod
    def of(cls, flat: Sequence[Int64Array], layout: ScoreLayout) -> ScoreCounts:
        """Shape flat counts, with as many entries as `layout.sizes`."""
        groups, cells = (counts.reshape(-1, CONFIDENCE_BINS, 3) for counts in flat[:2])
        return cls(groups, cells, flat[2].reshape(layout.attributes, layout.columns, 2, SCORE_BINS))


@dataclass(frozen=True)
class AttributeScore:
    """Discrimination of the classes within the examples of one attribute value.

    Attributes:
        name: Name of the attribute value, "unknown" if it is not known.
        attribute: Number of the attribute value, -1 if unknown.
        count: Number of examples.
        auroc: Area under the ROC curve, NaN if all examples have the same class or there are too many classes.
    """

    name: str
    attribute: int
    count: int
    auroc: float


def attribute_blocks(groups: GroupIndex) -> Int64Array:
    """Return the position of each example's attribute in `ScoreCounts.scores`, int64 `[N]`: 0 if it is unknown."""
    column = groups.spurious_attributes
    if column is None:
        return np.ones(groups.num_examples, dtype=np.int64)
    return column.astype(np.int64) + 1


def _score_bins(logits: FloatArray, columns: int) -> tuple[Int64Array, Int64Array]:
    """Return the confidence of each example, `[n]`, and the bins of its scores, `[n, S]`."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1)
    confidence = np.rint(CONFIDENCE_UNIT / total).astype(np.int64)
    if columns <= 1:
        odds = logits[:, 1 : 1 + columns] - logits[:, :1]
    else:
        share = shifted - np.log(total)[:, None]
        with np.errstate(divide="ignore"):  # a probability of 1 has infinite log-odds
            odds = share - np.log(-np.expm1(share)) + math.log(logits.shape[1] - 1)
    bins = np.floor(SCORES_PER_UNIT * np.arcsinh(SCORE_SCALE * odds)) + SCORE_BINS // 2
    return confidence, np.clip(bins, 0, SCORE_BINS - 1).astype(np.int64)


def count_scores(
    logits: Logits,
    groups: GroupIndex,
    members: NDArray[np.bool_] | None,
    block: int = 1 << 18,
) -> ScoreCounts:
    """Count confidences and scores.

    Args:
        logits: Finite logits `[N, C]`.
        groups: Groups of the examples.
        members: Membership of the examples in cells, bool `[N, K]`, or None.
        block: Number of logits that are converted to float64 at once.

    Returns:
        The counts.
    """
    layout = ScoreLayout.of(groups, 0 if members is None else members.shape[1], logits.shape[1])
    flat = [np.zeros(size, dtype=np.int64) for size in layout.sizes]
    ids, attributes = groups.group_ids().astype(np.int64), attribute_blocks(groups)
    step = max(1, block // logits.shape[1])
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        confidence, bins = _score_bins(logits[rows].astype(np.float64), layout.columns)
        labels = groups.labels[rows].astype(np.int64)
        correct = logits[rows].argmax(axis=1) == labels
        values = np.stack([~correct, correct, confidence], axis=1).astype(np.int64)
        # Bin m has the confidences above m / 15, up to (m + 1) / 15.
        confidence_bin = np.maximum(confidence * CONFIDENCE_BINS - 1, 0) // CONFIDENCE_UNIT
        entry = ids[rows] * CONFIDENCE_BINS + confidence_bin
        np.add.at(flat[0].reshape(-1, 3), entry, values)
        if members is not None:
            one_hot = np.eye(CONFIDENCE_BINS, dtype=np.int64)[confidence_bin]
            of_examples = (one_hot[:, :, None] * values[:, None, :]).reshape(len(values), -1)
            flat[1] += (members[rows].T.astype(np.int64) @ of_examples).reshape(-1)
        if layout.columns:
            same = labels[:, None] == (np.arange(layout.columns) if layout.columns > 1 else 1)
            row = attributes[rows, None] * layout.columns + np.arange(layout.columns)
            np.add.at(flat[2], (row * 2 + same) * SCORE_BINS + bins, 1)
    return ScoreCounts.of(flat, layout)


def calibration_error(counts: Int64Array) -> float:
    """Compute the expected calibration error (ECE) with 15 equal-width bins.

    ECE is the mean of |accuracy - mean confidence| over the bins, weighted by their sizes.

    Args:
        counts: Wrong predictions, correct predictions and sum of confidences of each bin, int64 `[15, 3]`.

    Returns:
        The error in [0, 1], NaN without examples.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    total = int(counts[:, :2].sum())
    if not total:
        return math.nan
    gaps = counts[:, 1] - counts[:, 2] / CONFIDENCE_UNIT
    return float(np.abs(gaps).sum() / total)


def auroc(counts: Int64Array) -> float:
    """Compute the area under the ROC curve from histograms of scores. Scores in the same bin count as equal.

    Args:
        counts: Number of examples of the other classes and of the class in each bin, int64 `[S, 2, SCORE_BINS]`. The bins
            are in ascending order.

    Returns:
        The mean area over the S classes that have examples inside and outside of the class (one-vs-rest). NaN if none has.
    """
    other, same = counts[:, 0].astype(np.float64), counts[:, 1].astype(np.float64)
    pairs = other.sum(axis=1) * same.sum(axis=1)
    below = np.cumsum(other, axis=1) - other / 2
    wins = (same * below).sum(axis=1)
    return float((wins[pairs > 0] / pairs[pairs > 0]).mean()) if (pairs > 0).any() else math.nan


def attribute_scores(counts: Int64Array, groups: GroupIndex) -> tuple[AttributeScore, ...]:
    """Compute the AUROC within the examples of each attribute value.

    Args:
        counts: `ScoreCounts.scores`.
        groups: Groups of the examples.

    Returns:
        A row for each attribute value that occurs, unknown first. Empty if the examples have no attribute.
    """
    if groups.spurious_attributes is None:
        return ()
    sizes = np.bincount(attribute_blocks(groups), minlength=groups.num_attributes + 1)
    names = groups.attribute_names
    rows = []
    for block in map(int, np.flatnonzero(sizes)):
        attribute = block - 1
        named = "unknown" if attribute == UNKNOWN else names[attribute] if names else f"a={attribute}"
        rows.append(AttributeScore(named, attribute, int(sizes[block]), auroc(counts[block])))
    return tuple(rows)


def resample_minimum(
    correct: Int64Array, counts: Int64Array, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Compute a 95% interval of the lowest of several accuracies by a bootstrap.

    Each resample draws the number of correct predictions of every group from a binomial distribution with the observed
    accuracy, and takes the lowest accuracy. The bounds are the 2.5% and the 97.5% quantile of these minima. The lowest of
    several noisy accuracies is below the lowest expected accuracy on average, so that the interval may extend further below
    the observed minimum than above it. A group without errors has no errors in any resample.

    Args:
        correct: Number of correct predictions of each group, `[G]`.
        counts: Number of predictions of each group, `[G]`, 1 or more.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        The lower and the upper bound.
    """
    low, high = np.quantile(resampled_minima(correct, counts, resamples, np.random.default_rng(seed)), [0.025, 0.975])
    return float(low), float(high)


def resampled_minima(correct: Int64Array, counts: Int64Array, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Return the lowest accuracy in each resample of `resample_minimum`, `[resamples]`."""
    accuracy = correct / counts
    # Only groups within 8 standard deviations of the minimum are resampled. The others do not change it.
    deviation = 8 * np.sqrt(np.maximum(accuracy * (1 - accuracy), 1 / counts) / counts)
    possible = accuracy - deviation <= (accuracy + deviation).min()
    lowest = np.ones(resamples)
    for share, count in zip(accuracy[possible], counts[possible], strict=True):
        np.minimum(lowest, rng.binomial(count, share, resamples) / count, out=lowest)
    return lowest
