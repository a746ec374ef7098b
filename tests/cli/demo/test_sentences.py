"""Texts of the demo: labels, attributes and splits."""

from __future__ import annotations

import numpy as np

from spurmix.cli.demo import sentences


def test_texts_match_their_labels_and_attributes() -> None:
    train, test = sentences.load(3, 400, 20)
    assert len(train.examples) == 400
    for split, name in ((train, "train"), (test, "test")):
        for text, y, a in zip(split.examples, split.label, split.attribute, strict=True):
            assert any(word in text for word in sentences.WORDS[name][y])
            assert any(group in text for group in sentences.GROUPS[a])
            assert not any(f" {group} " in text for group in sentences.GROUPS[1 - a])
    assert np.mean(train.label == train.attribute) > 0.9
    assert train.label.mean() == 0.5
    assert np.bincount(2 * test.label + test.attribute).tolist() == [20] * 4
    assert not set(sentences.WORDS["train"][0]) & set(sentences.WORDS["test"][0])
    again, _ = sentences.load(3, 400, 20)
    assert again.examples == train.examples
    assert sentences.load(4, 400, 20)[0].examples != train.examples


def test_some_training_opinions_contradict_their_class() -> None:
    clean, clean_test = sentences.load(3, 2000, 20)
    train, test = sentences.load(3, 2000, 20, contradicting=0.15)
    assert test.examples == clean_test.examples
    assert np.array_equal(train.label, clean.label)
    is_praise = np.array([any(f" {word}" in text for word in sentences.WORDS["train"][1]) for text in train.examples])
    assert 0.12 < np.mean(is_praise != train.label) < 0.18  # more than the 5% that mention the group of the other class
    assert np.mean(train.label == train.attribute) > 0.94
