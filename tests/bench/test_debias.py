"""The comparison of debiasing methods."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.debias import __main__ as command
from bench.debias import plots, protocol
from bench.debias.images import SETTINGS, ImageScale, make_images
from spurmix.train.sweep.statistics import SweepRow

TINY = ImageScale(bulk=300, epochs=0.2, test=80, validation=4)


@pytest.mark.parametrize("name", ["photos-2x2-95", "color-10x4-95", "background-2x2-95", "watermark-2x2-95"])
def test_images_have_a_biased_bulk_and_balanced_held_out_splits(name: str) -> None:
    setting = SETTINGS[name]
    train, validation, test = make_images(setting, np.random.default_rng(0), 8, TINY)
    known = train.groups.attributes != -1
    groups = setting.classes * setting.attributes
    assert (
        known.sum() == 8 * groups and set(test.groups.sizes) == {80 // groups} and set(validation.groups.sizes) == {4}
    )
    images = test.source.gather(torch.arange(4))
    assert tuple(images.shape) == (4, 3, 32, 32)
    everything = make_images(setting, np.random.default_rng(0), "all", TINY)[0].groups
    bulk = slice(0, len(everything.labels) - 100 * groups)
    usual = everything.attributes[bulk] == everything.labels[bulk] % setting.attributes
    assert usual.mean() == pytest.approx(0.95, abs=0.03)


def test_comparison_resumes_and_writes_tables_and_pictures(tmp_path: Path) -> None:
    plan = protocol.DebiasPlan(
        settings=("photos-2x2-95", "features-gaussian-2x2-95"), methods=("erm", "group_balanced"), known=(8, 32), trials=1,
        development=(100,), reported=(200,), scale=TINY,
    )  # fmt: skip
    lines: list[str] = []
    plan_of_images = protocol.DebiasPlan(**{**vars(plan), "settings": plan.settings[:1], "known": (8,)})
    protocol.run_debias(plan_of_images, tmp_path / "debias.jsonl", lines.append)
    assert len(lines) == 4
    rows = protocol.run_debias(plan_of_images, tmp_path / "debias.jsonl", lines.append)
    assert len(lines) == 4 and {row["method"] for row in rows} == {"erm", "group_balanced"}
    features = protocol.DebiasPlan(
        settings=plan.settings[1:], methods=("dfr",), known=(8,), reported=(200,), development=(100,)
    )
    rows += protocol.run_debias(features, tmp_path / "debias.jsonl", lines.append)
    rows += [{**row, "known": 32} for row in rows]  # type: ignore[misc]
    command.save(rows, plan, tmp_path / "debias.jsonl", 1.0)
    text = (tmp_path / "debias.md").read_text()
    assert "## images, 8 attributed examples" in text and "## features" in text and "Audits of the policies" in text
    result = json.loads((tmp_path / "debias.json").read_text())
    assert result["rank_correlations"]["all"]["residual"] is None  # two policies do not determine it
    for name in ("debias.png", "debias-attributed.png", "debias-audits.png"):
        assert (tmp_path / name).stat().st_size > 5000


def audited(method: str, residual: float, worst: float) -> SweepRow:
    return SweepRow(
        setting="photos-2x2-95", method=method, seed=200, known=100, worst=worst, average=worst, residual=residual,
        residual_given_lam=residual,
    )  # fmt: skip


def test_rank_correlation_of_audits() -> None:
    rows = [audited("erm", 0.9, 0.3), audited("mixup", 0.8, 0.35), audited("group_balanced", 0.0, 0.8),
            audited("lisa", 0.1, 0.9), audited("selecmix", 0.05, 0.85)]  # fmt: skip
    found = protocol.rank_correlations(protocol.audit_table(rows))
    assert found["all"]["residual"] == pytest.approx(0.6)
    assert found["debiasing"]["residual_given_lam"] == pytest.approx(-1)
    assert math.isnan(protocol.rank_correlations(protocol.audit_table(rows[:2]))["all"]["residual"])
    assert "debiasing policies: -1.00" in protocol.markdown(rows)


def test_pictures_of_many_methods(tmp_path: Path) -> None:
    rows = [audited(f"method {k}", 0.1, 0.5) for k in range(25)]
    assert plots.plot_methods(rows, tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "'magic' is not one of erm"),
        (["--setting", "nothing*"], "matches no setting"),
        (["--known", "0"], 'must be a positive integer or "all"'),
        (["--seeds", "0"], "--seeds must be a positive integer"),
        (["--epochs", "nan"], "--epochs must be a positive number"),
        (["--out", "results.json"], "must be a file name that ends in .jsonl"),
    ],
)
def test_invalid_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_list_names_settings_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(
        name in text for name in ("photos-2x2-99", "texts-2x2-95", "features-color-10x2-95", "group_dro", "dfr_l2")
    )


@pytest.mark.slow
def test_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--quick"]) == 0
    assert "## features" in capsys.readouterr().out
