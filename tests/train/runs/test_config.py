"""Settings of runs: origins, TOML file, recipes, policies, invalid settings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spurmix import policies
from spurmix.core.lam import Beta, Fixed
from spurmix.train.options import FinetuneOptions
from spurmix.train.runs.config import (
    DEFAULT,
    FIELDS,
    RunConfig,
    build_policy,
    parse_policy_option,
    read_run_config,
    resolve,
    to_toml,
)
from spurmix.train.runs.recipes import RECIPES
from spurmix.train.schedule import factor


def test_settings_come_from_defaults_recipe_file_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'recipe = "waterbirds"\nweights = "w.pth"\nseed = 3\nlearning_rate = 1\n[policy_options]\nlam = "beta(1, 3)"\n'
    )
    made = resolve({"seed": 4}, file)
    assert made.seed == 4 and made.learning_rate == 1.0 and made.weight_decay == 1.0 and made.epochs == 300.0
    assert made.max_checkpoints == DEFAULT.max_checkpoints and made.weights == str(tmp_path / "w.pth")
    assert resolve({"epochs": 2.0}, base=dataclasses.replace(DEFAULT, steps=7)).steps == 0
    with pytest.raises(ValueError, match="weights: the recipe celeba requires resnet50 pre-trained on ImageNet"):
        resolve({}, recipe="celeba")
    assert resolve({"model": "minilm"}, recipe="civilcomments").weights == ""  # minilm has its own weights
    assert resolve({}, file, "celeba").batch_size == 64
    assert repr(build_policy(dataclasses.replace(made, policy="balance_attributes"))).count("Beta(1, 3)") == 1


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_settings(name: str) -> None:
    made = resolve({"weights": "/w"}, recipe=name)
    assert made.select == "best" and made.batch_size == RECIPES[name].batch_size
    assert resolve({**RECIPES[name].config(), "weights": "/w"}) == made  # names and types are those of settings


texts = st.text(st.characters(codec="utf-8"), max_size=20)


@given(texts, st.dictionaries(texts, st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False),
       texts, st.booleans(), st.lists(st.integers(0, 9), max_size=3)), max_size=3), st.floats(0, 1e6))  # fmt: skip
def test_settings_are_restored_from_their_file(text: str, options: dict[str, Any], rate: float) -> None:
    config = dataclasses.replace(DEFAULT, attribute=text, policy_options=options, learning_rate=rate)
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    file = folder / "spurmix-test-settings.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert resolve({}, file) == config
    file.unlink()


def test_options_of_a_policy() -> None:
    assert [parse_policy_option(t) for t in ("p=0.5", "alpha = 2", "labels=keep", 'lam="beta(1,2)"', "lam=fixed(0.5)", "prior=[[1, 0]]")] == [
        ("p", 0.5), ("alpha", 2), ("labels", "keep"), ("lam", "beta(1,2)"), ("lam", "fixed(0.5)"), ("prior", [[1, 0]]),
    ]  # fmt: skip
    made = build_policy(RunConfig(policy="lisa", policy_options={"p": 0.25, "alpha": 1}))
    assert made.name == "lisa" and made.lam == Beta(1)
    assert build_policy(RunConfig(policy_options={"lam": "Fixed( 0.25 )"})).lam == Fixed(0.25)
    assert {f.name for f in dataclasses.fields(RunConfig)} == set(FIELDS) and set(policies.__all__) >= {DEFAULT.policy}


def test_stages_of_the_step_schedule() -> None:
    assert [round(factor("step", k, 10, 0.0, 5), 6) for k in range(10)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
        1e-3,
        1e-3,
        1e-4,
        1e-4,
    ]
    assert [factor("step", k, 4, 0.5) for k in (0, 1)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ("sead = 1", "run.toml: sead is not a setting; did you mean seed?"),
        ("out = 1", "run.toml: out is a flag of the command"),
        ("momentum = 1.5", "run.toml: momentum must be in [0, 1], got 1.5"),
        ("seed = -1", "run.toml: seed must be in [0, 9223372036854775807], got -1"),
        ("seed = 1.5", "run.toml: seed must be an integer, got float"),
        ("flip = 1", "run.toml: flip must be True or False, got int"),
        ("learning_rate = nan", "run.toml: learning_rate must be 0 or more, got nan"),
        ('schedule = "linearly"', "run.toml: schedule must be one of cosine,"),
        ("attribute = 3", "run.toml: attribute must be a string, got 3"),
        ("policy_options = 3", "run.toml: policy_options must be a table, got 3"),
        ("keep = 1\nmax_checkpoints = 1", "run.toml: keep is the deprecated name of max_checkpoints, got both"),
        ('recipe = "imagenette"', "recipe must be one of waterbirds,"),
        ("epochs = 0", "epochs must be positive"),
        ("seed = ", "run.toml is not valid TOML: "),
    ],
)
def test_errors_name_invalid_settings(toml: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(toml)
    with pytest.raises(ValueError) as caught:
        resolve({}, tmp_path / "run.toml")
    assert text in str(caught.value)


def test_flags_without_effect_are_errors(tmp_path: Path) -> None:
    for flags, text in (
        (dict(stages=4), "--stages has no effect with schedule cosine; it requires schedule step"),
        (
            dict(memory=1.0, tier="cache"),
            "--memory has no effect with tier cache; it requires tier auto or pinned or disk",
        ),
        (dict(memory=1.0, tier="device"), "--memory has no effect with tier device"),
        (dict(dro_step=0.1), "--dro-step has no effect with objective erm; it requires objective group_dro"),
        (dict(momentum=0.8), "--momentum has no effect with optimizer adamw; it requires optimizer sgd"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            resolve(flags)
    (tmp_path / "run.toml").write_text('schedule = "step"\nstages = 2\ntier = "disk"\noptimizer = "sgd"\n')
    made = resolve(dict(stages=4, memory=1.5, momentum=0.8), tmp_path / "run.toml")
    assert (made.stages, made.memory, made.momentum) == (4, 1.5, 0.8)
    assert resolve(dict(memory=1.0)).tier == "auto"
    assert resolve({}, tmp_path / "run.toml", base=resolve(dict(schedule="cosine"))).stages == 2  # allowed in a file


def test_deprecated_names_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('keep = 5\nwhere = "features"\n')
    with pytest.warns(DeprecationWarning, match="is deprecated") as caught:
        config = resolve({}, file)
    assert (config.max_checkpoints, config.mix_at) == (5, "features")
    assert [str(warning.message) for warning in caught] == [
        f"{file}: keep is deprecated, use max_checkpoints",
        f"{file}: where is deprecated, use mix_at",
    ]
    with pytest.warns(DeprecationWarning, match="spurmix train: --keep is deprecated, use --max-checkpoints"):
        assert resolve({"keep": 3}).max_checkpoints == 3
    assert read_run_config(file) == config  # without a warning


def test_options_of_finetune_are_those_of_the_settings() -> None:
    config = resolve({"learning_rate": 0.5, "clip": 2.0, "optimizer": "sgd", "momentum": 0.8})
    options = FinetuneOptions(learning_rate=0.5, clip=2.0, optimizer="sgd", momentum=0.8)
    assert config.finetune_options() == options
    assert DEFAULT.finetune_options() == FinetuneOptions()
