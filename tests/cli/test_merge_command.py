"""`spurmix merge`: joins given datasets, or all shards of a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spurmix.data.dataset.packed import PackedDataset


def test_merge_joins_given_shards(table: Path, table_options: list[str], tmp_path: Path, command: Any) -> None:
    for number in range(2):
        assert command("pack", table, tmp_path / "p", *table_options, "--shard", f"{number}/2").returncode == 0
    done = command("merge", tmp_path / "p.shard-0-of-2", tmp_path / "p.shard-1-of-2", "--target", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert PackedDataset(tmp_path / "whole").splits == {"train": 30, "test": 10}


def test_ranks_pack_shards_and_merge_finds_them(
    table: Path, table_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "201":
        monkeypatch.setenv("RANK", rank)
        output = command("pack", table, tmp_path / "p", *table_options).stdout
        assert f"p.shard-{rank}-of-3" in output and f"spurmix merge --target {tmp_path / 'p'}" in output
    assert command("merge", "--target", tmp_path / "p").returncode == 0
    assert PackedDataset(tmp_path / "p").splits == {"train": 30, "test": 10}


def test_a_single_shard_needs_no_merge(table: Path, table_options: list[str], tmp_path: Path, command: Any) -> None:
    output = command("pack", table, tmp_path / "one", *table_options, "--shard", "0/1").stdout
    assert "40 examples" in output and "merge" not in output
