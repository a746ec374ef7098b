"""spurmix train, evaluate and export on images, features and texts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_recipes
import torch
from run_commands import FEATURES, IMAGES, flags, invoke, losses, train
from transformers import BertConfig, BertForSequenceClassification

from spurmix import PackedDataset, Predictor
from spurmix.data.pack.layouts.civilcomments import from_civilcomments
from spurmix.data.pack.texts import pack_texts
from spurmix.train.models import head_layer
from spurmix.train.runs.config import DEFAULT, resolve
from spurmix.train.runs.data import evaluate_split
from spurmix.train.runs.files import read_evaluations
from spurmix.train.runs.finished import open_run
from spurmix.train.runs.processes import Processes


def test_train_writes_settings_metrics_weights_and_a_report(finished: Path, images: Path) -> None:
    names = {p.name for p in finished.iterdir() if not p.name.startswith(".")}
    assert names >= {"config.toml", "metrics.jsonl", "evaluations.jsonl", "checkpoints", "run.json",
                     "model.safetensors", "report.html", "report.json", "accuracy.png", "audit.png", "curves.png", "samples.png"}  # fmt: skip
    assert [p.name for p in finished.iterdir() if p.name.startswith(".")] == [".lock"]
    assert len((finished / "metrics.jsonl").read_text().splitlines()) == 40
    report = json.loads((finished / "report.json").read_text())
    rows = read_evaluations(finished)
    assert [r["step"] for r in rows] == [8, 16, 24, 32, 40] and report["curve"] == rows
    best = max(rows, key=lambda r: r["worst_group"])
    assert report["training"]["kept_step"] == best["step"]
    assert report["evaluations"]["val"]["worst_group"] == best["worst_group"]
    assert (finished / report["config"]["dataset"]).resolve() == images.resolve() and report["config"][
        "attribute"
    ] == "colour"
    assert report["audit"]["residual"] < 1e-6 < report["audit"]["raw"]
    page = (finished / "report.html").read_text()
    assert "upright, red" in page and "crop_area" in page and page.count("data:image/png;base64,") == 4
    resolved = resolve({}, finished / "config.toml")
    assert resolved == resolve({**IMAGES, "dataset": str(images)}, base=dataclasses.replace(
        DEFAULT, attribute="colour", validation_split="val", test_split="test"))  # fmt: skip


def test_train_with_group_dro(features: Path, tmp_path: Path) -> None:
    settings = {**FEATURES, "steps": 8, "policy": "group_balanced", "objective": "group_dro"}
    out = tmp_path / "run"
    invoke("train", features, "--out", out, *flags(settings | {"dro_step": 0.5, "dro_adjustment": 2.0}))
    config = resolve({}, out / "config.toml")
    assert (config.objective, config.dro_step, config.dro_adjustment) == ("group_dro", 0.5, 2.0)
    robust = losses(out)
    train(features, tmp_path / "erm", settings | {"objective": "erm"})
    assert robust[0] != pytest.approx(losses(tmp_path / "erm")[0], rel=1e-4)
    shutil.rmtree(max((out / "checkpoints").iterdir()))
    (out / "model.safetensors").unlink()
    invoke("train", "--resume", "--out", out)
    assert losses(out) == robust


def test_evaluate_and_export_give_the_results_of_the_run(finished: Path, images: Path, tmp_path: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    found = json.loads(invoke("evaluate", finished, "--json"))
    assert found.pop("split") == "test" and found == report["evaluations"]["test"]
    assert "upright, dark" in invoke("evaluate", finished, "--split", "train", "--min-group-size", 30)
    effect = invoke("evaluate", finished, "--class", "level")
    assert "level, dark: " in effect and "level: difference" in effect and "upright" not in effect
    output = invoke("export", finished, "--out", tmp_path / "model.onnx")
    assert "argmax flips" in output
    test = PackedDataset(images).split("test")
    predicted = Predictor(tmp_path / "model.onnx").predict(np.asarray(test.array)).argmax(axis=1)
    assert np.mean(predicted == test.metadata.labels) == pytest.approx(report["evaluations"]["test"]["average"])


def test_train_without_held_out_data(features: Path, tmp_path: Path) -> None:
    output = invoke(
        "train",
        features,
        "--out",
        tmp_path / "run",
        *flags(FEATURES),
        "--train-split",
        "test",
        "--validation-split",
        "none",
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["evaluations"] == {} and report["config"]["test_split"] == "none" and "weights of batch 30" in output
    with pytest.raises(ValueError, match="no held-out split"):
        invoke("evaluate", tmp_path / "run")
    assert "worst group" in invoke("evaluate", tmp_path / "run", "--split", "train")


def test_pack_features_with_the_model_of_a_run(finished: Path, images: Path, tmp_path: Path) -> None:
    assert "440 examples" in invoke("features", images, tmp_path / "packed", "--weights", finished)
    opened, packed = open_run(finished), PackedDataset(tmp_path / "packed").split("test")
    with torch.inference_mode():
        logits = head_layer(opened.model)(torch.from_numpy(np.asarray(packed.array)))
    found = float((logits.argmax(dim=1).numpy() == packed.metadata.labels).mean())
    assert found == pytest.approx(json.loads((finished / "report.json").read_text())["evaluations"]["test"]["average"])


def test_kept_weights_are_those_of_the_best_evaluation(images: Path, tmp_path: Path) -> None:
    outcome = train(images, tmp_path / "best", IMAGES)
    again = train(images, tmp_path / "last", {**IMAGES, "select": "last"})
    rows = read_evaluations(tmp_path / "last")
    assert again.kept_step == 40 and not list((tmp_path / "last").glob("best-*"))
    best = max(rows, key=lambda r: r["worst_group"])
    assert outcome.kept_step == best["step"]
    assert outcome.evaluations["val"].worst_group == best["worst_group"] >= again.evaluations["val"].worst_group
    opened = open_run(tmp_path / "best")
    found = evaluate_split(opened.config, opened.model, opened.split(), opened.train_groups, Processes("cpu"))
    assert found.to_dict() == outcome.evaluations["test"].to_dict()


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Comments in the layout of CivilComments, packed, and a folder with a tiny BERT."""
    root = tmp_path_factory.mktemp("comments")
    test_recipes.write(root)
    test_recipes.tokenizer().save(str(root / "tokenizer.json"))
    listed = from_civilcomments(str(root), attribute="black")
    pack_texts(listed, root / "packed", tokenizer=root, max_length=24)
    config = BertConfig(vocab_size=len(test_recipes.WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(root / "bert")
    return root / "packed", root / "bert"


def test_texts_from_recipe_to_exported_model(comments: tuple[Path, Path], tmp_path: Path) -> None:
    dataset, weights = comments
    out = tmp_path / "run"
    shortened = ["--learning-rate", 0.02, "--epochs", 4, "--bucket", 2, "--device", "cpu"]
    output = invoke("train", dataset, "--out", out, "--recipe", "civilcomments", "--weights", weights, *shortened)
    assert "Koh et al. 2021" in output
    report = json.loads((out / "report.json").read_text())
    assert report["config"]["cells"] and report["config"]["attribute"] == "black"
    assert len(report["evaluations"]["test"]["cells"]) > 10
    shutil.rmtree(weights)  # a finished run does not read its initial weights
    found = json.loads(invoke("evaluate", out, "--json"))
    assert found["cells"] == report["evaluations"]["test"]["cells"]
    invoke("export", out)
    predictor = Predictor(out / "model.onnx")
    assert predictor.predict(["people the nice", "people the hateful"]).shape == (2, 2)
    assert "120 examples" in invoke("features", dataset, tmp_path / "features", "--weights", out)


@pytest.mark.parametrize(
    ("old", "new", "value"), [("--keep", "--max-checkpoints", "1"), ("--where", "--mix-at", "embeddings")]
)
def test_deprecated_flags(old: str, new: str, value: str, features: Path, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=f"spurmix train: {old} is deprecated, use {new}"):
        invoke("train", features, "--out", tmp_path / "run", *flags({**FEATURES, "steps": 4}), old, value)
    settings = resolve({}, tmp_path / "run" / "config.toml")
    assert str(getattr(settings, new.removeprefix("--").replace("-", "_"))) == value


def test_errors_are_one_message_without_a_traceback(images: Path, tmp_path: Path, command: Any) -> None:
    done = command("train", images, "--out", tmp_path / "run", "--policy", "magic")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("spurmix: --policy must be one of balance_attributes,")
    for arguments, text in (
        (("train", "--out", tmp_path), "dataset is required: give the folder"),
        (("train", tmp_path / "none"), "is not a folder"),
    ):
        with pytest.raises(ValueError, match=text):
            invoke(*arguments)
