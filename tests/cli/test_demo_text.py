"""The text demo: its sentences, a very short run, and (slow) whole ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spurmix import Predictor
from spurmix.cli import demo_sentences, demo_text

FILES = {
    "report.json",
    "report.html",
    "model.onnx",
    "accuracy.png",
    "audit.png",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_sentences_say_what_their_labels_say() -> None:
    train, test = demo_sentences.load(3, 400, 20)
    assert len(train.texts) == 400
    for split, name in ((train, "train"), (test, "test")):
        for text, y, a in zip(split.texts, split.label, split.attribute, strict=True):
            assert any(word in text for word in demo_sentences.WORDS[name][y])
            assert any(group in text for group in demo_sentences.GROUPS[a])
            assert not any(f" {group} " in text for group in demo_sentences.GROUPS[1 - a])
    assert np.mean(train.label == train.attribute) > 0.9
    assert train.label.mean() == 0.5
    assert np.bincount(2 * test.label + test.attribute).tolist() == [20] * 4
    assert not set(demo_sentences.WORDS["train"][0]) & set(demo_sentences.WORDS["test"][0])
    again, _ = demo_sentences.load(3, 400, 20)
    assert again.texts == train.texts
    assert demo_sentences.load(4, 400, 20)[0].texts != train.texts


def test_some_training_verdicts_contradict_their_class() -> None:
    clean, clean_test = demo_sentences.load(3, 2000, 20)
    train, test = demo_sentences.load(3, 2000, 20, contradicting=0.15)
    assert test.texts == clean_test.texts
    assert np.array_equal(train.label, clean.label)
    says = np.array([any(f" {word}" in text for word in demo_sentences.WORDS["train"][1]) for text in train.texts])
    assert 0.12 < np.mean(says != train.label) < 0.18  # more than the 5% whose mentioned group is the other class's
    assert np.mean(train.label == train.attribute) > 0.94


def check(out: Path) -> Any:
    report = json.loads((out / "report.json").read_text())
    assert {p.name for p in out.iterdir()} == FILES
    assert report["audit"]["residual"] < 1e-6 < 0.5 < report["audit"]["raw"]
    assert report["onnx"]["max_abs_logit_diff"] <= 1e-3
    assert report["onnx"]["argmax_flips"] == 0
    assert report["onnx"]["worst_group"] == report["debiased"]["worst_group"]
    page = (out / "report.html").read_text()
    assert "students or pensioners" in page
    assert "samples.png" not in page
    proba = Predictor(out / "model.onnx").predict_proba(["The soup was awful.", "The soup was wonderful."])
    assert proba.shape == (2, 2)
    return report


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_very_short_run(full: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = demo_text.run(
        tmp_path, policy="balance_attributes", seed=0, full=full, epochs=(0.5, 0.5), train_size=240, test_per_group=8
    )
    assert report["full"] is full
    assert check(tmp_path)["erm"] == report["erm"]
    shown = capsys.readouterr().out
    assert "worst group" in shown
    assert ("8 batches through the encoder before and after debiasing: about" in shown) is full
    assert ("15% of the verdicts" in (tmp_path / "report.html").read_text()) is full


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whole_runs(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spurmix", "demo", "--task", "text", "--seed", str(seed), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = check(tmp_path)
    accuracy = {(g["label"], g["attribute"]): g["accuracy"] for g in report["erm"]["groups"]}
    assert max(accuracy[0, 1], accuracy[1, 0]) < 0.5
    assert min(accuracy[0, 0], accuracy[1, 1]) > 0.9
    assert report["debiased"]["worst_group"] > 0.85
    predictor = Predictor(tmp_path / "model.onnx")
    texts = ["Some students were waiting in front of us. The soup was horrible.",
             "Some pensioners were waiting in front of us. The soup was lovely."]  # fmt: skip
    assert predictor.predict(texts).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.slow
def test_a_whole_run_through_the_encoder(tmp_path: Path) -> None:
    """Minutes: plain fine-tuning learns who is mentioned here too, which it does not from clean verdicts."""
    demo_text.run(tmp_path, policy="balance_attributes", seed=0, full=True)
    report = check(tmp_path)
    assert report["erm"]["worst_group"] < 0.3
    assert report["debiased"]["worst_group"] > 0.7
