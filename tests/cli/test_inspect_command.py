"""`spurmix inspect`: tables and contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image


def test_inspect_shows_groups_and_policies(packed: Path, tmp_path: Path, command: Any) -> None:
    done = command("inspect", packed, "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    for text in (
        "train 30, test 10",
        "cat",
        "out",
        "correlation of class and attribute: 0.",
        "balance_attributes",
        "given lam",
    ):
        assert text in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 96, 4 * (96 + 18))
