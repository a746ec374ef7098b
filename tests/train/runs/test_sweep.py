"""spurmix sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_commands import FEATURES, flags, invoke

from spurmix.cli.sweep import NAMES
from spurmix.train.sweep.methods import METHODS

SMALL = (
    "--trials",
    1,
    "--seeds",
    2,
    "--setting",
    "epochs=2",
    "--setting",
    "batch_size=24",
    "--setting",
    "learning_rate=0.05",
)


def test_sweep_of_a_dataset_resumes(features: Path, tmp_path: Path) -> None:
    arguments = ("sweep", features, "--methods", "erm,group_balanced", "--out", tmp_path / "out", *SMALL)
    first = invoke(*arguments)
    assert first.count("validation worst group") == 6 and "difference from erm" in " ".join(first.split())
    again = invoke(*arguments)
    assert "validation worst group" not in again
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {s["method"] for s in report["methods"]} == {"erm", "group_balanced"} and len(report["rows"]) == 4
    more = invoke(*arguments[:-1], "learning_rate=0.01")  # another protocol
    assert more.count("validation worst group") == 6


def test_sweep_starts_from_the_model_of_a_run(features: Path, tmp_path: Path) -> None:
    invoke("train", features, "--out", tmp_path / "run", "--policy", "erm", *flags(FEATURES))
    text = invoke(
        "sweep", tmp_path / "run", "--methods", "dfr", "--out", tmp_path / "out", "--json", "--trials", 1, "--seeds", 1
    )
    found = json.loads(text[text.index("{\n") :])
    assert found["reference"] == "dfr" and found["rows"][0]["worst"] > 0.5
    with pytest.raises(ValueError, match="--pretrain-epochs is for a dataset"):
        invoke("sweep", tmp_path / "run", "--pretrain-epochs", 1, "--out", tmp_path / "other")


def test_help_names_all_methods() -> None:
    assert tuple(METHODS) == NAMES


def test_errors(features: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--methods", "erm,dffr"), "methods must be one of .*dfr"),
        (
            ("--setting", "validation_split=none"),
            "validation_split: sweep requires a validation split and a test split",
        ),
        (("--trials", 100), "trials must be at most"),
        (("--setting", "epoch=2"), "epoch is not a setting; did you mean epochs"),
        (("--setting", "epochs"), "--setting must be name=value, got 'epochs'"),
    ):
        with pytest.raises(ValueError, match=message):
            invoke("sweep", features, "--out", tmp_path / "out", *arguments)
