"""The report of a comparison of runs: a picture, report.html and report.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spurmix.cli.report.page import write_page
from spurmix.cli.report.pictures import draw_differences
from spurmix.cli.versions import versions
from spurmix.train.runs.files import write_text

if TYPE_CHECKING:
    from spurmix.train.comparison import Comparison


def write_report(out: Path, names: Sequence[str], comparisons: Sequence[Comparison], result: dict[str, object]) -> None:
    """Write report.json, differences.png and report.html.

    Args:
        out: Folder to write to.
        names: Names of the runs, the first run first.
        comparisons: Comparison of each other run with the first.
        result: Contents of report.json.
    """
    result = {**result, "versions": versions()}
    write_text(out / "report.json", json.dumps(result, indent=1))
    named = list(zip(names[1:], comparisons, strict=True))
    pictures = [draw_differences(out, names[0], named)]
    write_page(out, "compare.html.j2", pictures, first=names[0], comparisons=named, result=result)
