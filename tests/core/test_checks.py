"""Paths to write: a name or a path that file systems do not accept is an error before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spurmix.cli.app import app
from spurmix.core import checks
from spurmix.data.pack.job import PackJob
from spurmix.deploy.export.onnx_export import check_request
from spurmix.train.runs.retrain import check_target


def test_new_path(tmp_path: Path) -> None:
    assert checks.new_path(str(tmp_path / ("é" * 127)), "out") == tmp_path / ("é" * 127)
    for path, room, text in (
        (tmp_path / ("é" * 128), 0, "out must have names of at most 255 bytes, got one of 256 bytes: 'ééé"),
        (tmp_path / ("x" * 250), 6, "out must have names of at most 249 bytes, got one of 250 bytes: 'xxx"),
        (tmp_path / ("x" * 256) / "a", 0, "out must have names of at most 255 bytes, got one of 256 bytes"),
        (Path(*["x" * 200] * 21), 0, "out must be shorter than 4,096 bytes, got 4,"),
    ):
        with pytest.raises(ValueError) as caught:
            checks.new_path(path, "out", room)
        assert str(caught.value).startswith(text) and len(str(caught.value)) < 200


WRITERS: dict[str, Callable[[Path], object]] = {
    "pack": lambda path: PackJob(path, "images", {}),
    "retrain": check_target,
    "export": lambda path: check_request(path, 1e-3, 18),
}


@pytest.mark.parametrize("name", WRITERS)
def test_outputs_with_long_names(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), tmp_path / ("y" * 250), Path(*["x" * 200] * 21)):
        with pytest.raises(ValueError, match=r"(target|--out|path) must (have names of at most|be shorter than)"):
            WRITERS[name](path)
    assert not list(tmp_path.iterdir())


def test_train_command_with_a_long_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(tmp_path), "--out", str(tmp_path / ("x" * 300))])
    assert result.exit_code != 0
    assert "--out must have names of at most" in result.output + str(result.exception)
