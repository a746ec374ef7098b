"""Names with control characters on terminals, on pages and in pictures."""

from __future__ import annotations

import json
import unicodedata
import warnings
from pathlib import Path

import jinja2
import numpy as np
import pytest
from image_samples import png
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import ImageDraw
from typer.testing import CliRunner

from spurmix.cli import failure
from spurmix.cli.app import app
from spurmix.cli.report.page import write_page
from spurmix.cli.report.pictures import draw_accuracy, draw_audit
from spurmix.cli.terminal import format_warnings
from spurmix.core import policies
from spurmix.core.groups import GroupIndex
from spurmix.data.dataset.format import DatasetError
from spurmix.data.dataset.packed import PackedDataset
from spurmix.train.metrics import evaluate_logits

HOSTILE = "a\x1b[31m\u202eb\nc\x07\x9b[2J\u2066"
SHOWN = r"a\x1b[31m\u202eb\nc\x07\x9b[2J\u2066"


def controls(text: str) -> set[str]:
    """The control characters of a text, apart from line breaks."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose class, attribute and file names have control characters."""
    root = tmp_path / "root"
    for n in range(4):
        path = root / (HOSTILE if n % 2 else "dog") / f"{n}{HOSTILE}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    return root


def run(*arguments: object) -> str:
    """Run a command and return its output. No control character may be in it."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None, done.exception
    assert not controls(done.output), ascii(done.output)
    return done.output


def test_commands_escape_names(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    target = tmp_path / f"t{HOSTILE}"
    assert f"t{SHOWN}: 4 examples" in run("pack", hostile, target, "--size", "8")
    drawn: list[str] = []
    original = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, **options: object) -> None:
        drawn.append(text)
        original(self, xy, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    sheet = tmp_path / f"s{HOSTILE}.png"
    shown = run("inspect", target, "--sheet", sheet)
    assert SHOWN in shown and f"s{SHOWN}.png" in shown
    assert drawn[0] == "a[31mbc[2J: 2 images" and not any(map(controls, drawn))
    assert SHOWN in run("audit", target) and "all checksums match" in run("verify", target)
    assert json.loads(run("audit", target, "--json"))["classes"][0] == HOSTILE


def test_errors_escape_names(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (hostile / "dog" / f"bad{HOSTILE}.png").write_bytes(b"")
    for arguments in (
        ["pack", hostile, tmp_path / "t"],
        ["inspect", tmp_path / HOSTILE],
        ["verify", tmp_path / HOSTILE],
        ["pack", tmp_path / HOSTILE, tmp_path / "t"],
        ["pack", tmp_path / f"{HOSTILE}.csv", tmp_path / "t", "--layout", "table"],
    ):
        given = [str(a) for a in arguments]
        assert (
            failure.run_command(lambda standalone_mode, given=given: app(given, standalone_mode=standalone_mode)) == 2
        )
        shown = capsys.readouterr()
        assert not controls(shown.err + shown.out) and SHOWN in shown.err and shown.err.count("\n") == 1
    with pytest.raises(DatasetError) as caught:
        PackedDataset(tmp_path / HOSTILE)
    assert SHOWN in str(caught.value)


def test_errors_of_libraries_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(standalone_mode: bool) -> None:
        raise RuntimeError("first\nsecond\x1b[0m")

    assert failure.run_command(fail) == 1
    assert capsys.readouterr().err == "spurmix: first\nsecond\\x1b[0m\n"


def test_warnings_escape_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    format_warnings()
    assert warnings.formatwarning("a\x1b[31m", UserWarning, "f.py", 1) == "spurmix: warning: a\\x1b[31m\n"


def index() -> GroupIndex:
    values = np.array([0, 0, 1, 1])
    return GroupIndex(values, values[::-1], class_names=(HOSTILE, "dog"), attribute_names=("in", HOSTILE + "x"))


def test_tables_of_groups_evaluations_and_audits() -> None:
    groups = index()
    evaluation = evaluate_logits(np.eye(2)[[0, 0, 1, 0]], groups)
    for text, lines in (
        (str(groups.table()), 3),
        (repr(groups), 4),
        (str(evaluation), 6),
        (str(policies.balance_attributes().audit(groups)), None),
    ):
        assert not controls(text) and SHOWN in text
        assert lines is None or text.count("\n") + 1 == lines, text
    assert evaluation.groups[0].name.startswith(HOSTILE), "the data keep the names"


def test_pictures_and_pages_remove_controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    original = Figure.savefig

    def savefig(self: Figure, *arguments: object, **options: object) -> None:
        texts.extend(found.get_text() for found in self.findobj(Text))
        original(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    evaluation = evaluate_logits(np.eye(2)[[0, 0, 1, 0]], index())
    picture = draw_accuracy(tmp_path, [(HOSTILE, evaluation, "red"), ("$\\x$", evaluation, "blue")])
    draw_audit(tmp_path, {"erm": (0.5, 0.5)}, 0.5, HOSTILE)
    assert any("a[31mb" in text for text in texts) and not any(map(controls, texts))
    templates = jinja2.DictLoader(
        {"t": "{% macro m(x) %}<b>{{ x }}</b>{% endmacro %}{{ m(name) }}<p title='{{ name }}'>"}
    )
    monkeypatch.setattr(jinja2, "PackageLoader", lambda _: templates)
    write_page(tmp_path, "t", [picture], name=f"<i>{HOSTILE}")
    html = (tmp_path / "report.html").read_text()
    assert html == "<b>&lt;i&gt;a[31mb\nc[2J</b><p title='&lt;i&gt;a[31mb\nc[2J'>"
