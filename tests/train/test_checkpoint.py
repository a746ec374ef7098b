"""Checkpoints that are corrupt, incomplete, left over or of another run; modes of modules, finished runs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spurmix import GroupIndex, MixLoader, finetune, policies
from spurmix.ops.augment import Augment
from spurmix.train import checkpoint
from spurmix.train.runs import files as run_files
from spurmix.train.runs.config import RunConfig

RNG = np.random.default_rng(8)
LABELS = RNG.integers(0, 2, 120)
FEATURES = (RNG.standard_normal((120, 6)) + 2 * LABELS[:, None]).astype(np.float32)
GROUPS = GroupIndex(LABELS, RNG.integers(0, 2, 120))
RUN = {"seed": 3, "model": "abc"}


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def loader(**options: Any) -> MixLoader:
    return MixLoader(FEATURES, GROUPS, policies.lisa(), 24, **dict(steps=8, seed=2) | options)  # type: ignore[arg-type]


def state(step: int) -> dict[str, Any]:
    return {"weights": torch.arange(6.0) + step, "optimizer": {"state": {0: {"step": step}}}, "losses": [0.5] * step}


def write(folder: Path, *steps: int, max_checkpoints: int = 9) -> None:
    for step in steps:
        checkpoint.save(folder, step, RUN, state(step), max_checkpoints)


def step_of(found: dict[str, Any] | None) -> int:
    """Step of a state, after checking that it is complete."""
    assert found is not None
    step = len(found["losses"])
    assert torch.equal(found["weights"], state(step)["weights"]) and found["optimizer"] == state(step)["optimizer"]
    return step


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_any_corrupt_byte_is_detected_or_harmless(tmp_path: Path) -> None:
    write(tmp_path, 4, 8)
    files = sorted((tmp_path / "step-00000008").iterdir())
    whole = {file: file.read_bytes() for file in files}
    outcomes = {4: 0, 8: 0}
    for trial in range(200):
        file = files[trial % len(files)]
        at, cut = int(RNG.integers(len(whole[file]))), trial % 2
        data = whole[file]
        file.write_bytes(
            data[:at] if cut else data[:at] + bytes([data[at] ^ int(RNG.integers(1, 256))]) + data[at + 1 :]
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step = step_of(checkpoint.load_latest(tmp_path, RUN))
        assert bool(caught) == (step == 4)
        outcomes[step] += 1
        file.write_bytes(data)
    assert outcomes[4] > 190  # a change of a space between two values of the manifest is harmless
    assert step_of(checkpoint.load_latest(tmp_path, RUN)) == 8


def reseal(path: Path) -> None:
    """Make all checksums of a checkpoint fit its contents."""
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    for name in (checkpoint.TENSORS, checkpoint.STATE):
        manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    manifest["checksum"] = checkpoint._seal(manifest)
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"step": 8}', '{"files": [], "run": 3}', "\udc80", "[" * 10**5])
def test_manifests_with_other_contents(text: str, tmp_path: Path) -> None:
    write(tmp_path, 4, 8)
    (tmp_path / "step-00000008" / checkpoint.MANIFEST).write_text(text, errors="surrogateescape")
    with pytest.warns(RuntimeWarning, match="is (corrupt|damaged)"):
        assert step_of(checkpoint.load_latest(tmp_path, RUN)) == 4


@pytest.mark.parametrize("kind", ["files", "run", "step"])
def test_manifests_with_other_contents_and_a_valid_checksum(kind: str, tmp_path: Path) -> None:
    write(tmp_path, 4, 8)
    path = tmp_path / "step-00000008" / checkpoint.MANIFEST
    manifest = json.loads(path.read_text()) | {kind: {"files": {}, "run": [], "step": "8"}[kind]}
    path.write_text(json.dumps(manifest | {"checksum": checkpoint._seal(manifest)}))
    with pytest.warns(RuntimeWarning, match="is (corrupt|damaged)"):
        assert step_of(checkpoint.load_latest(tmp_path, RUN)) == 4


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (checkpoint.TENSORS, b""),
        (checkpoint.TENSORS, bytes(range(256)) * 9),
        (checkpoint.TENSORS, b"\xff" * 64),
        *((checkpoint.STATE, data) for data in (b"", b"\xff\xfe", b"[]", b"3", b'{"items": 3}', b'{"items": [[1]]}')),
        (checkpoint.STATE, b'{"items": [["a", {"tensor": "nowhere"}]]}'),
        (checkpoint.STATE, b'{"items": [[[], 1]]}'),
        (checkpoint.STATE, b"[" * 10**5),
    ],
)
def test_invalid_files_with_a_valid_checksum(name: str, data: bytes, tmp_path: Path) -> None:
    write(tmp_path, 4, 8)
    (tmp_path / "step-00000008" / name).write_bytes(data)
    reseal(tmp_path / "step-00000008")
    with pytest.warns(RuntimeWarning, match="is (corrupt|damaged)"):
        assert step_of(checkpoint.load_latest(tmp_path, RUN)) == 4


@pytest.mark.parametrize("key", ["model", "optimizer", "rng", "loader", "losses"])
@pytest.mark.parametrize("value", [None, 3, "x", {"items": []}, [1]])
def test_state_of_wrong_types_falls_back(key: str, value: Any, tmp_path: Path) -> None:
    whole, resumed = network(), network()
    finetune(whole, loader(), output=tmp_path, save_every=4)
    path = tmp_path / "checkpoints" / "step-00000008"
    packed = json.loads((path / checkpoint.STATE).read_text())
    packed["items"] = [[k, value if k == key else v] for k, v in packed["items"]]
    (path / checkpoint.STATE).write_text(json.dumps(packed))
    reseal(path)
    with pytest.warns(RuntimeWarning, match="its state does not fit"):
        result = finetune(resumed, loader(), output=tmp_path, save_every=4, resume=True)
    assert len(result.losses) == 8
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_checkpoint_replaces_the_same_and_later_steps(tmp_path: Path) -> None:
    write(tmp_path, 4, 8, 12)
    (tmp_path / "step-00000008" / "stray").touch()
    write(tmp_path, 8, max_checkpoints=2)
    assert names(tmp_path) == ["step-00000004", "step-00000008"]
    assert names(tmp_path / "step-00000008") == sorted((checkpoint.MANIFEST, checkpoint.STATE, checkpoint.TENSORS))
    write(tmp_path, 2, max_checkpoints=1)
    assert names(tmp_path) == ["step-00000002"] and step_of(checkpoint.load_latest(tmp_path, RUN)) == 2


@pytest.mark.parametrize("room", [0, 100, 300])
def test_full_disk_keeps_older_checkpoints(room: int, tmp_path: Path) -> None:
    write(tmp_path, 4, 8)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # longer files fail, like on a full disk
    try:
        for step in (8, 12):
            with pytest.raises(checkpoint.CheckpointError, match=rf"cannot write .*step-0+{step} \("):
                write(tmp_path, step, max_checkpoints=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert names(tmp_path) == ["step-00000004", "step-00000008"]


@pytest.mark.parametrize("room", [0, 100])
def test_full_disk_keeps_weights_and_text_files_of_a_run(room: int, tmp_path: Path) -> None:
    weights, text = tmp_path / "model.safetensors", tmp_path / "run.json"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (hard, room):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            for path, save in (
                (weights, lambda: run_files.write_weights(weights, nn.Linear(9, 9), {}, RunConfig(model="linear"))),
                (text, lambda: run_files.write_text(text, "x" * 200)),
            ):
                if limit == hard:
                    save()
                    continue
                before = path.read_bytes()
                with pytest.raises(OSError, match=rf"cannot write .*{path.name}: "):
                    save()
                assert path.read_bytes() == before and names(tmp_path) == ["model.safetensors", "run.json"]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_disk_errors_keep_older_checkpoints(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 4, 8)
    real, left = (os.fsync, Path.rename)[call == "rename"], [0]

    def fails(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.EIO, "the disk gave up")
        return real(*arguments)

    monkeypatch.setattr(os if call == "fsync" else Path, call, fails)
    for number in range(4 if call == "fsync" else 2):
        left[0] = number
        with pytest.raises(checkpoint.CheckpointError, match="the disk gave up"):
            write(tmp_path, 8, max_checkpoints=1)
        assert names(tmp_path) == ["step-00000004", "step-00000008"]
        assert step_of(checkpoint.load_latest(tmp_path, RUN)) == 8


def test_contents_are_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synchronised(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synchronised)
    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path, 4)
    at = done.index("rename")
    files = {checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST, f".step-00000004-{os.getpid()}"}
    assert set(done[:at]) == files and done[at + 1 :] == [tmp_path.name]


def test_temporary_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for process in (dead.pid, alive.pid, os.getpid()):
            (tmp_path / f".step-00000004-{process}").mkdir()
            (tmp_path / f".step-00000004-{process}" / "half").touch()
        write(tmp_path, 8)
        assert names(tmp_path) == [f".step-00000004-{alive.pid}", "step-00000008"]
    finally:
        alive.communicate(b"\n")


def test_finished_run_returns_at_once(tmp_path: Path) -> None:
    whole, again = network(), network().eval()
    done = finetune(whole, loader(), output=tmp_path, save_every=4)
    lines = (tmp_path / "metrics.jsonl").read_text()

    class Silent(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("it is trained already")

    model = Silent(*again)
    model.eval()
    feed = loader()
    result = finetune(model, feed, output=tmp_path, resume=True)
    assert (result.steps, result.loss, result.losses) == (done.steps, done.loss, done.losses)
    assert result.seconds == 0 and feed.step == 8 and not model.training
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_loader_at_its_end_starts_again() -> None:
    feed = loader()
    first = finetune(network(), feed)
    assert finetune(network(), feed).losses == first.losses


def test_new_run_replaces_the_checkpoints_of_a_longer_run(tmp_path: Path) -> None:
    finetune(network(), loader(), output=tmp_path, save_every=2, max_checkpoints=3)
    feed = loader()

    class Stops(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if feed.step > 3:
                raise KeyboardInterrupt
            return super().forward(x)  # type: ignore[no-any-return]

    with pytest.raises(KeyboardInterrupt):
        finetune(Stops(*network()), feed, output=tmp_path, save_every=2, max_checkpoints=3)
    assert names(tmp_path / "checkpoints") == ["step-00000002"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (dict(optimizer="sgd"), "optimizer"),
        (dict(optimizer=torch.optim.Adagrad), "optimizer"),
        (dict(weight_decay=0.0), "weight_decay"),
        (dict(warmup=0.5), "warmup"),
        (dict(clip=1.0), "clip"),
        (dict(label_smoothing=0.1), "label_smoothing"),
        (dict(freeze="backbone"), "freeze"),
        (dict(mixed_precision="bf16"), "mixed_precision"),
        (dict(learning_rate=1.0), "learning_rate"),
    ],
)
def test_error_names_other_settings(options: Any, name: str, tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.classifier = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.body(x))  # type: ignore[no-any-return]

    finetune(Model(), loader(steps=1), output=tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=rf"another run; different: {name} \("):
        finetune(Model(), loader(steps=1), output=tmp_path, resume=True, **options)


def test_error_names_momentum_augmentation_and_dtype(tmp_path: Path) -> None:
    finetune(network(), loader(steps=1), output=tmp_path / "a", optimizer="sgd")
    with pytest.raises(ValueError, match=r"different: momentum \(0.9 in the checkpoint, 0.5 given\)"):
        finetune(network(), loader(steps=1), output=tmp_path / "a", optimizer="sgd", momentum=0.5, resume=True)
    images = RNG.integers(0, 256, (120, 4, 4, 1), dtype=np.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    plain = MixLoader(images, GROUPS, policies.erm(), 24, steps=1)
    finetune(model, plain, output=tmp_path / "b")
    flipped = MixLoader(images, GROUPS, policies.erm(), 24, steps=1, augment=Augment(crop=False))
    with pytest.raises(ValueError, match="different: augment"):
        finetune(model, flipped, output=tmp_path / "b", resume=True)


def test_errors_restore_the_modes_of_modules(tmp_path: Path) -> None:
    feed = loader()

    class Stops(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if feed.step > 3:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(Stops(), network())
    model.train()
    model[1][2].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        finetune(model, feed)
    assert [module.training for module in model.modules()] == before
    feed.set_step(0)
    model[0] = nn.Identity()
    finetune(model, feed)
    assert [module.training for module in model.modules()] == before
    (tmp_path / "checkpoints" / "step-00000008").mkdir(parents=True)
    with pytest.warns(RuntimeWarning), pytest.raises(checkpoint.CheckpointError):
        finetune(model.eval(), feed, output=tmp_path, resume=True)
    assert not any(module.training for module in model.modules())
