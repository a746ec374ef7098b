"""Partner weights with shared rows equal the matrix of all groups, and need little memory for many groups."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from spurmix import GroupIndex, MixPolicy, policies
from spurmix.core import partners
from spurmix.core.partners import PartnerRows
from spurmix.core.tables import build_tables

POLICIES: list[Callable[[], MixPolicy]] = [
    policies.mixup, policies.lisa, policies.selecmix, lambda: policies.mixpro(target=1), policies.balance_attributes
]  # fmt: skip


@pytest.mark.parametrize("make", POLICIES)
def test_shared_rows_give_the_tables_and_audits_of_the_matrix(
    make: Callable[[], MixPolicy], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = np.stack([rng.integers(-1, 3, 300), rng.integers(0, 2, 300)], axis=1)
    groups = GroupIndex(rng.integers(0, 4, 300), attributes)
    policy = make().resolve(groups)
    assert isinstance(policy.partner, PartnerRows)
    assert policy.partner.count < groups.num_groups
    whole = MixPolicy(
        policy.strata, policy.weights, np.asarray(policy.partner), policy.lam, policy.labels, unknown=policy.unknown
    )
    for entries in (partners.BLOCK_ENTRIES, 40):  # one block, and blocks of one row
        monkeypatch.setattr(partners, "BLOCK_ENTRIES", entries)
        assert build_tables(groups, policy).fingerprint == build_tables(groups, whole).fingerprint
        shared, full = policy.audit(groups), whole.audit(groups)
        assert shared.residual == pytest.approx(full.residual, abs=1e-9)
        np.testing.assert_allclose(shared.joint, full.joint, atol=1e-12)
        np.testing.assert_allclose([g.uses for g in shared.groups], [g.uses for g in full.groups], rtol=1e-9)


def test_rows_of_groups_without_a_partner() -> None:
    rows = PartnerRows.of_rows(np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), np.array([0, 1, -1]))
    assert rows.row_of.tolist() == [0, -1, -1]
    assert rows.matrix().tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 0]] and rows.shape == (3, 3)


@pytest.mark.parametrize("make", [policies.erm, policies.group_balanced, policies.mixup])
def test_many_groups_need_no_matrix(make: Callable[[], MixPolicy]) -> None:
    number = np.arange(10_000)
    groups = GroupIndex(number // 100, number % 100)
    tracemalloc.start()
    audit = make().audit(groups)
    tables = build_tables(groups, make())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert audit.residual == pytest.approx(0, abs=1e-9)
    assert peak < 100e6 and tables.packed.nbytes < 1e6  # a matrix has 800 MB


def test_audit_of_pairs_of_groups_needs_no_matrix() -> None:
    number = np.arange(3600)
    groups = GroupIndex(number // 60, number % 60)
    policies.lisa().audit(GroupIndex([0, 0, 1, 1], [0, 1, 0, 1]))  # imports
    tracemalloc.start()
    audit = policies.lisa().audit(groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert audit.residual == pytest.approx(0, abs=1e-9) and peak < 90e6  # a matrix has 104 MB


@pytest.mark.parametrize("shape", [(2, 20_000), (200, 200), (500, 4)])
@pytest.mark.parametrize(
    "make", [policies.lisa, policies.selecmix, policies.balance_attributes, policies.group_balanced]
)
def test_tables_of_many_groups_are_small(make: Callable[[], MixPolicy], shape: tuple[int, int]) -> None:
    """Pairs of groups have up to 4 * 10^8 weights. The tables have the words that rows share."""
    number = np.arange(shape[0] * shape[1])
    groups = GroupIndex(number // shape[1], number % shape[1])
    tracemalloc.start()
    tables = build_tables(groups, make())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tables.packed.size < 20 * number.size + shape[0] * sum(shape)
    assert peak < 100e6
