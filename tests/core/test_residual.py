"""The residual correlation by iteration equals that of the dense pseudo-inverse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from spurmix import Beta, Fixed, GroupIndex, MixPolicy, policies
from spurmix.core import residual
from spurmix.core.residual import Pairs, SecondMoment

POLICIES: dict[str, Callable[[int], MixPolicy]] = {
    "lisa": lambda count: policies.lisa(),
    "selecmix": lambda count: policies.selecmix(),
    "mixup": lambda count: policies.mixup(2.0),
    "balance_attributes": lambda count: policies.balance_attributes(),
    "group_balanced": lambda count: policies.group_balanced(),
    "matrix": lambda count: MixPolicy(partner=np.random.default_rng(3).random((count, count)) ** 4, lam=Beta(0.4)),
    "swapped groups": lambda count: MixPolicy(partner=np.eye(count)[::-1], lam=Fixed(0.5)),  # degenerate
}


@pytest.mark.parametrize("shape", [(2, 70), (70, 2), (12, 12)])
@pytest.mark.parametrize("name", POLICIES)
def test_iteration_gives_the_audit_of_the_pseudo_inverse(
    name: str, shape: tuple[int, int], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = np.repeat(np.arange(shape[0] * shape[1]), rng.integers(1, 30, shape[0] * shape[1]))
    groups = GroupIndex(number // shape[1], number % shape[1])
    audits = []
    for iterate in (True, False):
        monkeypatch.setattr(residual, "COLUMNS_PER_SOLUTION", 0)
        monkeypatch.setattr(residual, "MIN_ITERATIVE", 2)
        if not iterate:
            monkeypatch.setattr(SecondMoment, "_is_dominant", lambda moment: False)
        audits.append(POLICIES[name](groups.num_groups).audit(groups))
    a, b = audits
    assert (a.raw, a.residual) == pytest.approx((b.raw, b.residual), abs=1e-7)
    assert a.residual_given_lam == pytest.approx(b.residual_given_lam, abs=1e-7)


def test_solutions_are_those_of_the_covariance(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 200
    share = rng.random(count) / count
    share /= share.sum()
    pairs = Pairs(2 * np.outer(share, share))
    moment = SecondMoment(share, 0.5 * share, pairs, 0.25)
    right = rng.standard_normal((count, 3))
    right -= right.mean(axis=0)
    solution, rank = moment.solve(right)
    assert rank == count - 1
    np.testing.assert_allclose(moment.covariance() @ solution, right, atol=1e-9 * np.abs(right).max())
    monkeypatch.setattr(SecondMoment, "_iterate", lambda moment, right: None)  # does not converge
    dense, rank = moment.solve(right)
    assert rank == count - 1
    np.testing.assert_allclose(dense - dense[0], solution - solution[0], rtol=1e-6, atol=1e-6 * np.abs(dense).max())
