"""GroupIndex: order of groups, members, names, custom groups, and rejected input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spurmix import GroupIndex
from spurmix.core import cells, memory
from spurmix.core.groups import MIXED


def test_groups_are_the_cells_in_lexicographic_order_unknown_first() -> None:
    groups = GroupIndex([1, 0, 1, 0, 0], [1, 0, -1, 2, 0])
    assert groups.cells is not None and groups.cells.tolist() == [[0, 0], [0, 2], [1, -1], [1, 1]]
    assert groups.offsets.tolist() == [0, 2, 3, 4, 5]
    assert groups.members is not None and groups.members.tolist() == [1, 4, 3, 2, 0]
    assert groups.members.dtype == np.int32
    assert groups.group_ids().tolist() == [3, 0, 2, 1, 0]


def test_sorted_input_has_no_members_array() -> None:
    groups = GroupIndex([0, 0, 1], [0, 1, 0])
    assert groups.members is None
    assert groups.examples(1).tolist() == [1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_any_integer_dtype_and_views(dtype: type, rng: np.random.Generator) -> None:
    labels = rng.integers(0, 5, 400).astype(dtype)[::2]
    attributes = rng.integers(0, 3, (200, 2)).astype(dtype)
    groups = GroupIndex(labels, attributes, spurious=1)
    expected = np.lexsort((attributes[:, 1], attributes[:, 0], labels))
    assert groups.members is not None and groups.members.tolist() == expected.tolist()
    assert np.shares_memory(groups.labels, labels)


def test_tensors_lists_and_bools() -> None:
    labels = torch.tensor([1, 0, 1])
    for given_labels in (labels, labels.to(torch.uint8), labels.bool(), labels.numpy(), labels.tolist()):
        assert GroupIndex(given_labels).sizes.tolist() == [1, 2]


@given(
    hnp.arrays(np.int16, st.integers(1, 300), elements=st.integers(0, 400)),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_members_are_a_stable_sort_compiled_and_in_numpy(labels: np.ndarray, columns: int, random: object) -> None:
    n = labels.size
    attributes = np.array([[random.randint(-1, 2) for _ in range(columns)] for _ in range(n)])  # type: ignore[attr-defined]
    groups = GroupIndex(labels, attributes)
    ids = groups.group_ids()
    order = groups.members if groups.members is not None else np.arange(n)
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == np.argsort(ids, kind="stable").tolist()
    assert groups.sizes.sum() == n and groups.sizes.min() >= 1
    assert groups.cells is not None
    assert np.array_equal(groups.cells[ids], np.column_stack([labels, attributes]))
    low = [int(labels.min())]
    plain = np.empty(n, dtype=np.int32)
    keys, counts, identity = cells._sort_in_numpy([labels], low, [int(labels.max()) - low[0] + 1], plain)
    own = GroupIndex(labels)
    assert counts.tolist() == own.sizes.tolist()
    assert (keys + low[0]).tolist() == own.group_labels.tolist()
    assert identity == (own.members is None)


def test_wide_ranges_of_values_need_little_memory() -> None:
    labels = np.array([2**31 - 1, 5, 2**31 - 1, 0])
    attributes = np.array([[10**6, 3], [7, 2**30], [10**6, 3], [-1, -1]])
    groups = GroupIndex(labels, attributes)
    assert groups.sizes.tolist() == [1, 1, 2]
    assert groups.group_labels.tolist() == [0, 5, 2**31 - 1]


def test_custom_groups_may_be_empty_or_mixed() -> None:
    groups = GroupIndex([0, 1, 1, 0], [0, 0, 1, -1], groups=[2, 0, 0, 2])
    assert groups.sizes.tolist() == [2, 0, 2]
    assert groups.group_labels.tolist() == [1, MIXED, 0]
    assert groups.group_attributes.tolist() == [MIXED, MIXED, MIXED]


def test_table_and_names() -> None:
    groups = GroupIndex([0, 0, 1, 1], [0, 1, 0, -1], class_names=["cat", "dog"], attribute_names=["in", "out"])
    rows = list(groups.table())
    assert [r["count"] for r in rows] == [1, 1, 1, 1]
    assert rows[1]["label"] == "cat" and rows[1]["attribute"] == "out"
    assert rows[2]["attribute"] == -1
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    assert "dog" in str(groups.table()) and "25.00%" in repr(groups)
    assert groups.group_name(2) == "dog, unknown"
    assert groups.table().names("attribute") == ["in", "out", "unknown", "in"]


def test_tables_and_names_have_one_word_for_unknown_and_mixed() -> None:
    one = GroupIndex([0, 1, 1], [0, -1, 1])
    assert one.table().names("attribute") == ["0", "unknown", "1"]
    assert "unknown" in str(one.table()) and "-1" not in repr(one)
    two = GroupIndex([0, 1], [[0, -1], [-1, 2]])
    assert two.table().names("attribute") == ["(0, unknown)", "(unknown, 2)"]
    assert [two.group_name(g) for g in range(2)] == ["y=0, (0, unknown)", "y=1, (unknown, 2)"]
    custom = GroupIndex([0, 1, 1], [0, 1, -1], groups=[0, 0, 1])
    assert custom.table().names("label") == ["mixed", "1"]
    assert custom.table().names("attribute") == ["mixed", "unknown"]
    named = GroupIndex([0, 1], [0, 1], attribute_names=["-1", "in"])
    assert named.table().names("attribute") == ["-1", "in"]


def test_fingerprint_depends_on_the_grouping() -> None:
    a = GroupIndex([0, 1, 1, 0], [0, 0, 1, 1])
    assert a.fingerprint() == GroupIndex(torch.tensor([0, 1, 1, 0]), np.array([0, 0, 1, 1], np.int8)).fingerprint()
    assert a.fingerprint() != GroupIndex([0, 1, 1, 0], [0, 1, 0, 1]).fingerprint()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (dict(labels=[]), ValueError, "empty"),
        (dict(labels=[0.0, 1.0]), TypeError, "labels must be integers"),
        (dict(labels=["a"]), TypeError, "labels must be integers"),
        (dict(labels=[0, -1]), ValueError, "labels must be 0 or more, got -1 at position 1"),
        (dict(labels=[0, 2**31]), ValueError, "less than 2^31"),
        (dict(labels=[[0, 1]]), ValueError, "labels must have shape"),
        (dict(labels=[0, 1], attributes=[0]), ValueError, "attributes must have 2 entries like labels, got 1"),
        (dict(labels=[0, 1], attributes=[0, -2]), ValueError, "attributes must be -1 or more, got -2"),
        (dict(labels=[0, 1], attributes=[0.5, 1]), TypeError, "attributes must be integers"),
        (dict(labels=[0, 1], attributes=np.zeros((2, 0), int)), ValueError, "at least one column"),
        (dict(labels=[0, 1], attributes=[0, 1], spurious=1), ValueError, "spurious"),
        (dict(labels=[0, 1], groups=[0]), ValueError, "groups must have 2 entries"),
        (dict(labels=[0, 1], groups=[0, -1]), ValueError, "groups must be 0"),
        (
            dict(labels=[0, 3], class_names=["a", "b"]),
            ValueError,
            "class_names must have a name for each value from 0 to 3, got 2",
        ),
        (dict(labels=[0, 1], class_names="ab"), TypeError, "class_names"),
    ],
)
def test_bad_input(arguments: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text.replace("[", r"\[").replace("^", r"\^")):
        GroupIndex(**arguments)


def test_ten_million_labels_allocate_one_array() -> None:
    labels = np.zeros(10_000_000, dtype=np.uint8)
    labels[1::2] = 1
    groups = GroupIndex(labels)
    assert groups.members is not None and groups.members.nbytes == 40_000_000
    assert groups.examples(1)[:3].tolist() == [1, 3, 5]


@pytest.mark.parametrize("size", [0, 1, 4096, memory.HUGE_PAGE - 1, memory.HUGE_PAGE, 2 * memory.HUGE_PAGE + 12])
def test_large_arrays_have_aligned_pages(size: int) -> None:
    array = memory.pages(size)
    assert array.shape == (size,) and array.flags.writeable and not array.any()
    assert array.ctypes.data % (memory.HUGE_PAGE if size >= memory.HUGE_PAGE else 4096) == 0 or size == 0
    array[...] = 7
    assert memory.empty(size // 4, np.int32).shape == (size // 4,)
    assert memory.empty(size // 4, np.int32).ctypes.data % (memory.HUGE_PAGE if size >= memory.HUGE_PAGE else 4) == 0


def test_failed_allocation_raises_memory_error() -> None:
    with pytest.raises(MemoryError, match="cannot allocate"):
        memory.empty(1 << 59, np.int64)


def test_fields_of_packed_records() -> None:
    rows = np.zeros(100, dtype=[("pad", np.uint8), ("label", np.int64), ("attribute", np.int16)])
    rows["label"], rows["attribute"] = np.arange(100) % 3, np.arange(100) % 2
    assert GroupIndex(rows["label"], rows["attribute"]).sizes.tolist() == [17, 17, 16, 17, 17, 16]
