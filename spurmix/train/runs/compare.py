"""Compares the models of finished runs on the same test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spurmix.core.groups import GroupIndex
from spurmix.core.names import listed, shown
from spurmix.data.dataset.format import Metadata
from spurmix.data.dataset.packed import PackedDataset
from spurmix.train.comparison import Comparison, compare_outcomes
from spurmix.train.metrics import Cells
from spurmix.train.runs.data import predict_split
from spurmix.train.runs.finished import FinishedRun
from spurmix.train.runs.predictions import read_predictions
from spurmix.train.runs.processes import Processes


@dataclass(frozen=True)
class ComparedRun:
    """Predictions of a run on its test split.

    Attributes:
        folder: Folder of the run.
        run: The run.
        split: Name of the split.
        data: Examples of the split, without their inputs.
        predicted: Predicted classes, int32 `[N]`.
        saved: Whether the predictions were read from the folder of the run.
    """

    folder: Path
    run: FinishedRun
    split: str
    data: PackedDataset
    predicted: NDArray[np.int32]
    saved: bool


def predict_run(folder: Path, run: FinishedRun, split: str | None, processes: Processes) -> ComparedRun:
    """Read the saved predictions of a run, or compute them.

    Args:
        folder: Folder of the run.
        run: The run.
        split: Name of the split. Default: the test split of the run, or else its validation split.
        processes: This process, and its device.

    Returns:
        The predictions.

    Raises:
        ValueError: If the run has no such split, or saved predictions are damaged.
    """
    name = run.split_name(split)
    part = run.dataset.split(name)
    predicted = read_predictions(folder, name, run.dataset.digest())
    if predicted is not None and len(predicted) == len(part):
        return ComparedRun(folder, run, name, part, predicted, True)
    data = run.split(name)
    _, computed = predict_split(run.config, run.model.to(processes.device), data, None, processes)
    return ComparedRun(folder, run, name, part, computed, False)


def check_same_test_set(first: ComparedRun, other: ComparedRun) -> None:
    """Check that two runs predict the same classes of the same examples.

    Args:
        first: The first run.
        other: Another run.

    Raises:
        ValueError: If the test sets differ. The message names the first difference.
    """
    a, b = first.data.metadata, other.data.metadata
    difference = _difference(a, b)
    if difference is None and a.sources == b.sources:
        return
    if difference is None:
        row = next(n for n, (x, y) in enumerate(zip(a.sources, b.sources, strict=True)) if x != y)
        difference = f"example {row} is {shown(a.sources[row])} and {shown(b.sources[row])}"
    raise ValueError(
        f"{first.folder} (split {shown(first.split)} of {first.run.dataset.path}) and {other.folder} (split "
        f"{shown(other.split)} of {other.run.dataset.path}) have different test sets: {difference}; compare runs on the "
        "same test set, or choose one by --split and --dataset"
    )


def _difference(a: Metadata, b: Metadata) -> str | None:
    """Return the first difference of classes, number of examples and labels."""
    if a.class_names != b.class_names:
        return f"the classes are {listed(a.class_names, b.class_names)} and {listed(b.class_names, a.class_names)}"
    if len(a) != len(b):
        return f"they have {len(a):,} and {len(b):,} examples"
    unequal = np.flatnonzero(a.labels != b.labels)
    return f"the label of example {unequal[0]} differs" if unequal.size else None


def compare_runs(
    runs: Sequence[ComparedRun], attribute: str | None = None, min_group_size: int | None = None
) -> list[Comparison]:
    """Compare each run with the first.

    Args:
        runs: Runs on the same test set.
        attribute: Attribute that defines the groups. Default: that of the first run. The others must have the same.
        min_group_size: Minimum size of a group that can be the worst group. Default: setting of the first run.

    Returns:
        A comparison for each run after the first.

    Raises:
        ValueError: If the test sets or the attributes of the runs differ.
    """
    first = runs[0]
    for other in runs[1:]:
        check_same_test_set(first, other)
        mine, theirs = first.run.config.attribute, other.run.config.attribute
        if attribute is None and mine != theirs:
            raise ValueError(
                f"{first.folder} has groups by attribute {shown(mine)}, {other.folder} by {shown(theirs)}; choose one by "
                "--attribute"
            )
    config = first.run.config
    chosen = attribute if attribute is not None else config.attribute
    groups: GroupIndex = first.data.groups(chosen or None)
    found = first.data.cells() if config.cells and attribute is None else None
    cells = Cells(*found) if found is not None else None
    smallest = config.min_group_size if min_group_size is None else min_group_size
    correct = [np.equal(run.predicted, groups.labels) for run in runs]
    return [compare_outcomes(correct[0], other, groups, cells=cells, min_group_size=smallest) for other in correct[1:]]
