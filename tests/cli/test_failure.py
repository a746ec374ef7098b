"""Errors of commands, in one process and in several."""

from __future__ import annotations

import subprocess
from pathlib import Path

import forked_python
import pytest

from spurmix.cli import failure

SCRIPT = """
import os, sys, time
from spurmix.cli import failure

wait, message = float(sys.argv[1]), sys.argv[2 + int(os.environ["RANK"])]
failure.WAIT = wait

def app(standalone_mode):
    if message == "blocked":  # in a collective operation
        time.sleep(600)
    if message == "lost connection":  # after another process has exited
        while not os.path.exists(sys.argv[0] + ".exited"):
            time.sleep(0.01)
    raise ValueError(message)

code = failure.run_command(app)
open(sys.argv[0] + ".exited", "w").close()
sys.exit(code)
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked_python.run(forked_python.MODULE, "torch.distributed.run", "--standalone", *arguments)


def run_script(folder: Path, wait: float, *messages: str) -> str:
    """Run a process for each message and return torchrun's report."""
    script = folder / "fail.py"
    script.write_text(SCRIPT)
    done = torchrun("--nproc-per-node", str(len(messages)), str(script), str(wait), *messages)
    assert done.returncode == 1
    assert 'fail.py", line' not in done.stderr, "a traceback of the script"
    return done.stdout + done.stderr


def test_the_same_error_of_all_processes_is_reported_once(tmp_path: Path) -> None:
    report = run_script(tmp_path, 30, "no folder", "no folder", "no folder")
    assert report.count("CommandError: no folder\n") == report.count("no folder") == 1, report


def test_an_error_of_one_process_stops_all(tmp_path: Path) -> None:
    report = run_script(tmp_path, 0.5, "blocked", "no space", "blocked")
    assert report.count("CommandError: no space\n") == report.count("no space") == 1, report


@pytest.mark.slow
def test_the_first_error_is_the_root_cause(tmp_path: Path) -> None:
    report = run_script(tmp_path, 0.5, "lost connection", "no space")
    assert "CommandError: no space\n" in report[report.index("Root Cause") :], report


@pytest.mark.parametrize(("arguments", "message"), [
    (("train", "/nowhere"), "/nowhere is not a folder"),
    pytest.param(("train", "--nothing"), "No such option", marks=pytest.mark.slow),
])  # fmt: skip
def test_commands_under_torchrun(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = torchrun("--nproc-per-node", "2", "-m", "spurmix", *arguments, "--out", str(tmp_path / "run"))
    assert done.returncode == 1 and (done.stdout + done.stderr).count(message) == 1, done.stderr


def fail(error: BaseException) -> int:
    """Run a command that raises an error, and return the exit code."""

    def app(standalone_mode: bool) -> None:
        raise error

    return failure.run_command(app)


def test_without_torchrun_every_process_prints_its_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert fail(ValueError("no folder")) == 2
    assert capsys.readouterr().err == "spurmix: no folder\nspurmix (process 1): no folder\n"


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted = ImportError("wrapped by an import")
    interrupted.__cause__ = KeyboardInterrupt()
    for error, code in (
        (TypeError("type"), 2),
        (OSError("disk"), 1),
        (RuntimeError("device"), 1),
        (KeyboardInterrupt(), 130),
        (interrupted, 130),
    ):
        assert fail(error) == code
    capsys.readouterr()
    assert fail(ModuleNotFoundError("No module named 'torch'", name="torch")) == 1
    assert "pip install 'spurmix[train]'" in capsys.readouterr().err


def test_tracebacks_of_bugs_and_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        fail(KeyError("a bug"))
    monkeypatch.setenv("SPURMIX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no folder"):
        fail(ValueError("no folder"))
