"""spurmix train, evaluate and export: settings, the folder of a run, kills, processes, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_recipes
import torch
from packed_data import pack
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification
from typer.testing import CliRunner

from spurmix import PackedDataset, Predictor
from spurmix.cli.app import app
from spurmix.data.pack.layouts.civilcomments import from_civilcomments
from spurmix.data.pack.texts import pack_texts
from spurmix.train import models
from spurmix.train.models import head_layer
from spurmix.train.runs import files, run
from spurmix.train.runs.config import DEFAULT, RunConfig, resolve
from spurmix.train.runs.files import read_evaluations

IMAGES: dict[str, Any] = dict(
    model="small", batch_size=24, steps=40, crop=True, crop_area=0.5, flip=True, save_every=6, evaluate_every=0.8,
    learning_rate=0.03, schedule="constant", device="cpu",
)  # fmt: skip
FEATURES: dict[str, Any] = dict(batch_size=24, steps=30, learning_rate=0.05, accumulate=2, device="cpu")


def flags(settings: dict[str, Any]) -> list[str]:
    texts = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        texts += [flag] if value is True else [flag, str(value)]
    return texts


def command(*arguments: Any, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "spurmix", *map(str, arguments)]


def invoke(*arguments: Any) -> str:
    """A command in this process."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def call(*arguments: Any, processes: int = 1) -> str:
    done = subprocess.run(command(*arguments, processes=processes), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("data") / "images", "images")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("data") / "features", "features")


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images, by the command line."""
    out = tmp_path_factory.mktemp("runs") / "run"
    told = invoke("train", images, "--out", out, *flags(IMAGES))
    assert "after mixing" in told and "worst group" in told and "report.html" in told
    return out


def here(dataset: Path, out: Path, settings: dict[str, Any], resume: bool = False) -> run.Outcome:
    """A run in this process."""
    job = run.prepare(resolve({**settings, "dataset": str(dataset)}), out, run.Processes("cpu"), resume=resume)
    return run.train(job, resume=resume)


def test_a_run_leaves_settings_metrics_weights_and_a_report(finished: Path, images: Path) -> None:
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
    assert report["config"]["dataset"] == str(images) and report["config"]["attribute"] == "colour"
    assert report["audit"]["residual"] < 1e-6 < report["audit"]["raw"]
    page = (finished / "report.html").read_text()
    assert "upright, red" in page and "crop_area" in page and page.count("data:image/png;base64,") == 4
    resolved = resolve({}, finished / "config.toml")
    assert resolved == resolve({**IMAGES, "dataset": str(images)}, base=dataclasses.replace(
        DEFAULT, attribute="colour", validation_split="val", test_split="test"))  # fmt: skip


def test_evaluate_and_export_agree_with_the_run(finished: Path, images: Path, tmp_path: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    found = json.loads(invoke("evaluate", finished, "--json"))
    assert found.pop("split") == "test" and found == report["evaluations"]["test"]
    assert "upright, dark" in invoke("evaluate", finished, "--split", "train", "--min-group-size", 30)
    told = invoke("export", finished, "--out", tmp_path / "model.onnx")
    assert "argmax flips" in told
    test = PackedDataset(images).split("test")
    predicted = Predictor(tmp_path / "model.onnx").predict(np.asarray(test.array)).argmax(axis=1)
    assert np.mean(predicted == test.metadata.labels) == pytest.approx(report["evaluations"]["test"]["average"])


def test_a_run_without_held_out_data(features: Path, tmp_path: Path) -> None:
    told = invoke(
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
    assert report["evaluations"] == {} and report["config"]["test_split"] == "none" and "weights of batch 30" in told
    with pytest.raises(ValueError, match="no held-out split"):
        invoke("evaluate", tmp_path / "run")
    assert "worst group" in invoke("evaluate", tmp_path / "run", "--split", "train")


def test_features_of_a_run(finished: Path, images: Path, tmp_path: Path) -> None:
    assert "440 examples" in invoke("features", images, tmp_path / "packed", "--weights", finished)
    opened, packed = run.open_run(finished), PackedDataset(tmp_path / "packed").split("test")
    with torch.inference_mode():
        logits = head_layer(opened.model)(torch.from_numpy(np.asarray(packed.array)))
    found = float((logits.argmax(dim=1).numpy() == packed.metadata.labels).mean())
    assert found == pytest.approx(json.loads((finished / "report.json").read_text())["evaluations"]["test"]["average"])


def test_the_kept_weights_are_those_of_the_best_evaluation(images: Path, tmp_path: Path) -> None:
    outcome = here(images, tmp_path / "best", IMAGES)
    again = here(images, tmp_path / "last", {**IMAGES, "select": "last"})
    rows = read_evaluations(tmp_path / "last")
    assert again.kept_step == 40 and not list((tmp_path / "last").glob("best-*"))
    best = max(rows, key=lambda r: r["worst_group"])
    assert outcome.kept_step == best["step"]
    assert outcome.evaluations["val"].worst_group == best["worst_group"] >= again.evaluations["val"].worst_group
    opened = run.open_run(tmp_path / "best")
    found = run.measure(opened.config, opened.model, opened.part(), opened.train_groups, run.Processes("cpu"))
    assert found.to_dict() == outcome.evaluations["test"].to_dict()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def killed(images: Path, out: Path, finished: Path, kills: int) -> None:
    """Kill training at random moments, let it finish, and compare it with the run that nobody killed."""
    rng, hit = random.Random(kills), 0
    arguments = command("train", images, "--out", out, "--resume", *flags(IMAGES))
    for kill in range(kills):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if kill % 4 == 3:  # as it starts or ends
            wait: Any = time.monotonic() + rng.uniform(0, 12)
            while process.poll() is None and time.monotonic() < wait:
                time.sleep(0.01)
        else:  # as it trains
            begun, more = (
                len(losses(out)) if (out / "metrics.jsonl").exists() else 0,
                rng.randint(1, 3 if kills > 2 else 12),
            )
            mark = min(40, begun + more)
            while process.poll() is None and not ((out / "metrics.jsonl").exists() and len(losses_so_far(out)) >= mark):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), told
        hit += process.returncode != 0
        if (out / "model.safetensors").exists():
            run.open_run(out)
    assert hit >= 0.9 * kills, "training ended before it was killed"
    call("train", images, "--out", out, "--resume", *flags(IMAGES))
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert losses(out) == losses(finished)
    assert read_evaluations(out) == read_evaluations(finished)
    last = sorted((out / "checkpoints").iterdir())[-1], sorted((finished / "checkpoints").iterdir())[-1]
    state, expected = (load_file(p / "tensors.safetensors") for p in last)
    assert state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in state)


def losses_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_killed_training_ends_with_the_same_bits(images: Path, finished: Path, tmp_path: Path) -> None:
    killed(images, tmp_path / "run", finished, 1)


@pytest.mark.slow
def test_training_killed_twenty_times_ends_with_the_same_bits(images: Path, finished: Path, tmp_path: Path) -> None:
    killed(images, tmp_path / "run", finished, 20)


def test_resume_without_flags_goes_on_with_the_runs_own_settings(finished: Path) -> None:
    before = (finished / "model.safetensors").read_bytes()
    assert "weights of batch" in invoke("train", "--resume", "--out", finished)
    assert (finished / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_do_what_one_does(processes: int, features: Path, tmp_path: Path) -> None:
    alone = here(features, tmp_path / "alone", FEATURES)
    out = tmp_path / "together"
    call("train", features, "--out", out, *flags(FEATURES), processes=processes)
    report = json.loads((out / "report.json").read_text())
    assert report["processes"] == processes
    assert losses(out) == pytest.approx(list(alone.training.losses), abs=1e-5)
    for name, found in alone.evaluations.items():
        assert [g["correct"] for g in report["evaluations"][name]["groups"]] == [g.correct for g in found.groups]
    if processes > 2:
        found = json.loads(call("evaluate", out, "--json", "--device", "cpu", processes=processes))
        assert {k: v for k, v in found.items() if k != "split"} == report["evaluations"]["test"]


@pytest.mark.slow
def test_accelerate_launch(features: Path, tmp_path: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "-m",
        "spurmix",
    ]
    settings = flags(FEATURES)
    done = subprocess.run(
        [*launch, "train", str(features), "--out", str(tmp_path / "run"), *settings], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(model="bert"), "model: of images one of resnet50, small, got 'bert'"),
        (dict(model="small", weights="w.pth"), "weights: there is no file"),
        (dict(validation_split="dev"), "validation_split must be one of train, val, test, got 'dev'"),
        (dict(test_split="train"), "test_split: 'train' is trained on"),
        (dict(train_split="none"), "train_split must be one of train, val, test, got 'none'"),
        (dict(attribute="place"), "attribute must be one of colour, got 'place'"),
        (dict(policy="lisa", policy_options={"q": 1}), "policy_options: lisa accepts p, alpha, got 'q'"),
        (dict(policy="upweight"), "policy_options: upweight: "),
        (dict(policy_options={"lam": "gamma(2)"}), "lam must be beta(a, b), uniform(low, high) or fixed(value), got 'gamma(2)'"),
        (dict(policy_options={"lam": "beta(-1, 2)"}), "lam: 'beta(-1, 2)': Beta: a must be"),
        (dict(model="small", crop=False, crop_size=8, flip=True), "needs crop"),
        (dict(weights="nowhere.pth"), "there is no file"),
        (dict(model="small", min_group_size=50), "min_group_size 50: the largest group has only"),
        (dict(model="small", mix_at="features"), "mix_at is for texts"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_data(settings: dict[str, Any], text: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        here(images, tmp_path / "run", settings)
    assert text in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_left_alone(finished: Path, images: Path, features: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a run already"):
        here(images, finished, IMAGES)
    with pytest.raises(ValueError, match=r"other settings: batch_size \(24 there, 12 here\)"):
        here(images, finished, {**IMAGES, "batch_size": 12}, resume=True)
    with pytest.raises(ValueError, match="holds features, the run's model is small"):
        run.open_run(finished, str(features))
    with pytest.raises(ValueError, match=r"holds no run: it has no config.toml"):
        run.open_run(tmp_path)
    with files.hold(finished), pytest.raises(ValueError, match="another process is training into"):
        here(images, finished, IMAGES, resume=True)


def copied(finished: Path, target: Path) -> Path:
    shutil.copytree(finished, target)
    return target


def test_damaged_files_of_a_run_are_named(finished: Path, images: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path / "run")
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (out / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read .*not those that were written"):
        run.open_run(out)
    (out / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        run.open_run(out)
    (out / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        run.open_run(out)
    with (out / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 4')
    with pytest.raises(ValueError, match=r"evaluations.jsonl, line 6, is damaged"):
        here(images, out, IMAGES, resume=True)
    (out / "evaluations.jsonl").write_text((finished / "evaluations.jsonl").read_text())
    (out / "metrics.jsonl").write_text((finished / "metrics.jsonl").read_text()[:700])
    for left in (".best-00000008.safetensors-99", ".config.toml-7", "metrics.77", ".audit-5.png"):
        (out / left).touch()
    shutil.rmtree(sorted((out / "checkpoints").iterdir())[-1])
    with pytest.warns(RuntimeWarning, match="losses are missing or corrupt"):
        here(images, out, IMAGES, resume=True)
    assert losses(out)[36:] == losses(finished)[36:] and losses(out)[:5] == losses(finished)[:5]
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert (
        not [p.name for p in out.iterdir() if p.name.startswith(".") and p.name != ".lock"]
        and not (out / "metrics.77").exists()
    )


def test_a_run_that_made_no_checkpoint_is_begun_anew(images: Path, tmp_path: Path) -> None:
    job = run.prepare(resolve({**IMAGES, "seed": 5, "dataset": str(images)}), tmp_path / "run", run.Processes("cpu"))
    assert job.held is not None
    job.held.close()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "loss": 9}\n')
    (tmp_path / "run" / "evaluations.jsonl").write_text('{"step": 1, "worst_group": 1.0, "average": 1.0}\n')
    here(images, tmp_path / "run", {**IMAGES, "steps": 8})
    assert len(losses(tmp_path / "run")) == 8 and [r["step"] for r in read_evaluations(tmp_path / "run")] == [8]


def test_data_and_weights_may_move_but_not_change(features: Path, tmp_path: Path) -> None:
    moved, out = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(features, moved)
    here(features, out, FEATURES)
    model = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    shutil.rmtree(sorted((out / "checkpoints").iterdir())[-1])
    here(moved, out, {**FEATURES, "weights": ""}, resume=True)
    assert (out / "model.safetensors").read_bytes() == model
    with pytest.raises(ValueError, match="is not the data that the run in"):
        here(pack(tmp_path / "other", "features", seed=1), out, FEATURES, resume=True)
    opened = run.open_run(out, str(pack(tmp_path / "third", "features", seed=2)))
    assert not opened.same_data and opened.train_groups is not None
    assert opened.train_groups.sizes.tolist() == PackedDataset(features).split("train").groups().sizes.tolist()


def test_the_normalisation_travels_with_the_weights(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = models.resnet50(2).state_dict()
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    config = ResNetConfig(image_mean=mean, image_std=std, num_labels=2, downsample_in_bottleneck=False)
    model = ResNetForImageClassification(config)
    model.load_state_dict(state)
    files.write_weights(tmp_path / "w.safetensors", model, {}, RunConfig(model="resnet50"))
    assert models.resnet50(2, weights=tmp_path / "w.safetensors").config.image_mean == pytest.approx(mean)
    settings = dataclasses.replace(DEFAULT, model="resnet50", weights=str(tmp_path / "w.safetensors"))
    dataset = PackedDataset(images)
    part = run.read_part(settings, dataset, "test", run.build_model(settings, dataset))
    assert part.source.mean.tolist() == pytest.approx(mean) and part.source.std.tolist() == pytest.approx(std)


def test_the_best_weights_are_of_the_run_as_it_went_on(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations that a resumed run makes again, with another result, leave nothing of the ones before."""
    scores = iter([0.5, 0.9, 0.4, 0.45, 0.4, 0.4, 0.4, 0.4])
    made = run.measure

    def measured(*arguments: Any) -> Any:
        if arguments[2].name != "val":
            return made(*arguments)
        return dataclasses.replace(made(*arguments), worst_group=next(scores))

    settings = {**FEATURES, "accumulate": 1, "steps": 10, "evaluate_every": 0.2, "save_every": 4}
    monkeypatch.setattr(run, "measure", measured)
    job = run.prepare(resolve({**settings, "dataset": str(features)}), tmp_path / "run", run.Processes("cpu"))
    watch = run._Watch(job)

    class Killed(Exception):
        pass

    class KilledAtSeven(run._Watch):
        def __call__(self, step: int) -> None:
            if step == 7:
                raise Killed
            if step >= 4:  # 0.5 at batch 4, 0.9 at batch 6
                watch(step)

    killed = KilledAtSeven(job)
    killed.pass_length = 1
    with pytest.raises(Killed):
        run._finetune(job, killed, False)
    assert job.held is not None
    job.held.close()
    outcome = here(features, tmp_path / "run", settings, resume=True)
    rows = read_evaluations(tmp_path / "run")
    assert [(r["step"], r["worst_group"]) for r in rows] == [(4, 0.5), (6, 0.4), (8, 0.45), (10, 0.4)]
    assert outcome.kept_step == 4


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


def test_texts_from_recipe_to_strings(comments: tuple[Path, Path], tmp_path: Path) -> None:
    dataset, weights = comments
    out = tmp_path / "run"
    shortened = ["--learning-rate", 0.02, "--epochs", 4, "--bucket", 2, "--device", "cpu"]
    told = invoke("train", dataset, "--out", out, "--recipe", "civilcomments", "--weights", weights, *shortened)
    assert "Koh et al. 2021" in told
    report = json.loads((out / "report.json").read_text())
    assert report["config"]["cells"] and report["config"]["attribute"] == "black"
    assert len(report["evaluations"]["test"]["cells"]) > 10
    shutil.rmtree(weights)  # the run needs it no more
    found = json.loads(invoke("evaluate", out, "--json"))
    assert found["cells"] == report["evaluations"]["test"]["cells"]
    invoke("export", out)
    predictor = Predictor(out / "model.onnx")
    assert predictor.predict(["people the nice", "people the hateful"]).shape == (2, 2)
    assert "120 examples" in invoke("features", dataset, tmp_path / "features", "--weights", out)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3)])
def test_another_number_of_processes_goes_on(first: int, then: int, features: Path, tmp_path: Path) -> None:
    alone = here(features, tmp_path / "alone", FEATURES)
    out, settings = tmp_path / "run", [*flags(FEATURES), "--save-every", "4"]
    process = subprocess.Popen(
        command("train", features, "--out", out, *settings, processes=first), start_new_session=True
    )
    while not any((out / "checkpoints").glob("step-*")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    call("train", features, "--out", out, "--resume", *settings, processes=then)
    assert losses(out) == pytest.approx(list(alone.training.losses), abs=1e-5)


def test_one_message_and_no_traceback(images: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("train", images, "--out", tmp_path / "run", "--policy", "magic"), capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("spurmix: --policy must be one of balance_attributes,")
        and "Traceback" not in done.stderr
    )
    for arguments, text in (
        (("train", "--out", tmp_path), "dataset: name the folder"),
        (("train", tmp_path / "none"), "is not a folder"),
    ):
        with pytest.raises(ValueError, match=text):
            invoke(*arguments)
