"""The command `spurmix`: version, help, import time and error messages."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

import spurmix
from spurmix.cli.app import app
from spurmix.ops import library

COMMANDS = ("info", "demo", "warmup", "pack", "features", "merge", "verify", "inspect", "audit", "train", "retrain-head", "reproduce", "evaluate", "compare", "sweep", "export")  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "spurmix", *arguments], capture_output=True, text=True)


def test_public_names_exist() -> None:
    for name in spurmix.__all__:
        assert getattr(spurmix, name) is not None
    with pytest.raises(AttributeError):
        spurmix.nothing  # noqa: B018


def test_version() -> None:
    assert run("--version").stdout == f"spurmix {spurmix.__version__}\n"


def test_help_imports_no_torch() -> None:
    script = (
        "import sys\nfrom spurmix.cli.app import app\n"
        "app(['train', '--help'], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0 and "Usage:" in done.stdout and "<bool>" not in done.stdout


def test_all_commands_are_listed() -> None:
    names = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert [name.replace("_", "-") for name in names] == list(COMMANDS)


def test_info_shows_backends(command: Any) -> None:
    done = command("info")
    assert done.returncode == 0, done.stderr
    gpu_backend = "cuda" if library.COMPILED_CUDA == "ok" else "triton"
    assert "op mix_image_batch" in done.stdout and f"CPU: cpu, GPU: {gpu_backend}" in done.stdout
