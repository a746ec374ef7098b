"""A progress bar with speed and remaining time, shown on terminals."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from spurmix.core.names import printable

T = TypeVar("T")


def bar(
    batches: Iterable[T],
    name: str,
    *,
    total: int,
    size: int,
    done: int = 0,
    unit: str = "examples",
    shown: bool | None = None,
) -> Iterator[T]:
    """Iterate over batches and show a progress bar.

    Args:
        batches: The batches.
        name: Label of the bar.
        total: Number of batches, including the completed ones.
        size: Number of units per batch.
        done: Number of batches completed before.
        unit: Name of the units.
        shown: Whether to show the bar. Default: only if stderr is a terminal.

    Yields:
        Each batch.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield from batches
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(printable(name)), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=total, completed=done, rate="")
        began = time.perf_counter()
        for count, batch in enumerate(batches, 1):
            yield batch
            speed = count * size / (time.perf_counter() - began)
            progress.update(task, completed=done + count, rate=f"{speed:,.0f} {unit}/s")
