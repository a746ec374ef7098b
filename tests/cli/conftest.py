"""A table of small images, and a dataset packed from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from spurmix.cli.app import app


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file with 40 images: 30 in split train, 10 in split test."""
    root = tmp_path_factory.mktemp("images")
    rows = ["file,animal,place,part"]
    for n in range(40):
        Image.fromarray(np.full((12, 12, 3), 6 * n, dtype=np.uint8)).save(root / f"{n}.png")
        animal, place = ("cat", "dog")[n % 2], ("in", "out")[(n % 2) ^ (n % 5 == 0)]
        rows.append(f"{n}.png,{animal},{place},{'train' if n < 30 else 'test'}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root / "list.csv"


@pytest.fixture(scope="session")
def table_options() -> list[str]:
    """Options of `spurmix pack` for `table`."""
    columns = ["--path-column", "file", "--label", "animal", "--attribute", "place", "--split", "part"]
    return ["--layout", "table", *columns, "--size", "8"]


@pytest.fixture
def packed(table: Path, table_options: list[str], tmp_path: Path) -> Path:
    """A dataset packed from `table`."""
    done = CliRunner().invoke(
        app, ["pack", str(table), str(tmp_path / "packed"), *table_options], catch_exceptions=False
    )
    assert done.exit_code == 0
    return tmp_path / "packed"
