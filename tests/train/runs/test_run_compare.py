"""spurmix compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from packed_data import pack
from run_commands import FEATURES, flags, invoke
from safetensors.torch import load_file, save_file

from spurmix.train.runs.files import PREDICTIONS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("data") / "features", "features")


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs with two policies on the same data."""
    folder = tmp_path_factory.mktemp("runs")
    for policy in ("erm", "group_balanced"):
        invoke("train", data, "--out", folder / policy, "--policy", policy, *flags(FEATURES))
    return [folder / "erm", folder / "group_balanced"]


def test_compare_prints_tests_and_writes_a_report(runs: list[Path], tmp_path: Path) -> None:
    text = invoke("compare", *runs, "--out", tmp_path / "out")
    assert "worst" in text and "exact McNemar tests" in " ".join(text.split()) and "report.html" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "group_balanced against erm" in page and page.count("data:image/png;base64,") == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    evaluations = [json.loads(invoke("evaluate", run, "--json")) for run in runs]
    found = report["comparisons"][0]
    assert found["worst_group"]["first"] == evaluations[0]["worst_group"]
    assert found["worst_group"]["second"] == evaluations[1]["worst_group"]
    assert [row["second"] for row in found["groups"]] == [row["accuracy"] for row in evaluations[1]["groups"]]
    assert [run["saved_predictions"] for run in report["runs"]] == [True, True]


def test_predictions_are_computed_if_the_run_has_none(runs: list[Path], data: Path, tmp_path: Path) -> None:
    earlier = shutil.copytree(runs[0], tmp_path / "erm")
    (earlier / PREDICTIONS).unlink()
    saved = json.loads(invoke("compare", *runs, "--json"))
    computed = json.loads(invoke("compare", earlier, runs[1], "--json", "--dataset", data))
    assert computed["runs"][0]["saved_predictions"] is False
    assert computed["comparisons"] == saved["comparisons"]
    train = json.loads(invoke("compare", *runs, "--json", "--split", "train"))  # not saved
    assert train["split"] == "train" and not train["runs"][0]["saved_predictions"]


def test_predictions_of_other_weights_or_damaged_ones_are_not_used(runs: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs[0], runs[0].with_name("copy"))
    (copy / PREDICTIONS).write_bytes((runs[1] / PREDICTIONS).read_bytes())
    assert not json.loads(invoke("compare", copy, runs[1], "--json"))["runs"][0]["saved_predictions"]
    content = bytearray((copy / PREDICTIONS).read_bytes())
    content[-1] ^= 1
    (copy / PREDICTIONS).write_bytes(content)
    with pytest.raises(ValueError, match=r"predictions.safetensors is damaged: the predictions do not match"):
        invoke("compare", copy, runs[1])
    save_file(load_file(runs[0] / PREDICTIONS), copy / PREDICTIONS)  # without a header
    with pytest.raises(ValueError, match=r"predictions.safetensors"):
        invoke("compare", copy, runs[1])
    shutil.rmtree(copy)


def test_runs_on_different_test_sets_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = pack(tmp_path / "other", "features", seed=1)
    invoke("train", other, "--out", tmp_path / "run", *flags(FEATURES))
    with pytest.raises(ValueError, match=r"different test sets: the label of example \d+ differs; compare runs on the"):
        invoke("compare", runs[0], tmp_path / "run")
    with pytest.raises(ValueError, match="different test sets: they have 120 and 80 examples"):
        invoke("train", other, "--out", tmp_path / "val", *flags(FEATURES), "--test-split", "none")
        invoke("compare", runs[0], tmp_path / "val")


@pytest.mark.parametrize("count", [0, 1])
def test_one_run_is_not_enough(count: int, runs: list[Path]) -> None:
    from typer.testing import CliRunner

    from spurmix.cli.app import app

    done = CliRunner().invoke(app, ["compare", *map(str, runs[:count])])
    assert done.exit_code != 0
    if count:
        with pytest.raises(ValueError, match="compare requires two or more runs"):
            invoke("compare", *runs[:count])


def test_names_and_attribute(runs: list[Path], data: Path) -> None:
    found = json.loads(invoke("compare", *runs, runs[0], "--json", "--attribute", "colour"))
    assert [c["second"] for c in found["comparisons"]] == [str(runs[1]), str(runs[0])]
    assert found["comparisons"][1]["worst_group"]["difference"] == 0
    assert np.isclose(found["comparisons"][0]["worst_group"]["first"], found["comparisons"][1]["worst_group"]["first"])
