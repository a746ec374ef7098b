"""Per-group statistics in NumPy, computed from logits or from counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spurmix.core import checks
from spurmix.core.array_types import Int64Array
from spurmix.core.group_join import JoinedSizes, join_sizes
from spurmix.core.groups import MIXED, GroupIndex
from spurmix.core.names import listed
from spurmix.train.evaluation import Evaluation, GroupAccuracy, wilson
from spurmix.train.scores import Logits, ScoreCounts, attribute_scores, auroc, calibration_error, count_scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """Groups that may overlap. An example is in any number of the K cells.

    Attributes:
        members: Membership matrix, bool `[N, K]`.
        names: Names of the K cells.
    """

    members: NDArray[np.bool_]
    names: tuple[str, ...]

    @classmethod
    def of(cls, membership: ArrayLike | Tensor, names: Sequence[str] | None, examples: int) -> Cells:
        """Check a membership matrix and the names of its columns.

        Args:
            membership: Boolean matrix `[N, K]`.
            names: Names of the K cells. Default: "cell 0", "cell 1", ...
            examples: N.

        Returns:
            The cells.

        Raises:
            TypeError: If the matrix is not boolean.
            ValueError: If the shape of the matrix or the number of names is wrong, or names repeat.
        """
        if np.ma.is_masked(membership):
            raise ValueError("membership must not have masked values; decide whether each example is in each cell")
        members = np.asarray(membership.cpu() if hasattr(membership, "cpu") else membership)
        if members.dtype != np.bool_:
            raise TypeError(f"membership must be a boolean matrix [N, K], got {members.dtype}")
        if members.ndim != 2 or members.shape[0] != examples or members.shape[1] == 0:
            raise ValueError(
                f"membership must have shape [{examples}, K] with K of 1 or more, got {list(members.shape)}"
            )
        unnamed = tuple(f"cell {k}" for k in range(members.shape[1]))
        chosen = checks.names(names, "cell_names") if names is not None else unnamed
        if len(chosen) != members.shape[1] or len(set(chosen)) != len(chosen):
            raise ValueError(f"cell_names must be {members.shape[1]} different names, got {listed(chosen)}")
        return cls(members, chosen)


@dataclass(frozen=True)
class Counts:
    """Counts of predictions, from which `summarize` computes an `Evaluation`. They can be summed over processes.

    Attributes:
        groups: Correct and total predictions of each group, int64 `[G, 2]`.
        cells: Correct and total predictions of each cell, int64 `[K, 2]`. K is 0 without cells.
        predictions: Number of predictions of each class for each row of `LabelPairs`, int64 `[R, C]`.
        scores: Histograms of confidences and scores.
    """

    groups: NDArray[np.int64]
    cells: NDArray[np.int64]
    predictions: NDArray[np.int64]
    scores: ScoreCounts


@dataclass(frozen=True)
class LabelPairs:
    """The pairs of a group and a label that occur: one per group if groups are cells of label and attribute.

    Attributes:
        pairs: Group and label of each pair, int64 `[R, 2]`.
        row: Row in `pairs` of each example, int64 `[N]`.
    """

    pairs: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, groups: GroupIndex) -> LabelPairs:
        """Find the pairs of an index."""
        labels = groups.labels.astype(np.int64)
        count = int(labels.max()) + 1
        keys, row = np.unique(groups.group_ids().astype(np.int64) * count + labels, return_inverse=True)
        return cls(np.stack(np.divmod(keys, count), axis=1), row.reshape(-1))


@dataclass(frozen=True)
class EvaluationOptions:
    """Checked options of an evaluation.

    Attributes:
        training: Training sizes of the groups, which weight the adjusted average. None: the sizes of the groups.
        cells: Overlapping cells that decide the worst group.
        min_group_size: Minimum size of a group or cell that can be the worst group.
    """

    training: JoinedSizes | None
    cells: Cells | None
    min_group_size: int


def check_options(
    groups: GroupIndex,
    *,
    train_groups: GroupIndex | None = None,
    membership: ArrayLike | Tensor | None = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
) -> EvaluationOptions:
    """Check the options of `evaluate` before a model runs.

    Args:
        groups: Groups of the examples.
        train_groups: See `evaluate`.
        membership: See `evaluate`.
        cell_names: See `evaluate`.
        min_group_size: See `evaluate`.

    Returns:
        The options.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is invalid for these groups.
    """
    min_group_size = checks.integer(min_group_size, "min_group_size", 1)
    checks.instance(train_groups, "train_groups", GroupIndex, optional=True)
    if membership is None and cell_names is not None:
        raise ValueError("cell_names requires membership, the matrix of these cells")
    cells = Cells.of(membership, cell_names, groups.num_examples) if membership is not None else None
    if cells is not None and not cells.members.any():
        raise ValueError("membership: all cells are empty; at least one cell must have examples")
    training = join_sizes(groups, train_groups) if train_groups is not None else None
    if training is not None and not training.sizes.any():
        raise ValueError("train_groups: none of the evaluated groups occurs in training")
    largest = int((cells.members.sum(axis=0) if cells is not None else groups.sizes).max())
    if largest < min_group_size:
        raise ValueError(f"min_group_size is {min_group_size}, but the largest group has only {largest} examples")
    return EvaluationOptions(training, cells, min_group_size)


def check_labels(groups: GroupIndex, classes: int) -> None:
    """Raise a ValueError if a label is not smaller than the number of classes of the model."""
    if groups.labels.max() >= classes:
        raise ValueError(f"labels go up to {groups.labels.max()}, but the model has {classes} classes")


def evaluate_logits(
    logits: ArrayLike | Tensor,
    groups: GroupIndex,
    *,
    train_groups: GroupIndex | None = None,
    membership: ArrayLike | Tensor | None = None,
    cell_names: Sequence[str] | None = None,
    min_group_size: int = 1,
) -> Evaluation:
    """Measure the accuracy of logits on each group.

    Args:
        logits: Logits `[N, C]` of the examples of `groups`, in order.
        groups: Groups of the examples.
        train_groups: See `evaluate`.
        membership: See `evaluate`.
        cell_names: See `evaluate`.
        min_group_size: See `evaluate`.

    Returns:
        The evaluation, equal to that of `evaluate`.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If the shape is wrong, logits are not finite, a label has no logit, or an option is invalid.
    """
    options = check_options(
        groups, train_groups=train_groups, membership=membership, cell_names=cell_names, min_group_size=min_group_size
    )
    array = np.asarray(logits.detach().cpu().float() if hasattr(logits, "detach") else logits)
    if array.ndim != 2 or array.shape[0] != groups.num_examples:
        raise ValueError(f"logits must have shape [{groups.num_examples}, C], got {list(array.shape)}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(f"logits of example {int(finite.argmin())} are not finite")
    check_labels(groups, array.shape[1])
    pairs = LabelPairs.of(groups)
    return summarize(_count(array, groups, pairs, options.cells), groups, pairs, options)


def _count(logits: Logits, groups: GroupIndex, pairs: LabelPairs, cells: Cells | None) -> Counts:
    """Count predicted classes, confidences and scores of logits `[N, C]`."""
    predicted, classes = logits.argmax(axis=1), logits.shape[1]
    correct, ids = predicted == groups.labels, groups.group_ids()
    of_groups = [np.bincount(chosen, minlength=groups.num_groups) for chosen in (ids[correct], ids)]
    of_cells = np.zeros((0, 2), dtype=np.int64)
    if cells is not None:
        of_cells = np.stack([cells.members[correct].sum(axis=0), cells.members.sum(axis=0)], axis=1)
    rows = len(pairs.pairs)
    predictions = np.bincount(pairs.row * classes + predicted, minlength=rows * classes).reshape(rows, classes)
    scores = count_scores(logits, groups, cells.members if cells is not None else None)
    return Counts(np.stack(of_groups, axis=1), of_cells, predictions, scores)


def summarize(counts: Counts, groups: GroupIndex, pairs: LabelPairs, options: EvaluationOptions) -> Evaluation:
    """Compute an evaluation from counts.

    Args:
        counts: Counts of all examples.
        groups: Groups of the examples.
        pairs: Pairs of a group and a label, the rows of `counts.predictions`.
        options: Checked options.

    Returns:
        The evaluation.
    """
    smallest, training = options.min_group_size, options.training
    present = np.flatnonzero(counts.groups[:, 1])
    rows = [
        _row(groups.group_name(g), int(groups.group_labels[g]), int(groups.group_attributes[g]), counts.groups[g],
             counts.scores.groups[g], smallest)
        for g in map(int, present)
    ]  # fmt: skip
    cells = tuple(_cell_rows(options.cells, counts, groups, smallest)) if options.cells is not None else ()
    accuracies = np.array([r.accuracy for r in rows])
    weights = (counts.groups[:, 1] if training is None else training.sizes)[present].astype(np.float64)
    worst = min((r for r in cells or rows if r.decides), key=lambda r: r.accuracy)
    correct, total = counts.groups.sum(axis=0).tolist()
    return Evaluation(
        groups=tuple(rows),
        worst_group=worst.accuracy,
        worst_name=worst.name,
        average=correct / total,
        adjusted_average=float(weights @ accuracies / weights.sum()),
        weights_from="evaluation" if training is None else "training",
        num_groups=groups.num_groups,
        pairs=pairs.pairs,
        predictions=counts.predictions,
        cells=cells,
        min_group_size=smallest,
        missing_groups=training.missing if training is not None else (),
        untrained_groups=tuple(row.name for row, weight in zip(rows, weights, strict=True) if not weight),
        notes=training.notes if training is not None else (),
        ece=calibration_error(counts.scores.groups.sum(axis=0)),
        auroc=auroc(counts.scores.scores.sum(axis=0)),
        attributes=attribute_scores(counts.scores.scores, groups),
    )


def _row(
    name: str, label: int, attribute: int, counts: Int64Array, confidences: Int64Array, min_group_size: int
) -> GroupAccuracy:
    """Create the row of a group from its counts (correct, total), the total 1 or more, and its `ScoreCounts.groups`."""
    correct, count = counts.tolist()
    low, high = wilson(correct, count)
    return GroupAccuracy(
        name, label, attribute, count, correct, correct / count, low, high, count >= min_group_size,
        calibration_error(confidences),
    )  # fmt: skip


def _cell_rows(cells: Cells, counts: Counts, groups: GroupIndex, min_group_size: int) -> Iterable[GroupAccuracy]:
    """Create a row for each cell that has examples."""
    rows = zip(cells.names, cells.members.T, counts.cells, counts.scores.cells, strict=True)
    for name, member, count, confidences in rows:
        if not count[1]:
            continue
        labels = groups.labels[member]
        label = int(labels[0]) if (labels == labels[0]).all() else MIXED
        yield _row(name, label, MIXED, count, confidences, min_group_size)
