"""Opens the finished run that a command reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spurmix.cli.terminal import show

if TYPE_CHECKING:
    from spurmix.train.runs.finished import FinishedRun


def open_finished_run(folder: Path, dataset: str | None, show_notes: bool = True) -> FinishedRun:
    """Open a finished run.

    Args:
        folder: Folder of the run.
        dataset: Packed dataset to use. Default: the run's.
        show_notes: Whether to print a note if the run's dataset has changed.

    Returns:
        The run.
    """
    from spurmix.train.runs.finished import open_run

    opened = open_run(folder, dataset)
    if show_notes and dataset is None and not opened.same_data:
        show(f"note: {opened.dataset.path} has changed since the run was trained on it", error=True)
    return opened
