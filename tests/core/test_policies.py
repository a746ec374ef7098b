"""Policies and the audit: residuals in closed form and by simulation, exactness of balance_attributes, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spurmix
from spurmix import Beta, Fixed, GroupIndex, MixPolicy, Uniform, draw, policies
from spurmix.core.resolved_policy import normalized_rows
from spurmix.core.tables import build_tables


def dataset(rng: np.random.Generator, n: int, classes: int, attributes: int, unknown: float) -> tuple[Any, Any]:
    y = rng.integers(0, classes, n)
    a = np.where(rng.random(n) < 0.7, y % attributes, rng.integers(0, attributes, n))
    return y, np.where(rng.random(n) < unknown, -1, a)


def everything(groups: GroupIndex) -> dict[str, MixPolicy]:
    rng = np.random.default_rng(5)
    return {
        "erm": policies.erm(),
        "class_balanced": policies.class_balanced(),
        "group_balanced": policies.group_balanced(),
        "mixup": policies.mixup(0.4),
        "lisa": policies.lisa(0.3),
        "selecmix": policies.selecmix(),
        "mixpro": policies.mixpro(target=1, s=0.3),
        "dispel": policies.dispel(0.6, 0.7),
        "balance mix": policies.balance_attributes(),
        "balance keep": policies.balance_attributes(lam=Uniform(0, 0.6), labels="keep"),
        "upweight": policies.upweight(rng.random(groups.num_groups) + 0.1),
    }


def simulate(groups: GroupIndex, policy: MixPolicy, soft_a: np.ndarray, count: int) -> tuple[float, np.ndarray]:
    """Residual correlation and joint table of `count` drawn samples; soft_a `[N, A]` is each example's attribute."""
    out = spurmix.draw(groups, policy, seed=9, start=0, count=count)
    index, partner, lam = out.index.numpy(), out.partner.numpy(), out.lam.numpy().astype(np.float64)[:, None]
    one_hot = np.eye(groups.num_classes)[groups.labels]
    keep = policy.resolve(groups).labels == "keep"
    y = one_hot[index] if keep else lam * one_hot[index] + (1 - lam) * one_hot[partner]
    a = lam * soft_a[index] + (1 - lam) * soft_a[partner]
    joint = y.T @ a / count

    def root(v: np.ndarray) -> tuple[np.ndarray, int]:
        c = v.T @ v / count - np.outer(v.mean(0), v.mean(0))
        w, q = np.linalg.eigh(c)
        good = w > 1e-6
        return (q[:, good] / np.sqrt(w[good])) @ q[:, good].T, int(good.sum())

    (ry, ny), (ra, na) = root(y), root(a)
    cov = joint - np.outer(y.mean(0), a.mean(0))
    return float(np.linalg.norm(ry @ cov @ ra) / np.sqrt(max(1, min(ny, na)))), joint


@pytest.mark.parametrize(("classes", "attributes", "unknown"), [(2, 2, 0.0), (3, 4, 0.0), (2, 2, 0.5), (3, 4, 0.3)])
def test_audit_agrees_with_simulation(classes: int, attributes: int, unknown: float, rng: np.random.Generator) -> None:
    y, a = dataset(rng, 4000, classes, attributes, unknown)
    groups = GroupIndex(y, a)
    known = np.array([[np.mean(a[(y == c) & (a >= 0)] == k) for k in range(attributes)] for c in range(classes)])
    # Draw unknown attributes from the shares of the class. The audit assumes that they are missing at random.
    filled = np.where(a >= 0, a, [rng.choice(attributes, p=known[c]) for c in y])
    for name, policy in everything(groups).items():
        audit = policy.audit(groups)
        residual, joint = simulate(groups, policy, np.eye(attributes)[filled], 400_000)
        # The drawn attributes differ from their expectation by a standard error.
        slack = 0.005 if unknown == 0 else 0.03
        assert audit.residual == pytest.approx(residual, abs=slack), name
        np.testing.assert_allclose(audit.joint, joint, atol=slack, err_msg=name)
        assert audit.joint.sum() == pytest.approx(1)


def test_audit_of_custom_groups(rng: np.random.Generator) -> None:
    y, a = dataset(rng, 3000, 3, 4, 0.0)
    partition = rng.integers(0, 3, 3000) + 2 * (y == a)
    groups = GroupIndex(y, a, groups=partition)
    for policy in (
        policies.erm(),
        policies.group_balanced(),
        policies.mixup(0.4),
        policies.upweight([1, 3, 0.5, 2, 1]),
    ):
        residual, joint = simulate(groups, policy, np.eye(4)[a], 400_000)
        audit = policy.audit(groups)
        assert audit.residual == pytest.approx(residual, abs=0.005)
        np.testing.assert_allclose(audit.joint, joint, atol=0.005)
    with pytest.raises(ValueError, match="lisa requires groups of a single class"):
        policies.lisa().audit(groups)


def test_residuals_in_closed_form(rng: np.random.Generator) -> None:
    y, a = dataset(rng, 2000, 2, 2, 0.0)
    groups = GroupIndex(y, a)
    raw = abs(float(np.corrcoef(y, a)[0, 1]))
    audit = policies.erm().audit(groups)
    assert audit.raw == pytest.approx(raw)
    assert audit.residual == pytest.approx(raw)
    assert policies.group_balanced().audit(groups).residual == pytest.approx(0, abs=1e-9)


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, Fixed(0.9), Beta(2), Uniform(), Fixed(0.01), 1.0]),
    st.sampled_from(["mix", "keep"]),
    st.booleans(),
)
def test_balance_attributes_is_exact(
    classes: int, attributes: int, seed: int, lam: Any, labels: Any, unknown: bool
) -> None:
    rng = np.random.default_rng(seed)
    cells = np.array([(c, k) for c in range(classes) for k in range(attributes)])
    y, a = np.concatenate([cells, cells[rng.integers(0, len(cells), 200)]]).T
    prior = None
    if unknown:
        y, a = np.concatenate([y, rng.integers(0, classes, 900)]), np.concatenate([a, np.full(900, -1)])
        prior = rng.dirichlet(np.ones(attributes) * 0.5, classes)
    audit = policies.balance_attributes(lam, labels, prior).audit(GroupIndex(y, a))
    expected = 0.0 if min(classes, attributes) > 1 else math.nan
    assert audit.residual == pytest.approx(expected, abs=1e-6, nan_ok=True)
    np.testing.assert_allclose(audit.joint, 1 / (classes * attributes), atol=1e-6)


@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_unmixed_samples_balance_attributes_given_lam(classes: int, attributes: int, seed: int, unmixed: float) -> None:
    rng = np.random.default_rng(seed)
    cells = np.array([(c, k) for c in range(classes) for k in range(attributes)])
    known = np.concatenate([cells, cells[rng.integers(0, len(cells), 100)]])
    y, a = np.concatenate(
        [known, [(c, -1) for c in range(classes)], np.stack([rng.integers(0, classes, 300), [-1] * 300], 1)]
    ).T
    groups, prior = GroupIndex(y, a), rng.dirichlet(np.ones(attributes), classes)
    # Shares of strata are multiples of 1 / 65536.
    policy = policies.balance_attributes(prior=prior, unmixed=unmixed)
    audit = policy.audit(groups)
    np.testing.assert_allclose(audit.joint, 1 / (classes * attributes), atol=1e-4)
    assert audit.residual == pytest.approx(0, abs=3e-4)
    assert audit.residual_given_lam == pytest.approx(0, abs=3e-4)
    shares = np.array([row.share for row in audit.groups])
    assert shares[groups.group_attributes >= 0].sum() == pytest.approx(unmixed, abs=1e-4)
    drawn = draw(groups, policy, seed=1, start=0, count=500)
    is_known = a[drawn.index.numpy()] >= 0
    assert (drawn.lam.numpy()[is_known] == 1).all() and (drawn.lam.numpy()[~is_known] < 1).all()
    assert (a[drawn.partner.numpy()[~is_known]] >= 0).all() and (y[drawn.index] == y[drawn.partner]).all()


@pytest.mark.parametrize(("y", "a"), [([0, 0, 1, 1], [0, 1, 0, 1]), ([0, 0, 0, 1, 1], [0, 1, -1, 0, -1])])
def test_unmixed_requires_all_attributes_in_each_class(y: list[int], a: list[int]) -> None:
    with pytest.raises(ValueError, match=r"class \d has no examples of some of these; use unmixed=0"):
        policies.balance_attributes(unmixed=0.5).audit(GroupIndex(y, a))


def test_lam_above_the_bound_is_scaled_with_a_note() -> None:
    groups = GroupIndex([0] * 9 + [1] + [0] + [1] * 9, [0] * 10 + [1] * 10)
    policy = policies.balance_attributes(lam=Fixed(0.9)).resolve(groups)
    assert "note: lam Fixed(0.9) (mean 0.9) scaled by" in repr(policy)
    with pytest.deprecated_call(match="MixPolicy: parts is deprecated, use resolve_arrays"):
        assert policy.parts(groups).notes == policy.notes != ()
    assert "note" not in repr(policies.balance_attributes().resolve(GroupIndex([0, 0, 1, 1], [0, 1, 0, 1])))


def test_class_without_donors_borrows_and_the_audit_reports_the_residual() -> None:
    groups = GroupIndex([0] * 10 + [1] * 5 + [1] * 5, [0] * 10 + [0] * 5 + [1] * 5)
    assert policies.balance_attributes(labels="keep").audit(groups).residual == pytest.approx(0, abs=1e-9)
    assert policies.balance_attributes(labels="mix").audit(groups).residual > 0.05


def test_lisa_and_selecmix_pair_contradicting_groups() -> None:
    groups = GroupIndex([0, 0, 0, 1, 1, 1], [-1, 0, 1, -1, 0, 1])
    partner = normalized_rows(policies.lisa(p=0.3).resolve_arrays(groups).partner)  # type: ignore[arg-type]
    expected = np.zeros((6, 6))
    expected[1, 2] = expected[2, 1] = expected[4, 5] = expected[5, 4] = 0.3
    expected[1, 4] = expected[4, 1] = expected[2, 5] = expected[5, 2] = 0.7
    np.testing.assert_allclose(partner, expected)
    lonely = normalized_rows(policies.lisa(p=0.3).resolve_arrays(GroupIndex([0, 0, 1], [0, 1, 2])).partner)  # type: ignore[arg-type]
    np.testing.assert_allclose(lonely, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_mixpro_draws_source_and_mixes_target_of_the_class() -> None:
    groups = GroupIndex([0, 0, 0, 1, 1, 2], [0, 0, 1, 0, 1, 0], attribute_names=["source", "target"])
    parts = policies.mixpro("target", s=0.25).resolve_arrays(groups)
    assert parts.weights.tolist() == [2, 0, 1, 0, 1]
    assert parts.partner is not None
    assert parts.partner.argmax(axis=1).tolist() == [1, 0, 3, 0, 0]
    assert parts.partner.any(axis=1).tolist() == [True, False, True, False, False]


def test_audit_warns_about_overused_groups() -> None:
    groups = GroupIndex([0] * 1000 + [1] * 10)
    reason, warning = policies.group_balanced().audit(groups).warnings
    assert "no attributes" in reason and "100 times" in warning
    assert "warning: each of the 10 examples" in str(policies.group_balanced().audit(groups))


def test_least_squares_ignores_the_spurious_coordinate() -> None:
    """Of a core and a spurious Gaussian coordinate, the latter gets weight 0 under balance_attributes."""
    rng = np.random.default_rng(0)
    n = 4000
    y = rng.integers(0, 2, n)
    a = np.where(rng.random(n) < 0.95, y, 1 - y)
    x = np.column_stack([2 * y - 1, 2 * a - 1]) + rng.standard_normal((n, 2)) * [1.0, 0.3]
    groups = GroupIndex(y, a)

    def weights(policy: MixPolicy) -> np.ndarray:
        out = spurmix.draw(groups, policy, seed=1, start=0, count=200_000)
        index, partner, lam = out.index.numpy(), out.partner.numpy(), out.lam.numpy()
        mixed = lam[:, None] * x[index] + (1 - lam[:, None]) * x[partner]
        target = lam * (2 * y[index] - 1) + (1 - lam) * (2 * y[partner] - 1)
        return np.linalg.lstsq(np.column_stack([mixed, np.ones(len(lam))]), target, rcond=None)[0]

    biased, balanced = weights(policies.erm()), weights(policies.balance_attributes())
    # Closed form for erm: Cov(x)^-1 Cov(x, y) with Var = 1 + noise and correlation 2 * 0.95 - 1 of y and a.
    rho = 0.9
    closed = np.linalg.solve([[2.0, rho], [rho, 1.09]], [1.0, rho])
    np.testing.assert_allclose(biased[:2], closed, atol=0.05)
    assert biased[1] > 0.6
    assert abs(balanced[1]) < 0.05
    assert balanced[0] > 0.3


GROUPS = GroupIndex([0, 0, 1, 1], [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("policy", "error", "text"),
    [
        (MixPolicy(weights=[1, 2]), ValueError, "weights must have shape [4]"),
        (MixPolicy(weights=[1, -1, 1, 1]), ValueError, "weights: weights must not be negative"),
        (MixPolicy(weights=[1, float("nan"), 1, 1]), ValueError, "must be finite"),
        (MixPolicy(weights=[0, 0, 0, 0]), ValueError, "weights must not all be 0"),
        (MixPolicy(weights=[1e-9, 1, 1, 1]), ValueError, "less than one of 65536 slots"),
        (MixPolicy(weights={(5, 0): 1}), ValueError, "no example has the cell (5, 0)"),
        (MixPolicy(weights={9: 1}), ValueError, "there is no group 9"),
        (MixPolicy("classes", weights={3: 1}), ValueError, "there is no class 3"),
        (MixPolicy(partner=np.ones((3, 3)), lam=0.5), ValueError, "partner must have shape [4, 4]"),
        (MixPolicy(partner={(0, 0): {(7, 7): 1}}, lam=0.5), ValueError, "no example has the cell (7, 7)"),
        (MixPolicy(partner=-np.ones((4, 4)), lam=0.5), ValueError, "must not be negative"),
        (policies.mixpro(target=7), ValueError, "no example has the target attribute"),
        (policies.upweight([1, 2]), ValueError, "factors must have shape [4]"),
        (policies.balance_attributes(prior=[[1, 0]]), ValueError, "prior must have shape"),
        (policies.balance_attributes(prior=[[0.5, 0.2], [1, 0]]), ValueError, "sum to 1"),
    ],
)
def test_bad_policies(policy: MixPolicy, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        build_tables(GROUPS, policy)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: MixPolicy("rows"), ValueError, "strata must be"),  # type: ignore[arg-type]
        (lambda: MixPolicy(labels="drop"), ValueError, "labels must be"),  # type: ignore[arg-type]
        (lambda: MixPolicy(partner=np.eye(2)), ValueError, "lam is required"),
        (lambda: MixPolicy(partner=np.eye(2), lam=1.5), ValueError, "[0, 1]"),
        (lambda: MixPolicy(partner=np.eye(2), lam=lambda u: 1 - u), ValueError, "must not decrease"),
        (lambda: policies.lisa(p=2), ValueError, "p must be in"),
        (lambda: policies.mixpro(s=-1), ValueError, "s must be in"),
        (lambda: policies.mixup(alpha=0), ValueError, "positive"),
    ],
)
def test_bad_arguments(make: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)


def test_empty_groups_cannot_be_index_or_partner() -> None:
    groups = GroupIndex([0, 1], groups=[0, 2])
    with pytest.raises(ValueError, match="stratum 1 has a positive weight but no examples"):
        build_tables(groups, policies.group_balanced())
    with pytest.raises(ValueError, match="has a weight for group 1, which has no examples"):
        build_tables(groups, MixPolicy("all", partner=np.ones((3, 3)), lam=0.5))
    unknown = GroupIndex([0, 0, 1], [0, 1, -1])
    with pytest.raises(ValueError, match="class 1 has no example whose attribute is known"):
        build_tables(unknown, policies.balance_attributes())
