"""Damaged files of a run, and disks that cannot be written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from spurmix.train import checkpoint
from spurmix.train.checkpoint import CheckpointError
from spurmix.train.runs.config import read_toml
from spurmix.train.runs.files import ABOUT, EVALUATIONS, read_about, read_evaluations, write_text

VALID = {"dataset": "a", "classes": ["x"], "shape": [6], "groups": [[0, 0, 1]], "architecture": {"model": "linear"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "more than 100 nested arrays and objects"),
        ("[]", "the content must be an object"),
        (json.dumps(VALID | {"shape": "6"}), r"\['shape'\] must be an array, got '6'"),
        (json.dumps(VALID | {"groups": [[0, 0.5, 1]]}), r"\['groups'\]\[0\]\[1\] must be an integer, got 0.5"),
        (json.dumps(VALID | {"architecture": {}}), r"\['architecture'\] has no 'model'"),
        (json.dumps(VALID | {"attribute_names": []}), "it has no checksum"),
        (json.dumps(VALID | {"classes": []}), "it has no classes"),
        (json.dumps(VALID | {"shape": []}), "the shape is empty"),
    ],
)
def test_run_descriptions_of_another_form(text: str, message: str, tmp_path: Path) -> None:
    assert read_about(tmp_path) == {}
    (tmp_path / ABOUT).write_text(json.dumps(VALID))
    assert read_about(tmp_path) == VALID
    (tmp_path / ABOUT).write_text(text)
    with pytest.raises(ValueError, match=rf"run\.json is damaged: {message}"):
        read_about(tmp_path)


@pytest.mark.parametrize("line", ['{"step": "4"}', "[" * 100_000, "3", '{"step": 4, "worst_group": []}', "\0"])
def test_evaluations_of_another_form(line: str, tmp_path: Path) -> None:
    row = {"step": 1, "worst_group": 0.5, "average": 0, "adjusted_average": 0.5, "worst_name": "a"}
    (tmp_path / EVALUATIONS).write_text(f"{json.dumps(row)}\n{line}\n")
    with pytest.raises(
        ValueError, match=r"evaluations\.jsonl, line 2, is damaged: .*; remove this line and all after it"
    ):
        read_evaluations(tmp_path)


def test_settings_and_links_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5_000)
    os.symlink(tmp_path / "loop.toml", tmp_path / "loop.toml")
    for name, message in (("deep.toml", "nested arrays"), ("loop.toml", "Too many levels of symbolic links")):
        with pytest.raises(ValueError, match=rf"^config: .*{name}.*{message}"):
            read_toml(tmp_path / name)


def test_a_read_only_disk_does_not_hide_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match=r"cannot write .*report\.json: .*Read-only file system"):
        write_text(tmp_path / "report.json", "{}")


def test_checkpoints_of_another_form(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / checkpoint.MANIFEST).write_text("[" * 100_000)
    with (
        pytest.warns(RuntimeWarning, match=r"manifest\.json is damaged: more than 100 nested"),
        pytest.raises(CheckpointError, match="all checkpoints in"),
    ):
        checkpoint.load_latest(tmp_path, {})
