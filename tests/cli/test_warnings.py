"""Warnings on the command line: one message each, once, without path or source line."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from image_samples import png

from spurmix.cli.terminal import format_warnings

NOTE = "'cat' and 'cat ' differ only by white space or Unicode form; give them one name if they mean the same"


def run(*arguments: object) -> tuple[str, str]:
    """Run a command in a new process, because pytest records warnings. Returns stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "spurmix", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_names_that_look_the_same_are_reported_once(tmp_path: Path) -> None:
    rows = ["path,label,place"]
    for n in range(8):
        (tmp_path / f"{n}.png").write_bytes(png(n))
        rows.append(f"{n}.png,{('cat', 'cat ')[n % 2]},{('in', 'out')[n // 4]}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    out, err = run("pack", tmp_path / "t.csv", tmp_path / "t", "--layout", "table", "--attribute", "place", "--size", 8)
    assert out.count(NOTE) == 1 and err == ""
    out, err = run("audit", tmp_path / "t", "--policy", "erm")
    assert err == f"spurmix: warning: class_names: {NOTE}\n" and NOTE not in out


def test_each_warning_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    format_warnings()
    first = warnings.formatwarning("a", UserWarning, "folder/f.py", 1, "line")
    assert first == "spurmix: warning: a\n"
    assert warnings.formatwarning("a", UserWarning, "folder/g.py", 2) == ""
    assert warnings.formatwarning("b", RuntimeWarning, "folder/f.py", 1) == "spurmix: warning: b\n"
    monkeypatch.setenv("RANK", "1")
    assert warnings.formatwarning("c", UserWarning, "folder/f.py", 1) == ""
    assert warnings.formatwarning("c", RuntimeWarning, "folder/f.py", 1) == "spurmix: warning: c\n"
