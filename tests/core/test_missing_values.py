"""Unknown attributes in every spelling, and the code -1 and 1, which is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spurmix import GroupIndex

pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")


@pytest.mark.parametrize(
    "attributes",
    [
        [0, None, 1, -1],
        [0, float("nan"), 1, None],
        np.array([0, np.nan, 1, np.nan]),
        np.array([0, pandas.NA, 1, None], dtype=object),
        np.ma.MaskedArray([0, 7, 1, 5], [False, True, False, True]),
        np.ma.MaskedArray(np.array([0, 255, 1, 255], np.uint8), [False, True, False, True]),
        np.ma.MaskedArray([0.0, np.nan, 1.0, 3.5], [False, True, False, True]),
        pandas.Series([0, None, 1, None]),
        pandas.Series([0, None, 1, None], dtype="Int64"),
        pandas.array([False, None, True, None], dtype="boolean"),
        pyarrow.array([0, None, 1, None]),
        torch.tensor([0, float("nan"), 1, float("nan")]),
    ],
    ids=lambda values: f"{type(values).__module__}.{type(values).__name__}",
)
def test_unknown_attributes_of_any_spelling(attributes: object) -> None:
    groups = GroupIndex([0, 0, 1, 1], attributes)  # type: ignore[arg-type]
    assert groups.attributes is not None and groups.attributes.tolist() == [0, -1, 1, -1]
    assert groups.group_attributes.tolist() == [-1, 0, -1, 1]


def test_unknown_attributes_of_several_columns() -> None:
    table = pandas.DataFrame({"a": pandas.array([0, None], dtype="Int64"), "b": [1.0, float("nan")]})
    for given in (table, [[0, 1], [None, None]], np.ma.MaskedArray([[0, 1], [9, 9]], [[0, 0], [1, 1]])):
        assert GroupIndex([0, 1], given).cells.tolist() == [[0, 0, 1], [1, -1, -1]]  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    "attributes",
    [
        [-1, 1, 1, -1],
        np.array([-1, 1, 1, 1], np.int8),
        [-1, 1, 1, None],
        np.array([-1, 1, np.nan, 1]),
        [[0, -1], [1, 1], [2, 1], [0, -1]],
        np.ma.MaskedArray([-1, 1, 0, 1], [False, False, True, False]),
    ],
)
def test_attributes_coded_minus_one_and_one_are_refused(attributes: object) -> None:
    for options in ({}, {"groups": [0, 0, 1, 1]}):
        with pytest.raises(ValueError, match=r"exactly -1 and 1, and -1 means unknown; code two values as 0 and 1"):
            GroupIndex([0, 0, 1, 1], attributes, **options)  # type: ignore[arg-type]


def test_unknown_and_one_may_be_given_in_other_words() -> None:
    for given in ([None, 1, 1, None], np.ma.MaskedArray([-1, 1, 1, -1], [True, False, False, True])):
        assert GroupIndex([0, 0, 1, 1], given).group_attributes.tolist() == [-1, 1, -1, 1]  # type: ignore[arg-type]
    masked = np.ma.MaskedArray([-1, 1, 1, -1], [True, False, False, True])
    assert np.shares_memory(GroupIndex([0, 0, 1, 1], masked).attributes, masked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        [0, None, 1],
        [0, float("nan"), 1],
        np.ma.MaskedArray([0, 0, 1], [False, True, False]),
        pandas.array([0, None, 1]),
    ],
)
def test_missing_labels_and_groups_are_refused(values: object) -> None:
    with pytest.raises(ValueError, match="labels must not have missing values, got one at position 1"):
        GroupIndex(values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups must not have missing values, got one at position 1"):
        GroupIndex([0, 0, 1], groups=values)  # type: ignore[arg-type]


def test_labels_coded_minus_one_and_one_are_refused() -> None:
    with pytest.raises(ValueError, match="got -1 at position 1; code two classes as 0 and 1"):
        GroupIndex([1, -1, 1])


def test_attribute_names_that_spell_a_missing_value_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"attribute_names: 'nan' can mean a missing value.*as unknown \(-1\)"):
        GroupIndex([0, 0, 1], [0, 1, 2], attribute_names=["in", "nan", "out"])
