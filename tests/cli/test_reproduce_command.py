"""spurmix reproduce."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_samples import packed_waterbirds
from typer.testing import CliRunner

from spurmix.cli.app import app


def reproduce(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["reproduce", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_reproduce_compares_methods_with_publications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spurmix.cli.report.run.write_report", lambda *arguments: None)
    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data, out = packed_waterbirds(tmp_path), tmp_path / "out"
    (tmp_path / "small.toml").write_text('model = "small"\nsteps = 4\nlearning_rate = 0.02\nweight_decay = 0.0\n')
    arguments = ["waterbirds", data, "--out", out, "--config", tmp_path / "small.toml", "--device", "cpu",
                 "--method", "dfr", "--method", "dispel"]  # fmt: skip
    output = reproduce(*arguments, "--seeds", 2)
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {f"{name}-{seed}" for name in ("dfr-first", "dfr", "dispel") for seed in (0, 1)}
    results = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in results["results"]] == ["dfr", "dispel"]
    assert [row["published"] for row in results["results"]] == [92.9, None]
    assert all(len(row["worst_group"]) == 2 and max(row["worst_group"]) <= 1 for row in results["results"])
    assert "92.9" in output and "Kirichenko et al. 2023 (DFR)" in output and "±" in output
    reproduce(*arguments, "--seeds", 2)  # only evaluates
    assert json.loads((out / "results.json").read_text()) == results
    torch.set_num_threads(threads)


def test_errors_come_before_training(tmp_path: Path) -> None:
    for arguments, text in (
        (("waterbird", tmp_path), "recipe must be one of waterbirds, celeba"),
        (("waterbirds", tmp_path, "--method", "dfrr"), "method of the recipe waterbirds must be one of erm, dfr"),
        (("waterbirds", tmp_path), "weights: the recipe waterbirds requires resnet50 pre-trained on ImageNet"),
        (("waterbirds", tmp_path / "none", "--weights", "w", "--method", "erm"), "none is not a folder"),
    ):
        with pytest.raises(ValueError, match=text):
            reproduce(*arguments, "--out", tmp_path / "out", "--device", "cpu")
    assert not (tmp_path / "out").exists()
