"""Join of groups: by names, by whole cells, by custom numbers; what is refused and what is missing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spurmix import GroupIndex
from spurmix.core.group_join import check_name_order, join_sizes


def index(cells: list[list[int]], counts: list[int], **options: Any) -> GroupIndex:
    """Groups with the given cells (label, attributes...) and sizes."""
    rows = np.repeat(np.array(cells), counts, axis=0)
    return GroupIndex(rows[:, 0], rows[:, 1:] if rows.shape[1] > 1 else None, **options)


CELLS = [[0, 0], [0, 1], [1, 0], [1, 1]]
TWO_COLUMNS = [[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]]


def test_groups_are_joined_by_all_attribute_columns() -> None:
    for spurious in (0, 1):
        split, train = (index(TWO_COLUMNS, n, spurious=spurious) for n in ([1] * 4, [7, 3, 1, 9]))
        assert join_sizes(split, train).sizes.tolist() == [7, 3, 1, 9]


@pytest.mark.parametrize("class_names", [None, ("cat", "dog")])
def test_attributes_are_joined_by_name(class_names: tuple[str, ...] | None) -> None:
    split = index(CELLS, [1] * 4, attribute_names=("water", "land"), class_names=class_names)
    train = index(CELLS, [7, 3, 1, 9], attribute_names=("land", "water"), class_names=class_names)
    joined = join_sizes(split, train)
    assert joined.sizes.tolist() == [3, 7, 9, 1] and joined.missing == () and joined.notes == ()
    unnamed = join_sizes(split, index(CELLS, [7, 3, 1, 9]))
    assert unnamed.sizes.tolist() == [7, 3, 1, 9]


def test_classes_are_joined_by_name() -> None:
    split = index(CELLS, [1] * 4, class_names=("dog", "cat"))
    joined = join_sizes(split, index(CELLS, [7, 3, 1, 9], class_names=("cat", "dog")))
    assert joined.sizes.tolist() == [1, 9, 7, 3]
    assert joined.notes == (
        "classes have other numbers in training; predictions are compared by the numbers of this split",
    )
    same_numbers = join_sizes(split, index(CELLS, [7, 3, 1, 9], class_names=("dog", "cat", "cow")))
    assert same_numbers.sizes.tolist() == [7, 3, 1, 9] and same_numbers.notes == ()


def test_values_that_one_side_lacks() -> None:
    split = index([[0, 0], [0, 1], [0, 2], [1, 2]], [1] * 4, attribute_names=("sky", "land", "water"))
    train = index([*CELLS, [1, 2]], [7, 3, 1, 9, 2], attribute_names=("water", "land", "fire"))
    joined = join_sizes(split, train)
    assert joined.sizes.tolist() == [0, 3, 7, 1]
    assert joined.missing == ("y=1, land", "y=1, fire")


def test_unknown_attributes_are_joined_to_unknown_attributes() -> None:
    split = index([[0, -1], [0, 0], [0, 1]], [1, 1, 1], attribute_names=("b", "a"))
    train = index([[0, -1], [0, 0], [1, -1]], [4, 5, 6], attribute_names=("a", "b"))
    joined = join_sizes(split, train)
    assert joined.sizes.tolist() == [4, 0, 5] and joined.missing == ("y=1, unknown",)


def custom(cells: list[list[int]], groups: list[int], counts: list[int], **options: Any) -> GroupIndex:
    """Custom groups: cell k has the group `groups[k]`."""
    return index(cells, counts, groups=np.repeat(groups, counts), **options)


def test_custom_groups_are_joined_by_cell_and_not_by_number() -> None:
    split = custom(CELLS, [3, 2, 1, 0], [1, 1, 1, 4])
    joined = join_sizes(split, custom(CELLS, [0, 1, 2, 3], [7, 3, 1, 9]))
    assert joined.sizes.tolist() == [9, 1, 3, 7] and joined.missing == ()
    fewer = join_sizes(custom(CELLS[:2], [5, 0], [1, 1]), custom(CELLS, [0, 1, 2, 3], [7, 3, 1, 9]))
    assert fewer.sizes.tolist() == [3, 0, 0, 0, 0, 7] and fewer.missing == ("group 2", "group 3")


@pytest.mark.parametrize("side", ["class_names", "attribute_names"])
def test_custom_groups_are_joined_by_the_names_of_their_cells(side: str) -> None:
    split = custom(CELLS, [0, 1, 2, 3], [1] * 4, **{side: ("cat", "dog")})
    train = custom(CELLS, [0, 1, 2, 3], [7, 3, 1, 9], **{side: ("dog", "cat")})
    assert join_sizes(split, train).sizes.tolist() == ([1, 9, 7, 3] if side == "class_names" else [3, 7, 9, 1])


def test_custom_groups_are_joined_by_label_if_there_are_no_attributes() -> None:
    joined = join_sizes(custom([[0], [1]], [1, 0], [1, 1]), custom([[0], [1]], [0, 1], [7, 3]))
    assert joined.sizes.tolist() == [3, 7]


def test_an_index_is_joined_to_itself() -> None:
    mixed = GroupIndex([0, 1, 0, 1, 1], groups=[0, 0, 2, 2, 2])
    assert join_sizes(mixed, mixed).sizes.tolist() == [2, 0, 3] and join_sizes(mixed, mixed).missing == ()


MIXED_LABELS = GroupIndex([0, 1, 0, 1], [0, 0, 1, 1], groups=[0, 0, 1, 1])
CLUSTERS = GroupIndex([0, 0, 1, 1], groups=[0, 1, 2, 3])


@pytest.mark.parametrize(
    ("split", "train", "text"),
    [
        (MIXED_LABELS, custom(CELLS, [0, 1, 2, 3], [1] * 4), "group 0 of the evaluated groups has several labels"),
        (custom(CELLS, [0, 1, 2, 3], [1] * 4), MIXED_LABELS, "group 0 of train_groups has several labels"),
        (
            MIXED_LABELS,
            GroupIndex([0, 1, 0, 1], [0, 0, 1, 1], groups=[1, 1, 0, 0]),
            "give the group numbers as an attr",
        ),
        (
            CLUSTERS,
            GroupIndex([0, 0, 1, 1], groups=[1, 0, 2, 3]),
            "0 and 1 of the evaluated groups have the same label",
        ),
        (GroupIndex([0, 1], groups=[0, 2]), CLUSTERS, "groups 0 and 1 of train_groups have the same label"),
    ],
)
def test_custom_groups_that_are_not_single_cells_are_refused(split: GroupIndex, train: GroupIndex, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        join_sizes(split, train)


def test_custom_groups_of_one_cell_are_joined_to_cells() -> None:
    cells = index(CELLS, [7, 3, 1, 9])
    parts = GroupIndex([0, 0, 1, 1, 1], [0, 1, 0, 1, 1], groups=[3, 2, 1, 0, 4])
    assert join_sizes(cells, parts).sizes.tolist() == [1, 1, 1, 2]
    with pytest.raises(ValueError, match="groups 0 and 4 of the evaluated groups have the same label and attributes"):
        join_sizes(parts, cells)
    single = GroupIndex([0, 0, 1], [0, 1, 0], groups=[3, 2, 1])
    joined = join_sizes(single, cells)
    assert joined.sizes.tolist() == [0, 1, 3, 7] and joined.missing == ("y=1, a=1",)


@pytest.mark.parametrize(
    ("split", "train", "text"),
    [
        (index(CELLS, [1] * 4), index(TWO_COLUMNS, [1] * 4), "same attribute columns .* have 1, got 2"),
        (index(TWO_COLUMNS, [1] * 4), index(CELLS, [1] * 4), "same attribute columns .* have 2, got 1"),
        (index(CELLS, [1] * 4), index([[0], [1]], [1, 1]), "same attribute columns .* have 1, got 0"),
        (index([[0], [1]], [1, 1]), index(CELLS, [1] * 4), "same attribute columns .* have 0, got 1"),
        (index(TWO_COLUMNS, [1] * 4), index(TWO_COLUMNS, [1] * 4, spurious=1), "same spurious column"),
        (MIXED_LABELS, index(CELLS, [1] * 4), "group 0 of the evaluated groups has several labels"),
        (index(CELLS, [1] * 4), MIXED_LABELS, "group 0 of train_groups has several labels"),
        (
            index(CELLS, [1] * 4, attribute_names=("a", "a")),
            index(CELLS, [1] * 4, attribute_names=("a", "b")),
            "attribute_names must be different names to be compared, got a, a",
        ),
    ],
)
def test_groups_that_cannot_be_joined_are_refused(split: GroupIndex, train: GroupIndex, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        join_sizes(split, train)


def test_no_attributes_are_one_attribute_that_is_always_zero() -> None:
    bare, zeros = index([[0], [1]], [2, 3]), index([[0, 0], [1, 0]], [4, 5])
    assert join_sizes(bare, zeros).sizes.tolist() == [4, 5]
    assert join_sizes(zeros, bare).sizes.tolist() == [2, 3]


def test_many_groups_are_joined_quickly() -> None:
    number = np.arange(100_000)
    split = GroupIndex(number % 1000, number // 1000)
    joined = join_sizes(split, split)
    assert joined.sizes.sum() == 100_000 and joined.missing == ()


def test_order_of_class_names() -> None:
    groups = GroupIndex([0, 1], class_names=["cat", "dog"])
    check_name_order(["cat", "hound"], groups, "class_names")
    check_name_order(["dog", "cat"], GroupIndex([0, 1]), "class_names")
    with pytest.raises(
        ValueError, match="class_names: class 'dog' has the number 0, but the groups give it the number 1"
    ):
        check_name_order(["dog", "cat"], groups, "class_names")


@pytest.mark.parametrize("alike", [("water", "water "), ("é", "e\u0301"), ("a b", "a\u00a0b"), ("cat", "\ufeffcat")])
@pytest.mark.parametrize("side", ["class_names", "attribute_names"])
def test_names_of_two_datasets_that_look_the_same(alike: tuple[str, str], side: str) -> None:
    split = index(CELLS, [1] * 4, **{side: ("land", alike[0])})
    train = index(CELLS, [7, 3, 1, 9], **{side: ("land", alike[1])})
    text = re.escape(f"{side} of two datasets: {alike[0]!a} and {alike[1]!a} differ only by white space")
    with pytest.warns(UserWarning, match=text):
        joined = join_sizes(split, train)
    assert joined.sizes.tolist() == ([7, 3, 0, 0] if side == "class_names" else [7, 0, 1, 0])


def test_class_names_that_look_the_same_as_those_of_the_groups() -> None:
    groups = GroupIndex([0, 1], class_names=["cat", "dog"])
    with pytest.warns(UserWarning, match="class_names of two datasets: 'dog ' and 'dog' differ only"):
        check_name_order(["dog ", "cat2"], groups, "class_names")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.booleans())
def test_sizes_equal_a_join_of_the_examples(seed: int, named: bool, custom_split: bool, custom_train: bool) -> None:
    rng = np.random.default_rng(seed)
    classes, values = np.array(["cat", "dog", "cow"]), np.array(["in", "out", "sky"])

    def side(is_custom: bool) -> tuple[GroupIndex, list[tuple[str, str]]]:
        class_order, value_order = (rng.permutation(3) if named else np.arange(3) for _ in range(2))
        cells = rng.integers(0, 3, (rng.integers(1, 12), 2))
        known = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
        groups = rng.permutation(12)[known] if is_custom else None
        names = {"class_names": classes[class_order], "attribute_names": values[value_order]} if named else {}
        found = GroupIndex(cells[:, 0], cells[:, 1], groups=groups, **{k: v.tolist() for k, v in names.items()})
        keys = zip(classes[class_order[cells[:, 0]]], values[value_order[cells[:, 1]]], strict=True)
        return found, [(str(y), str(a)) for y, a in keys]

    (split, split_keys), (train, train_keys) = side(custom_split), side(custom_train)
    joined = join_sizes(split, train)
    expected = np.zeros(split.num_groups, dtype=np.int64)
    for group, key in zip(split.group_ids().tolist(), split_keys, strict=True):
        expected[group] = train_keys.count(key)
    assert joined.sizes.tolist() == expected.tolist()
    assert len(joined.missing) == len(set(train_keys) - set(split_keys))
