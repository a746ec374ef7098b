"""Errors of several processes: the first one's is told once, what the others alone have met by themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spurmix.cli import failure

SCRIPT = """
import os, sys, time
from spurmix.cli import failure
mine = sys.argv[1 + int(os.environ["RANK"])]
failure.WAIT = float(sys.argv[-1])
if mine == "late":
    time.sleep(1.0)
if mine != "none":
    failure.tell(ValueError("no folder" if mine == "late" else mine))
"""


@pytest.mark.parametrize(("each", "wait", "said"), [
    (("no folder", "no folder", "no room"), 30, ["spurmix: no folder", "spurmix (process 2): no room"]),
    (("late", "no folder", "none"), 30, ["spurmix: no folder"]),
    (("none", "no room", "none"), 1, ["spurmix (process 1): no room"]),
])  # fmt: skip
def test_what_is_told(each: tuple[str, ...], wait: float, said: list[str], tmp_path: Path) -> None:
    script = tmp_path / "tell.py"
    script.write_text(SCRIPT)
    command = ["--standalone", "--nproc-per-node", "3", str(script), *each, str(wait)]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stderr.splitlines() if line.startswith("spurmix")) == sorted(said)


@pytest.mark.parametrize(("arguments", "said"), [
    (("train", "/nowhere"), "/nowhere is not a folder"), (("train", "--nothing"), "No such option"),
])  # fmt: skip
def test_commands_under_torchrun(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    command = ["--standalone", "--nproc-per-node", "2", "-m", "spurmix", *arguments, "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *command], capture_output=True, text=True)
    assert done.returncode == 1 and (done.stdout + done.stderr).count(said) == 1, done.stderr


def test_without_torchrun_every_process_speaks_for_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        failure.tell(ValueError("no folder"))
    assert capsys.readouterr().err == "spurmix: no folder\nspurmix (process 1): no folder\n"
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # one that is gone, as torchrun may be
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(failure, "WAIT", 0.2)
    failure.tell(ValueError("no folder"))
    assert capsys.readouterr().err.endswith("spurmix (process 1): no folder\n")
