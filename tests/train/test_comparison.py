"""Paired comparison of two models on the same examples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from spurmix import GroupIndex
from spurmix.train.comparison import compare_outcomes, holm, mcnemar
from spurmix.train.metrics import Cells

RNG = np.random.default_rng(3)
LABELS, ATTRIBUTES = RNG.integers(0, 2, 400), RNG.integers(0, 2, 400)
GROUPS = GroupIndex(LABELS, ATTRIBUTES)
FIRST = RNG.random(400) < np.where(LABELS == ATTRIBUTES, 0.95, 0.6)
SECOND = np.where(RNG.random(400) < 0.7, FIRST, RNG.random(400) < 0.95)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (5, 5), (3, 12), (40, 2)])
def test_mcnemar_is_an_exact_binomial_test(counts: tuple[int, int]) -> None:
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected) == mcnemar(*counts[::-1])


def test_holm_adjustment() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.5])).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_groups_against_a_count_by_hand() -> None:
    result = compare_outcomes(FIRST, SECOND, GROUPS)
    for g, row in enumerate(result.rows):
        chosen = GROUPS.group_ids() == g
        a, b = FIRST[chosen], SECOND[chosen]
        assert (row.count, row.first, row.second) == (chosen.sum(), a.mean(), b.mean())
        assert (row.only_first, row.only_second) == ((a & ~b).sum(), (~a & b).sum())
        deviation = np.std(b.astype(float) - a) / np.sqrt(chosen.sum())
        assert row.high - row.low == pytest.approx(3.92 * deviation, rel=0.15)
    assert result.worst_first == min(row.first for row in result.rows)
    assert result.low <= result.difference <= result.high and result.difference > 0
    json.dumps(result.to_dict(), allow_nan=False)


def test_pairing_narrows_the_interval_of_the_worst_group() -> None:
    paired = compare_outcomes(FIRST, FIRST, GROUPS)
    assert (paired.low, paired.high, paired.difference) == (0, 0, 0) and {row.p_value for row in paired.rows} == {1}


def test_cells_that_partition_the_examples_agree_with_groups() -> None:
    members = np.stack([GROUPS.group_ids() == g for g in range(4)], axis=1)
    cells = Cells.of(members, [GROUPS.group_name(g) for g in range(4)], 400)
    by_group, by_cell = (compare_outcomes(FIRST, SECOND, GROUPS, cells=chosen) for chosen in (None, cells))
    assert by_cell.unit == "cell" and by_cell.difference == by_group.difference
    assert [row.p_value for row in by_cell.rows] == [row.p_value for row in by_group.rows]
    assert (by_cell.low, by_cell.high) == pytest.approx((by_group.low, by_group.high), abs=0.03)


def test_overlapping_and_empty_cells() -> None:
    members = RNG.random((400, 5)) < 0.4
    members[:, 2] = False
    result = compare_outcomes(FIRST, SECOND, GROUPS, cells=Cells.of(members, None, 400), min_group_size=100)
    assert [row.name for row in result.rows] == ["cell 0", "cell 1", "cell 3", "cell 4"]
    assert all(row.low <= row.difference <= row.high for row in result.rows)


def test_min_group_size() -> None:
    with pytest.raises(ValueError, match="min_group_size is 401, but the largest group has only"):
        compare_outcomes(FIRST, SECOND, GROUPS, min_group_size=401)
