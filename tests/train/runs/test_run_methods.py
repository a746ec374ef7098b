"""Methods of recipes: settings, and whole jobs on a small dataset in the layout of Waterbirds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_recipes
import torch
from published_samples import packed_waterbirds
from run_commands import call, flags, invoke, losses
from transformers import BertConfig, BertForSequenceClassification

from spurmix.data.pack.layouts.civilcomments import from_civilcomments
from spurmix.data.pack.texts import pack_texts
from spurmix.train.runs.config import DEFAULT, RunConfig, build_policy, resolve
from spurmix.train.runs.files import MODEL
from spurmix.train.runs.finished import open_run
from spurmix.train.runs.methods import METHOD_NAMES, METHODS, published_result
from spurmix.train.runs.stages import first_stage

SMALL: dict[str, Any] = dict(model="small", steps=12, batch_size=16, learning_rate=0.02, weight_decay=0.0, device="cpu")


@pytest.fixture(scope="session")
def waterbirds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_waterbirds(tmp_path_factory.mktemp("waterbirds"))


@pytest.fixture(scope="session")
def comments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Packed comments with a validation split, and a folder with a tiny BERT."""
    root = tmp_path_factory.mktemp("comments")
    test_recipes.write(root)
    table = root / "all_data_with_identities.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join(row.replace(",train,", ",val,") if n % 3 == 2 else row for n, row in enumerate(rows)))
    test_recipes.tokenizer().save(str(root / "tokenizer.json"))
    listed = from_civilcomments(str(root), attribute="black")
    pack_texts(listed, root / "packed", tokenizer=root, max_length=24)
    config = BertConfig(vocab_size=len(test_recipes.WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=32)  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(root / "bert")
    return root / "packed", root / "bert"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models train faster with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the pictures of reports, which take seconds."""
    monkeypatch.setattr("spurmix.cli.report.run.write_report", lambda *arguments: None)


def command(dataset: Path, out: Path, method: str, **changes: Any) -> str:
    settings = SMALL | changes
    return invoke("train", dataset, "--out", out, "--recipe", "waterbirds", "--method", method, *flags(settings))


@pytest.mark.parametrize(("recipe", "method"), [(recipe, method) for recipe in METHODS for method in METHODS[recipe]])
def test_settings_of_every_method_are_valid(recipe: str, method: str) -> None:
    chosen = METHODS[recipe][method]
    for stage in (1, 2):
        config = resolve({"weights": "/w"}, None, recipe, method=method, stage=stage)
        assert build_policy(config).name == config.policy
        for name, value in chosen.stage_settings(stage).items():
            assert getattr(config, name) == value
    assert chosen.source and (chosen.num_stages == 2) == (method in ("dfr", "dispel", "afr", "jtt"))


@pytest.mark.parametrize(
    ("recipe", "method", "expected"),
    [
        ("waterbirds", "dfr", (1e-3, 1e-3, 32, 100, "erm")),
        ("waterbirds", "group_dro", (1e-3, 1e-4, 128, 300, "group_balanced")),
        ("waterbirds", "lisa", (1e-3, 1e-4, 16, 300, "lisa")),
        ("waterbirds", "afr", (3e-3, 1e-4, 32, 40, "erm")),
        ("waterbirds", "jtt", (1e-5, 1.0, 128, 60, "erm")),
        ("celeba", "dfr", (1e-3, 1e-4, 128, 50, "erm")),
        ("celeba", "group_dro", (1e-4, 1e-4, 128, 50, "group_balanced")),
        ("celeba", "lisa", (1e-4, 1e-4, 16, 50, "lisa")),
    ],
)
def test_published_settings(recipe: str, method: str, expected: tuple[Any, ...]) -> None:
    made = resolve({"weights": "/w"}, None, recipe, method=method)
    assert (made.learning_rate, made.weight_decay, made.batch_size, made.epochs, made.policy) == expected
    assert made.crop == (method in ("dfr", "afr")) and (not made.crop or (made.crop_area == 0.7 and made.flip))


def test_second_stage_of_jtt() -> None:
    for recipe, rate, decay, epochs, factor in (("waterbirds", 1e-5, 1.0, 300, 100), ("celeba", 1e-5, 0.1, 50, 50)):
        made = resolve({"weights": "/w"}, None, recipe, method="jtt", stage=2)
        assert (made.learning_rate, made.weight_decay, made.epochs, made.select) == (rate, decay, epochs, "best")
        assert made.policy_options == {"factors": {"misclassified": factor}}
    assert resolve({"weights": "/w", "epochs": 3.0}, None, "celeba", method="jtt", stage=2).epochs == 3
    assert "CutMix" in METHODS["celeba"]["lisa"].note


def test_methods_have_the_same_names_and_published_results() -> None:
    for recipe, methods in METHODS.items():
        assert set(methods) == set(METHOD_NAMES) - ({"jtt"} if recipe == "imagenet" else set())
    found = published_result("waterbirds", "dfr")
    assert found is not None and found.worst_group == 92.9 and "Kirichenko" in found.source
    assert published_result("waterbirds", "dispel") is None and published_result("imagenet", "erm") is None


def test_afr_trains_on_four_fifths() -> None:
    config = RunConfig(epochs=40.0)
    made, regroup = first_stage(config, METHODS["waterbirds"]["afr"])
    assert made.epochs == 32 and made.policy_options == {"attributed_only": True} and regroup is not None
    from spurmix import GroupIndex

    groups = GroupIndex(np.repeat([0, 1], [100, 20]), np.full(120, -1))
    found = regroup(groups)
    held_out = found.attributes == -1
    assert np.bincount(groups.labels[held_out]).tolist() == [20, 4]
    assert not (regroup(groups).attributes != found.attributes).any()
    drawn = build_policy(dataclasses.replace(made, policy="erm")).resolve_arrays(found).selection.groups
    assert drawn.num_examples == 96


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("method", ["erm", "group_dro", "lisa", "balance_attributes"])
def test_methods_with_one_stage(method: str, waterbirds: Path, tmp_path: Path) -> None:
    output = command(waterbirds, tmp_path / "run", method)
    config = resolve({}, tmp_path / "run" / "config.toml")
    assert config.policy == METHODS["waterbirds"][method].settings["policy"] and config.steps == 12
    assert config.objective == ("group_dro" if method == "group_dro" else "erm")
    assert f"{method}: " in output
    assert not (tmp_path / "run-first").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("method", ["dfr", "dispel", "afr"])
def test_methods_that_retrain_the_head(method: str, waterbirds: Path, tmp_path: Path) -> None:
    out, first = tmp_path / "run", tmp_path / "run-first"
    output = command(waterbirds, out, method)
    assert METHODS["waterbirds"][method].source in output and "worst group" in output
    models = open_run(first).model.state_dict(), open_run(out).model.state_dict()
    changed = {name for name, value in models[0].items() if not bool((value == models[1][name]).all())}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    report = json.loads((out / "head.json").read_text())
    assert report["method"] == method
    if method != "afr":
        assert report["best"]["settings"]["C"] > 0
    assert "test" in invoke("evaluate", out, "--json")
    again = invoke(
        "train", waterbirds, "--out", out, "--recipe", "waterbirds", "--method", method, "--resume", *flags(SMALL)
    )
    table = [line for line in output.splitlines() if line.startswith("worst group")][-2:]
    assert [line for line in again.splitlines() if line.startswith("worst group")] == table and len(table) == 2
    with pytest.raises(ValueError, match="already has a run; resume it"):
        command(waterbirds, out, method)


@pytest.mark.usefixtures("no_report")
def test_jtt_draws_the_errors_of_the_first_stage_more_often(waterbirds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    output = command(waterbirds, out, "jtt")
    assert "misclassified (inferred)" in output
    first, second = (resolve({}, folder / "config.toml") for folder in (tmp_path / "run-first", out))
    assert first.policy == "erm" and first.select == "last" and second.policy == "upweight" and second.select == "best"
    whole = losses(out)
    (out / MODEL).unlink()
    shutil.rmtree(out / "checkpoints")
    invoke("train", waterbirds, "--out", out, "--recipe", "waterbirds", "--method", "jtt", "--resume", *flags(SMALL))
    assert losses(out) == whole
    found = json.loads(invoke("evaluate", out, "--json"))
    assert {row["name"] for row in found["groups"]} >= {"landbird, land", "waterbird, land"}


def test_errors_name_methods_and_recipes(waterbirds: Path, tmp_path: Path) -> None:
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--method", "dfr"), "--method requires a recipe"),
        (("--recipe", "waterbirds", "--weights", "w", "--method", "dispell"), "did you mean 'dispel'"),
        (("--recipe", "imagenet", "--weights", "w", "--method", "jtt"), "method of the recipe imagenet must be one of erm"),
        (("--recipe", "waterbirds", "--model", "small", "--method", "dfr", "--validation-split", "none", "--steps", 2,
          "--device", "cpu"), "dfr requires a validation split"),
    ]  # fmt: skip
    for arguments, text in cases:
        with pytest.raises(ValueError, match=text):
            invoke("train", waterbirds, "--out", tmp_path / "run", *arguments)
    (tmp_path / "run.toml").write_text('method = "dfr"')
    with pytest.raises(ValueError, match="method is a flag of the command, not a setting"):
        resolve({}, tmp_path / "run.toml", base=DEFAULT)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("method", ["dfr", "dispel", "afr", "jtt"])
def test_methods_with_two_stages_on_texts(method: str, comments: tuple[Path, Path], tmp_path: Path) -> None:
    dataset, weights = comments
    shortened = ["--learning-rate", 0.02, "--steps", 3, "--batch-size", 16, "--device", "cpu"]
    out = tmp_path / "run"
    output = invoke("train", dataset, "--out", out, "--recipe", "civilcomments", "--weights", weights, "--method",
                    method, *shortened)  # fmt: skip
    assert METHODS["civilcomments"][method].note in output
    found = json.loads(invoke("evaluate", out, "--json"))
    assert found["split"] == "test" and len(found["cells"]) > 10


@pytest.mark.slow
def test_jtt_with_two_processes(waterbirds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    call("train", waterbirds, "--out", out, "--recipe", "waterbirds", "--method", "jtt", *flags(SMALL), processes=2)
    assert open_run(out).config.policy == "upweight" and len(losses(out)) == SMALL["steps"]
