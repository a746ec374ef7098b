"""Unknown attributes in every spelling, and the code -1 and 1, which is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

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
        np.array([0, pandas.NaT, 1, None], dtype=object),
        torch.tensor([0, float("nan"), 1, float("nan")]),
        torch.tensor([0, float("nan"), 1, float("nan")], dtype=torch.bfloat16),
        [0.0, -1.0, 1.0, -1.0],
        torch.tensor([0, -1, 1, -1], dtype=torch.bfloat16),
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
        [-1.0, 1.0, 1.0, -1.0],
        np.array([-1, 1, 1, 1], np.float16),
        pandas.Series([-1.0, 1.0, 1.0, 1.0]),
        np.array([-1.0, 1, 1, 1.0], dtype=object),
        np.ma.MaskedArray([-1.0, 1, 1, 1.0], False),
        torch.tensor([-1.0, 1, 1, 1.0]),
        torch.tensor([-1, 1, 1, 1], dtype=torch.bfloat16),
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


@pytest.mark.parametrize("unknown", [[], [None], [float("nan")]])
@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.array,
        pandas.Series,
        lambda values: np.array(values, dtype=object),
        lambda values: torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float16),
        lambda values: torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.bfloat16),
    ],
)
def test_whole_numbers_are_attributes_with_and_without_missing_ones(convert: Any, unknown: list[float | None]) -> None:
    groups = GroupIndex([0] * (3 + len(unknown)), convert([0.0, 2.0, 1.0, *unknown]))
    assert groups.attributes is not None and groups.attributes.tolist() == [0, 2, 1, *[-1 for _ in unknown]]


def test_booleans_are_attributes() -> None:
    for given in ([True, False], np.array([True, False]), torch.tensor([True, False]), pandas.Series([True, False])):
        assert GroupIndex([0, 1], given).attributes.tolist() == [1, 0]  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.5, TypeError, "attributes must be integers, got 0.5 at position 1"),
        (float("-inf"), TypeError, "attributes must be integers, got -inf at position 1"),
        (1e300, ValueError, r"attributes must be less than 2\^31, got 1e\+300 at position 1"),
        (-1e300, ValueError, r"attributes must be -1 or more, got -1e\+300 at position 1"),
        (-2.0, ValueError, "attributes must be -1 or more, got -2 at position 1"),
        (2**70, ValueError, rf"attributes must be less than 2\^31, got {2**70} at position 1"),
        (Decimal("0.1"), TypeError, r"attributes must be integers, got Decimal\('0.1'\) at position 1"),
    ],
)
def test_other_attributes_have_one_error_with_and_without_missing_ones(
    value: Any, error: type[Exception], message: str
) -> None:
    for given in ([0, value, 1], [0, value, None], [[0, 1], [0, value], [1, None]]):
        with pytest.raises(error, match=message):
            GroupIndex([0, 1, 1], given)  # type: ignore[arg-type]


@pytest.mark.parametrize("unknown", ["0", None])
def test_strings_are_refused_with_the_way_to_code_them(unknown: str | None) -> None:
    for given in (
        ["-1", "1", unknown],
        np.array(["-1", "1", unknown], dtype=object),
        pandas.Series(["-1", "1", unknown]),
    ):
        with pytest.raises(
            TypeError, match=r"got '-1' at position 0; code the values as 0, 1, 2, ... and .* attribute_names"
        ):
            GroupIndex([0, 1, 1], given)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"labels must be integers, got 'cat' at position 0; code the values .* class_names"
    ):
        GroupIndex(["cat", "dog"])  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_and_groups_that_are_floats_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"labels must be integers, got dtype {dtype}; convert whole numbers to int"):
        GroupIndex(torch.tensor([-1, 1], dtype=dtype))
    with pytest.raises(TypeError, match=f"groups must be integers, got dtype {dtype}; convert whole numbers to int"):
        GroupIndex([0, 1], groups=torch.tensor([0, 1], dtype=dtype))


def test_tensors_without_values_are_refused() -> None:
    for given in (torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.int64).to_sparse()):
        with pytest.raises(
            TypeError, match=r"attributes must be integers, but the tensor of dtype .* cannot be converted"
        ):
            GroupIndex([0, 1], given)
