"""`spurmix retrain-head`: heads of finished runs and of packed features, as new runs that other commands open."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_commands import invoke, prepare
from safetensors.torch import load_file
from typer.testing import CliRunner

from spurmix import extract_features, fit_head
from spurmix.cli.app import app
from spurmix.data.dataset.format import Metadata, write_description, write_metadata
from spurmix.data.dataset.packed import PackedDataset
from spurmix.train.heads.options import HeadOptions
from spurmix.train.runs import retrain
from spurmix.train.runs.files import MODEL, read_finished
from spurmix.train.runs.finished import open_run


def failed(*arguments: Any) -> str:
    """Message of a command that fails with an expected error."""
    done = CliRunner().invoke(app, ["retrain-head", *map(str, arguments)])
    assert isinstance(done.exception, ValueError), done.output
    return str(done.exception)


def write_features(
    folder: Path, features: Any, label: Any, attribute: Any, splits: list[str], classes: int = 2
) -> Path:
    folder.mkdir()
    np.save(folder / "features.npy", np.asarray(features, dtype=np.float32))
    names = tuple(f"class{k}" for k in range(classes))
    rows = [f"{n}.png" for n in range(len(label))]
    metadata = Metadata(
        np.asarray(label), splits, rows, {"colour": np.asarray(attribute)}, names, {"colour": ("dark", "red")}
    )
    write_metadata(folder, metadata)
    write_description(folder, "features", metadata, {})
    return folder


@pytest.mark.parametrize("method", ["dfr", "dispel", "logistic", "inferred"])
def test_features_are_fitted_as_by_fit_head(method: Any, features: Path, tmp_path: Path) -> None:
    out, grid = tmp_path / "head", ["--C", "1", "--C", "0.1"]
    options = HeadOptions(C=[1.0, 0.1], seed=3)
    if method == "dispel":
        grid += ["--s", "0.5", "--s", "1", "--alpha", "1", "--fits", "3", "--search-fits", "2"]
        options = HeadOptions(C=[1.0, 0.1], seed=3, s=[0.5, 1.0], alpha=[1.0], fits=3, search_fits=2)
    if method == "inferred":
        options = HeadOptions(C=[1.0, 0.1], seed=3, penalty="l2")
    printed = invoke("retrain-head", features, "--method", method, "--out", out, "--seed", 3, *grid)
    assert f"{method}: accuracy on the validation examples" in printed and printed.count("chosen") == 1
    assert f"spurmix evaluate {out}" in printed.replace("\n", "")
    packed = PackedDataset(features)
    train, val = packed.split("train"), packed.split("val")
    head = fit_head(
        np.array(train.array), train.groups(), method, validation=(np.array(val.array), val.groups()), options=options
    )
    weights = load_file(out / MODEL)
    assert torch.equal(weights["weight"], head.weight) and torch.equal(weights["bias"], head.bias)
    described = json.loads((out / retrain.HEAD).read_text())
    assert described["method"] == method and described["source"] == os.path.relpath(features, out)
    assert [t["settings"] for t in described["trials"]] == [t.settings for t in head.trials]
    assert described["options"]["C"] == [1.0, 0.1]
    assert described["best"] in described["trials"]


def test_other_commands_open_the_result(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "head"
    result = json.loads(invoke("retrain-head", features, "--out", out, "--json"))
    assert result["folder"] == str(out) and result["method"] == "dfr" and len(result["trials"]) == 7
    shown = json.loads(invoke("evaluate", out, "--split", "val", "--json"))
    assert shown["worst_group"] == pytest.approx(result["best"]["worst_group"])
    assert "worst group" in invoke("export", out) and (out / "model.onnx").is_file()
    assert open_run(out).same_data


def test_a_run_gets_a_new_head_only(finished: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "head"
    printed = invoke("retrain-head", finished, "--out", out, "--C", "0.1", "--device", "cpu")
    assert "0.1" in printed
    before, after = load_file(finished / MODEL), load_file(out / MODEL)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    opened = open_run(out)
    assert opened.config.freeze == "backbone" and opened.config.model == "small" and opened.same_data
    assert opened.dataset.path.resolve() == images.resolve()
    data = opened.split("val")
    inputs = extract_features(opened.model, data.source)
    assert inputs.shape[0] == len(data.source)


def test_the_result_is_the_same_to_the_last_bit(features: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        invoke("retrain-head", features, "--method", "dispel", "--out", tmp_path / name, "--C", 0.1, "--s", 0.7)
    assert (tmp_path / "a" / MODEL).read_bytes() == (tmp_path / "b" / MODEL).read_bytes()
    invoke("retrain-head", features, "--method", "dispel", "--out", tmp_path / "c", "--C", 0.1, "--s", 0.7, "--seed", 1)
    assert (tmp_path / "a" / MODEL).read_bytes() != (tmp_path / "c" / MODEL).read_bytes()


def test_sgd_trains_with_a_policy(features: Path, tmp_path: Path) -> None:
    arguments = ("--method", "sgd", "--policy", "lisa", "--policy-option", "p=1", "--epochs", 3)
    out = tmp_path / "head"
    result = json.loads(invoke("retrain-head", features, "--out", out, *arguments, "--learning-rate", 0.05, "--json"))
    assert result["best"]["settings"] == {"epochs": 3.0, "learning_rate": 0.05}
    config = open_run(out).config
    assert (config.policy, config.policy_options, config.epochs) == ("lisa", {"p": 1}, 3.0)
    assert json.loads(invoke("evaluate", out, "--split", "val", "--json"))["worst_group"] == pytest.approx(
        result["best"]["worst_group"]
    )


def test_half_of_the_attributed_examples_choose_without_a_validation_split(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "head"
    invoke("retrain-head", features, "--out", out, "--validation-split", "none", "--C", 0.1, "--C", 1)
    train = PackedDataset(features).split("train")
    head = fit_head(np.array(train.array), train.groups(), "dfr", options=HeadOptions(C=[0.1, 1.0]))
    assert torch.equal(load_file(out / MODEL)["weight"], head.weight)
    one = invoke("retrain-head", features, "--out", tmp_path / "one", "--validation-split", "none", "--C", 0.1)
    assert "no validation examples were used" in one


def test_the_default_folder_is_next_to_the_source(features: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(features, copy)
    invoke("retrain-head", copy, "--C", 0.1)
    assert read_finished(tmp_path / "data-dfr" / MODEL)[1]["classes"] == ["upright", "level"]
    assert "data-dfr already exists" in failed(copy, "--C", 0.1)


def test_nothing_is_left_after_an_error(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / ".head.retraining-999999999"
    killed.mkdir()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(retrain, "write_weights", fail)
    assert f"--out: cannot write {tmp_path / 'head'} (disk full)" in failed(
        features, "--C", 0.1, "--out", tmp_path / "head"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--method", "drf"),
            "--method must be one of dfr, dispel, inferred, logistic, sgd, got 'drf'; did you mean 'dfr'?",
        ),
        (("--method", "lisa"), "--method must be one of dfr, dispel, inferred, logistic, sgd, got 'lisa'"),
        (("--s", 1), "--s is not an option of method dfr; it belongs to dispel"),
        (("--method", "logistic", "--fits", 2), "--fits is not an option of method logistic"),
        (("--method", "sgd", "--C", 2), "--C is not an option of method sgd"),
        (("--policy", "lisa"), "--policy is not an option of method dfr; it belongs to sgd"),
        (("--method", "sgd", "--policy", "lysa"), "did you mean 'lisa'?"),
        (("--C", 0), "C must be a positive finite number, got 0.0"),
        (("--C", "nan"), "C must be"),
        (("--method", "dispel", "--s", 2), "s must be in [0, 1]"),
        (("--penalty", "l3"), "penalty must be one of l1, l2"),
        (("--fits", 0), "fits must be"),
        (("--attribute", "color"), "attribute must be one of colour"),
        (("--validation-split", "dev"), "validation_split must be one of"),
        (("--dataset", "x"), "--dataset replaces the dataset of a run"),
    ],
)
def test_invalid_options(arguments: tuple[object, ...], message: str, features: Path, tmp_path: Path) -> None:
    assert message in failed(features, "--out", tmp_path / "head", *arguments)
    assert not list(tmp_path.iterdir())


def test_invalid_sources(images: Path, tmp_path: Path) -> None:
    assert "nowhere is not a folder; give the folder of a finished run" in failed(tmp_path / "nowhere")
    assert "is a dataset of images, which has no model" in failed(images, "--out", tmp_path / "head")
    run = prepare(images, tmp_path / "run", {"model": "small", "device": "cpu"})
    assert run.lock is not None
    run.lock.close()
    assert "is not finished" in failed(tmp_path / "run", "--out", tmp_path / "head")


def test_data_that_no_head_can_be_fitted_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y, a = rng.standard_normal((40, 3)), np.arange(40) % 2, np.arange(40) // 2 % 2
    splits = ["train"] * 20 + ["val"] * 20
    broken, constant = x.copy(), np.ones_like(x)
    broken[3, 1] = np.nan
    cases: dict[str, Any] = {
        "features must be finite, but row 3 is not": (broken, y, a, splits),
        "every feature is constant": (constant, y, a, splits),
        "no example has a known attribute": (x, y, np.where(np.arange(40) < 20, -1, a), splits),
        "class 'class1' has no example whose attribute is known": (x, y, np.where(y == 1, -1, a), splits),
        "validation has no example of group 'class0, red'": (
            x,
            y,
            np.where((np.arange(40) >= 20) & (y == 0), 0, a),
            splits,
        ),
        "got 20 of 30 classes": (x, y, a, splits, 30),
    }
    for k, (message, case) in enumerate(cases.items()):
        folder = write_features(tmp_path / str(k), *case)
        assert message in failed(folder, "--out", tmp_path / "head"), message
    assert not (tmp_path / "head").exists()
    small = write_features(tmp_path / "fitting", x, y, a, splits)
    assert "worst group" in invoke("retrain-head", small, "--out", tmp_path / "head")
