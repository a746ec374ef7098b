"""Packed rows of partners select the groups that dense rows of thresholds select, and store shared parts once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from spurmix import GroupIndex, MixPolicy, policies
from spurmix.core import memory, packed_rows, partners
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.contradicting import contradicting_partners
from spurmix.core.packed_rows import PackedRows, pack_rows, unpack_rows, unpack_thresholds
from spurmix.core.partners import PartnerRows, expand
from spurmix.core.schedule import partner_thresholds
from spurmix.core.table_layout import FLAG_SUMS
from spurmix.core.tables import build_tables


def dense(packed: PackedRows, count: int) -> Int64Array:
    """A threshold of every group for each row, `[R, G]`."""
    _, slice_first, slice_length = unpack_rows(packed.rows)
    thresholds = np.zeros((len(packed.rows), count), dtype=np.int64)
    for row in range(len(packed.rows)):
        groups = packed.lists[expand(slice_first[row], slice_length[row])]
        assert (np.diff(groups) > 0).all()
        values = unpack_thresholds(packed.rows[row : row + 1], packed.lists, packed.flags)
        thresholds[row, groups] = np.diff(values, prepend=0)
    return np.cumsum(thresholds, axis=1)


def expected(matrix: FloatArray) -> tuple[list[int], list[list[int]]]:
    """Row of each group and the distinct rows, in the order of the groups."""
    rows: list[list[int]] = []
    row_of = []
    for weights in matrix:
        row = partner_thresholds(weights).tolist() if weights.any() else None
        if row is not None and row not in rows:
            rows.append(row)
        row_of.append(-1 if row is None else rows.index(row))
    return row_of, rows


@pytest.mark.parametrize("entries", [1, 7, 1 << 20])
@pytest.mark.parametrize("kind", ["dense", "sparse", "tiny", "repeated"])
def test_rows_of_a_matrix(kind: str, entries: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partners, "BLOCK_ENTRIES", entries)
    for count in (1, 2, 9, 30):
        matrix = rng.random((count, count)) * (rng.random((count, 1)) < 0.8)
        if kind == "sparse":
            matrix *= rng.random((count, count)) < 0.4
        if kind == "tiny":  # weights that change no threshold
            matrix *= np.where(rng.random((count, count)) < 0.5, 1e-15, 1.0)
        if kind == "repeated":
            matrix = (matrix > 0.4)[rng.integers(0, min(3, count), count)] * 1.0
        packed = pack_rows(PartnerRows.of_matrix(matrix), count)
        row_of, rows = expected(matrix)
        assert packed.row_of.tolist() == row_of
        assert dense(packed, count).tolist() == rows


def test_rows_without_partners() -> None:
    for given in (None, PartnerRows.of_matrix(np.zeros((3, 3)))):
        packed = pack_rows(given, 3)
        assert packed.row_of.tolist() == [-1, -1, -1] and packed.rows.size == packed.lists.size == 0


def test_rows_share_thresholds_and_groups() -> None:
    count = 300
    full = pack_rows(PartnerRows.of_matrix(np.random.default_rng(0).random((count, count))), count)
    assert full.lists.size == count * count + count  # all rows share one list of groups
    number = np.arange(20 * 30)
    rows = policies.lisa().resolve_arrays(GroupIndex(number // 30, number % 30)).partner_rows
    packed = pack_rows(rows, number.size)
    # Each class has one list of thresholds. A list of all groups by class, and one by attribute.
    assert packed.lists.size == 20 * (29 + 19) + 2 * number.size


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0, 1e-11])
@pytest.mark.parametrize("kind", ["all cells", "some cells", "unknown", "custom"])
def test_rows_of_running_sums(kind: str, p: float, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of running sums are the same distinct rows. Weights too small to change a threshold are stored otherwise."""
    monkeypatch.setattr(packed_rows, "MAX_THRESHOLDS", -1)
    monkeypatch.setattr(packed_rows, "MIN_ENTRIES", 0)
    number = rng.choice(60, 40, replace=False) if kind == "some cells" else np.arange(60)
    label, attribute = number // 6, number % 6 - (kind == "unknown")
    groups = GroupIndex(label, attribute)
    if kind == "custom":  # several groups for each cell, in the order of the cells
        groups = GroupIndex(np.repeat(label, 2), np.repeat(attribute, 2), groups=np.arange(120))
    rows = contradicting_partners(groups, p)
    packed = pack_rows(rows, groups.num_groups)
    row_of, distinct = expected(rows.matrix())
    assert packed.flags == (0 if p == 1e-11 else FLAG_SUMS)
    assert packed.row_of.tolist() == row_of
    assert dense(packed, groups.num_groups).tolist() == distinct


@pytest.mark.parametrize("shape", [(50_000, 2), (10_000, 10), (3801, 2)])
@pytest.mark.parametrize("make", [policies.lisa, policies.selecmix])
def test_tables_of_many_classes_are_small(make: Callable[[], MixPolicy], shape: tuple[int, int]) -> None:
    number = np.arange(shape[0] * shape[1])
    groups = GroupIndex(number // shape[1], number % shape[1])
    tracemalloc.start()
    tables = build_tables(groups, make())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tables.packed.nbytes < 40e6 and peak < 200e6  # a threshold of each entry has up to 20 GB


def test_memory_is_checked_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1 << 28)
    rng = np.random.default_rng(1)
    cell = rng.choice(10**6, 130_000, replace=False)
    groups = GroupIndex(cell // 1000, cell % 1000, groups=np.arange(cell.size))  # not in the order of the cells
    with pytest.raises(ValueError, match=r"weights of partner groups, which need about .* GiB of memory, but 0\.2 GiB"):
        policies.lisa().resolve_arrays(groups)


def test_weights_beyond_the_range_of_floats() -> None:
    policy = MixPolicy(partner=[[1e308, 1e308], [1.0, 1.0]], lam=0.5)
    with pytest.raises(ValueError, match=r"partner: the weights of row 0 are too large, their sum must be less than"):
        policy.resolve_arrays(GroupIndex([0, 1]))
