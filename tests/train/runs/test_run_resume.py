"""Interrupted runs, folders with a run, and corrupt files."""

from __future__ import annotations

import dataclasses
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_data import pack
from run_commands import FEATURES, IMAGES, call, flags, invoke, losses, prepare, start, train
from safetensors.torch import load_file

from spurmix import PackedDataset
from spurmix.core.group_join import join_sizes
from spurmix.data.dataset.format import write_description
from spurmix.train.runs import files, run
from spurmix.train.runs.files import read_evaluations
from spurmix.train.runs.finished import open_run


def check_killed_run(images: Path, out: Path, finished: Path, kills: int) -> None:
    """Kill training at random times, let it finish, and compare it with an uninterrupted run."""
    rng, hit = random.Random(kills), 0
    for kill in range(kills):
        process = start("train", images, "--out", out, "--resume", *flags(IMAGES))
        if kill % 4 == 3:  # at any time, also while it starts or ends
            wait: Any = time.monotonic() + rng.uniform(0, 6)
            while process.poll() is None and time.monotonic() < wait:
                time.sleep(0.01)
        else:  # after a random number of batches
            before, more = (
                len(losses(out)) if (out / "metrics.jsonl").exists() else 0,
                rng.randint(1, 3 if kills > 2 else 12),
            )
            mark = min(40, before + more)
            while process.poll() is None and not ((out / "metrics.jsonl").exists() and len(losses_so_far(out)) >= mark):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        hit += process.returncode != 0
        if (out / "model.safetensors").exists():
            open_run(out)
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


def test_killed_run_ends_with_the_same_bits(images: Path, finished: Path, tmp_path: Path) -> None:
    check_killed_run(images, tmp_path / "run", finished, 1)


@pytest.mark.slow
def test_run_killed_twenty_times_ends_with_the_same_bits(images: Path, finished: Path, tmp_path: Path) -> None:
    check_killed_run(images, tmp_path / "run", finished, 20)


def test_resume_without_flags_uses_the_settings_of_the_run(finished: Path) -> None:
    before = (finished / "model.safetensors").read_bytes()
    assert "weights of batch" in invoke("train", "--resume", "--out", finished)
    assert (finished / "model.safetensors").read_bytes() == before


def test_folder_with_a_run_is_not_overwritten(finished: Path, images: Path, features: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already has a run"):
        train(images, finished, IMAGES)
    with pytest.raises(ValueError, match=r"other settings: batch_size \(24 in the folder, 12 given\)"):
        train(images, finished, {**IMAGES, "batch_size": 12}, resume=True)
    with pytest.raises(ValueError, match="has features, which the model small does not accept"):
        open_run(finished, str(features))
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no config.toml"):
        open_run(tmp_path)
    with files.lock(finished), pytest.raises(ValueError, match="another process is training into"):
        train(images, finished, IMAGES, resume=True)


def copied(finished: Path, target: Path) -> Path:
    shutil.copytree(finished, target)
    return target


def test_errors_name_corrupt_files(finished: Path, images: Path, tmp_path: Path) -> None:
    out = copied(finished, tmp_path / "run")
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (out / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot read .*model.safetensors as weights of this model: wrong digest"):
        open_run(out)
    (out / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*model.safetensors"):
        open_run(out)
    (out / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        open_run(out)
    with (out / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 4')
    with pytest.raises(
        ValueError, match=r"evaluations.jsonl, line 6, is damaged: .*; remove this line and all after it"
    ):
        train(images, out, IMAGES, resume=True)
    (out / "evaluations.jsonl").write_text((finished / "evaluations.jsonl").read_text())
    (out / "metrics.jsonl").write_text((finished / "metrics.jsonl").read_text()[:700])
    for left in (".best-00000008.safetensors-99", ".config.toml-7", "metrics.77", ".audit-5.png"):
        (out / left).touch()
    shutil.rmtree(sorted((out / "checkpoints").iterdir())[-1])
    with pytest.warns(RuntimeWarning, match="losses are missing or corrupt"):
        train(images, out, IMAGES, resume=True)
    assert losses(out)[36:] == losses(finished)[36:] and losses(out)[:5] == losses(finished)[:5]
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert (
        not [p.name for p in out.iterdir() if p.name.startswith(".") and p.name != ".lock"]
        and not (out / "metrics.77").exists()
    )


def test_run_without_a_checkpoint_starts_again(images: Path, tmp_path: Path) -> None:
    interrupted = prepare(images, tmp_path / "run", {**IMAGES, "seed": 5})
    assert interrupted.lock is not None
    interrupted.lock.close()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "loss": 9}\n')
    (tmp_path / "run" / "evaluations.jsonl").write_text('{"step": 1, "worst_group": 1.0, "average": 1.0}\n')
    train(images, tmp_path / "run", {**IMAGES, "steps": 8})
    assert len(losses(tmp_path / "run")) == 8 and [r["step"] for r in read_evaluations(tmp_path / "run")] == [8]


def test_data_and_weights_may_move_but_not_change(features: Path, tmp_path: Path) -> None:
    moved, out = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(features, moved)
    train(features, out, FEATURES)
    model = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    shutil.rmtree(sorted((out / "checkpoints").iterdir())[-1])
    train(moved, out, {**FEATURES, "weights": ""}, resume=True)
    assert (out / "model.safetensors").read_bytes() == model
    with pytest.raises(ValueError, match="differs from the data of the run in"):
        train(pack(tmp_path / "other", "features", seed=1), out, FEATURES, resume=True)
    opened = open_run(out, str(pack(tmp_path / "third", "features", seed=2)))
    assert not opened.same_data and opened.train_groups is not None
    assert opened.train_groups.sizes.tolist() == PackedDataset(features).split("train").groups().sizes.tolist()


def test_groups_are_joined_by_name_with_another_dataset(features: Path, tmp_path: Path) -> None:
    """Names are in `dataset.json`, so that they may differ although all files have the same checksums."""
    train(features, tmp_path / "run", FEATURES)
    renamed = shutil.copytree(features, tmp_path / "renamed")
    metadata = dataclasses.replace(PackedDataset(renamed).metadata, attribute_names={"colour": ("red", "dark")})
    write_description(renamed, "features", metadata, {})
    opened = open_run(tmp_path / "run", str(renamed))
    assert opened.train_groups is not None
    joined = join_sizes(opened.split("test").groups, opened.train_groups)
    assert joined.sizes.tolist() == opened.train_groups.sizes[[1, 0, 3, 2]].tolist()
    with pytest.raises(
        ValueError, match=r"attribute names of .*renamed are red, dark, those of the run .* are dark, red"
    ):
        train(renamed, tmp_path / "run", FEATURES, resume=True)


def test_best_weights_of_an_interrupted_run_are_discarded(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run repeats evaluations with other results."""
    scores = iter([0.5, 0.9, 0.4, 0.45, 0.4, 0.4, 0.4, 0.4])
    original = run.evaluate_split

    def measured(*arguments: Any) -> Any:
        if arguments[2].name != "val":
            return original(*arguments)
        return dataclasses.replace(original(*arguments), worst_group=next(scores))

    settings = {**FEATURES, "accumulate": 1, "steps": 10, "evaluate_every": 0.2, "save_every": 4}
    monkeypatch.setattr(run, "evaluate_split", measured)
    interrupted = prepare(features, tmp_path / "run", settings)

    class Killed(Exception):
        pass

    class KilledAtSeven(run._Validation):
        def __call__(self, step: int) -> None:
            if step == 7:
                raise Killed
            if step >= 4:  # 0.5 at batch 4, 0.9 at batch 6
                super().__call__(step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run, "_Validation", KilledAtSeven)
        run.train(interrupted)
    assert interrupted.lock is not None
    interrupted.lock.close()
    outcome = train(features, tmp_path / "run", settings, resume=True)
    rows = read_evaluations(tmp_path / "run")
    assert [(r["step"], r["worst_group"]) for r in rows] == [(4, 0.5), (6, 0.4), (8, 0.45), (10, 0.4)]
    assert outcome.kept_step == 4
