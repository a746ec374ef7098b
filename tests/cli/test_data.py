"""The commands on packed datasets, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spurmix.cli.data import every_policy
from spurmix.data.store import PackedDataset


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spurmix", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rows = ["file,animal,place,part"]
    for n in range(40):
        Image.fromarray(np.full((12, 12, 3), 6 * n, dtype=np.uint8)).save(root / f"{n}.png")
        animal, place = ("cat", "dog")[n % 2], ("in", "out")[(n % 2) ^ (n % 5 == 0)]
        rows.append(f"{n}.png,{animal},{place},{'train' if n < 30 else 'test'}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root / "list.csv"


OPTIONS = ["--layout", "table", "--path-column", "file", "--label", "animal", "--attribute", "place", "--split", "part", "--size", 8]  # fmt: skip


def test_pack_inspect_audit_verify(table: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    done = run("pack", table, target, *OPTIONS)
    assert done.returncode == 0 and "40 examples" in done.stdout and done.stderr == "", done.stderr
    shown = run("inspect", target, "--sheet", tmp_path / "sheet.png")
    assert shown.returncode == 0, shown.stderr
    for text in ("train 30, test 10", "cat", "out", "correlation in the data: 0.", "balance_attributes", "mixpro"):
        assert text in shown.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 96, 4 * (96 + 18))
    told = run("audit", target, "--json")
    found = json.loads(told.stdout)
    assert found["residual"] < 1e-6 < found["raw"]
    assert "0.6000 in the data, 0.6000 after mixi" in run("audit", target, "--policy", "erm").stdout
    assert "every byte is as it was written" in run("verify", target).stdout
    data = bytearray((target / "images.npy").read_bytes())
    data[-1] ^= 255
    (target / "images.npy").write_bytes(data)
    bad = run("verify", target)
    assert bad.returncode == 2 and "images.npy: bytes" in bad.stdout and "is damaged in 1 places" in bad.stderr


def test_shards_and_merge(table: Path, tmp_path: Path) -> None:
    for number in range(2):
        assert run("pack", table, tmp_path / "p", *OPTIONS, "--shard", f"{number}/2").returncode == 0
    done = run("merge", tmp_path / "p.shard-0-of-2", tmp_path / "p.shard-1-of-2", "--target", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert PackedDataset(tmp_path / "whole").splits == {"train": 30, "test": 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "nowhere.csv", "t", "--layout", "table"), "there is no file nowhere.csv"),
        (("pack", "nowhere", "t"), "there is no folder nowhere"),
        (("pack", "nowhere", "t", "--shard", "x"), "--shard must be i/n, such as 0/4, got 'x'"),
        (("inspect", "nowhere"), "nowhere is no folder"),
        (("verify", "nowhere"), "nowhere is no folder"),
        (("audit", "nowhere", "--policy", "magic"), "--policy must be one of erm,"),
        (("merge", "nowhere", "--target", "t"), "nowhere is no folder"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "spurmix", *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_policy_is_named() -> None:
    assert set(every_policy()) == {*__import__("spurmix").policies.__all__} - {"upweight"}
