"""The adjusted average weights groups by their sizes in training, whatever their numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from spurmix import GroupIndex
from spurmix.train.metrics import evaluate_logits

CELLS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
COUNTS = [7, 3, 1, 9]
LABELS = np.array([0, 0, 1, 1])
FIRST_WRONG = np.eye(2)[[1, 0, 1, 1]]
"""Logits of one example per cell. Only the first prediction is wrong."""


def test_two_attribute_columns() -> None:
    train = GroupIndex(np.repeat(LABELS, COUNTS), np.repeat(CELLS, COUNTS, axis=0))
    result = evaluate_logits(FIRST_WRONG, GroupIndex(LABELS, CELLS), train_groups=train)
    assert result.adjusted_average == pytest.approx(0.65)
    assert result.missing_groups == result.untrained_groups == () and "note" not in str(result)


def test_custom_groups_are_joined_by_their_cells() -> None:
    split = GroupIndex([0, 0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 1], groups=[3, 2, 1, 0, 0, 0, 0])
    train = GroupIndex(np.repeat(LABELS, COUNTS), np.repeat(CELLS[:, 1], COUNTS), groups=np.repeat(range(4), COUNTS))
    logits = np.eye(2)[[0, 0, 1, 0, 1, 1, 1]]
    result = evaluate_logits(logits, split, train_groups=train)
    assert result.adjusted_average == pytest.approx((7 + 3 + 1 + 9 * 0.75) / 20)


def test_custom_groups_of_mixed_labels_are_joined_as_an_attribute_only() -> None:
    groups = np.array([0, 0, 1, 2])
    labels, train_labels = np.array([0, 1, 0, 1]), np.repeat([0, 1, 0, 1], COUNTS)
    with pytest.raises(ValueError, match=r"group 0 of the evaluated groups has several labels.*as an attribute column"):
        evaluate_logits(
            FIRST_WRONG,
            GroupIndex(labels, groups=groups),
            train_groups=GroupIndex(train_labels, groups=np.repeat(groups, COUNTS)),
        )
    split, train = GroupIndex(labels, groups), GroupIndex(train_labels, np.repeat(groups, COUNTS))
    logits = np.eye(2)[[1, 1, 0, 1]]
    assert evaluate_logits(logits, split, train_groups=train).adjusted_average == pytest.approx(1 - 7 / 20)


def test_attribute_names_in_another_order() -> None:
    split = GroupIndex(LABELS, CELLS[:, 1], attribute_names=["water", "land"])
    train = GroupIndex(
        np.repeat(LABELS, COUNTS), np.repeat(CELLS[:, 1], COUNTS), attribute_names=["land", "water", "sky"]
    )
    result = evaluate_logits(FIRST_WRONG, split, train_groups=train)
    assert result.adjusted_average == pytest.approx(1 - 3 / 20)


def test_groups_of_one_side_are_named() -> None:
    split = GroupIndex(LABELS[:3], [0, 2, 0], attribute_names=["land", "water", "sky"])
    train = GroupIndex(np.repeat(LABELS, COUNTS), np.repeat(CELLS[:, 1], COUNTS), attribute_names=["land", "water"])
    result = evaluate_logits(FIRST_WRONG[:3], split, train_groups=train)
    assert result.adjusted_average == pytest.approx(1 / 8)
    assert result.missing_groups == ("y=0, water", "y=1, water") and result.untrained_groups == ("y=0, sky",)
    stored = json.loads(json.dumps(result.to_dict()))
    assert stored["missing_groups"] == ["y=0, water", "y=1, water"] and stored["untrained_groups"] == ["y=0, sky"]
    assert "note: training groups without examples here: [y=0, water], [y=1, water]; the worst group" in str(result)
    assert "note: groups without training examples: [y=0, sky];" in str(result)
    everywhere = GroupIndex(np.arange(20), attribute_names=["none"])
    few = evaluate_logits(np.eye(20)[:1], GroupIndex([0]), train_groups=everywhere)
    assert len(few.missing_groups) == 19 and "[y=8] and 11 more;" in str(few)


def test_another_number_of_columns_is_refused_before_the_logits_are_read() -> None:
    with pytest.raises(ValueError, match="train_groups must have the same attribute columns"):
        evaluate_logits(None, GroupIndex(LABELS, CELLS), train_groups=GroupIndex(LABELS, CELLS[:, 0]))


def test_names_that_look_the_same_are_shown_with_repr() -> None:
    split = GroupIndex([0, 0, 1], [0, 1, 0], attribute_names=["land", "water"])
    train = GroupIndex([0, 0, 1, 1], [0, 1, 0, 1], attribute_names=["land", "water "])
    with pytest.warns(UserWarning, match="'water' and 'water ' differ only by white space"):
        result = evaluate_logits(np.eye(2)[[0, 0, 1]], split, train_groups=train)
    assert "without examples here: ['y=0, water '], ['y=1, water '];" in str(result)
    assert "groups without training examples: ['y=0, water'];" in str(result)
    assert result.missing_groups == ("y=0, water ", "y=1, water ")
