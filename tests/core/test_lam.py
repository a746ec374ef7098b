"""Distributions of lam and their quantile tables."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spurmix import Beta, Fixed, GroupIndex, InverseCDF, TwoPoint, Uniform, policies
from spurmix.core.lam import ONE, Folded, LamDistribution, Scaled, as_distribution, moments, quantile_table


def test_known_tables(vectors: dict) -> None:
    expected = vectors["quantiles"]
    assert quantile_table(Beta(2))[::128].tolist() == expected["beta_2_2_every_128"]
    assert quantile_table(Beta(0.4))[::128].tolist() == expected["beta_04_04_every_128"]
    assert quantile_table(Uniform())[::128].tolist() == expected["uniform_0_1_every_128"]


@given(st.floats(0.05, 20), st.floats(0.05, 20))
def test_moments_of_beta(a: float, b: float) -> None:
    m1, m2 = moments(quantile_table(Beta(a, b)))
    assert m1 == pytest.approx(a / (a + b), abs=2e-3)
    assert m2 == pytest.approx(a * (a + 1) / ((a + b) * (a + b + 1)), abs=2e-3)


EXTREME = [5e-324, 1e-100, 1e-4, 0.001, 0.002, 0.005, 0.4, 10.0, 1e3, 1e5, 1e8, 1e9, 2e10, 1e12, 1e30, 1e300]


@pytest.mark.parametrize("a", EXTREME)
def test_any_parameters_of_beta(a: float) -> None:
    for b in EXTREME:
        table = quantile_table(Beta(a, b))
        mirrored = quantile_table(Beta(b, a))
        assert (np.diff(table) >= 0).all() and np.abs(ONE - mirrored[::-1] - table).max() <= 1
        mean = 1 / (1 + b / a)
        assert moments(table)[0] == pytest.approx(mean, abs=2e-3)


@pytest.mark.parametrize(("a", "b"), [(1e3, 1e9), (1e12, 1e12), (2e10, 1e15), (1e6, 1e12), (50.0, 2e8)])
def test_spread_of_narrow_beta(a: float, b: float) -> None:
    values = Beta(a, b).inverse_cdf(np.array([0.02275013, 0.5, 0.97724987]))  # 2 standard deviations from the mean
    mean = a / (a + b)
    spread = np.sqrt(mean * (1 - mean) / (a + b + 1))
    assert values[1] == pytest.approx(mean, rel=0.02) and (values[2] - values[0]) / 4 == pytest.approx(spread, rel=0.02)


NARROW = [1e-300, 1e-100, 1e-8, 1e-3, 0.1, 1.0, 10.0, 100.0, 1e3, 1e6, 1e9, 1e12]


@pytest.mark.parametrize("a", [*NARROW, 1e-6, 1e-4, 1e-2, 0.3])
def test_the_mean_of_beta_errs_by_at_most_half_a_bucket(a: float) -> None:
    for b in (*NARROW, 1e-6, 1e-4, 1e-2, 0.3):
        error = moments(quantile_table(Beta(a, b)))[0] - 1 / (1 + b / a)
        assert abs(error) <= 1 / 2048 + 2**-25, (a, b)
    exact = 1e-6 / (1e-6 + 1e-3)
    assert abs(moments(quantile_table(Beta(1e-6, 1e-3)))[0] - exact) > 0.9 / 2048  # the bound is almost reached


@pytest.mark.parametrize("a", NARROW)
def test_means_and_extremes_of_beta(a: float) -> None:
    for b in NARROW:
        table = quantile_table(Beta(a, b)) / ONE
        mean = 1 / (1 + b / a)
        spread = np.sqrt(mean / (1 + a / b) / (a + b + 1))
        assert moments(quantile_table(Beta(a, b)))[0] == pytest.approx(mean, abs=0.015 * spread + 2**-25), (a, b)
        if min(a, b) >= 1:  # others reach 0 or 1
            bound = 11 * spread + 2**-24
            in_table = max(mean - table[0], table[-1] - mean)
            assert in_table <= bound or max(a, b) <= 10, (a, b)


@pytest.mark.parametrize("a", [5e-324, 1e-322, 1e-310, 2.3e-308, 1e-300])
def test_tiny_parameters_of_beta_give_zero_or_one(a: float) -> None:
    """The table is that of larger parameters of the same ratio."""
    for b in (a, 3 * a, 1e5 * a, 1e-10, 1.0, 1e9, 1.7e308):
        b = max(b, 5e-324)
        mean = 1 / (1 + b / a)
        likely_one = quantile_table(Beta(1e-200, 1e-200 * min(b / a, 1e100)))
        assert quantile_table(Beta(a, b)).tolist() == likely_one.tolist()
        assert quantile_table(Beta(b, a)).tolist() == (ONE - likely_one[::-1]).tolist()
        assert moments(quantile_table(Beta(a, b)))[0] == pytest.approx(mean, abs=1e-3)
        assert np.count_nonzero((likely_one > ONE / 1000) & (likely_one < ONE - ONE / 1000)) <= 2
    assert moments(quantile_table(Beta(a).folded()))[0] > 0.998


@pytest.mark.parametrize(("a", "b"), [(1e2, 1e2), (1e2, 10.0), (1e6, 1e9), (1e5, 3.0), (5.0, 1e4), (0.1, 100.0)])
def test_ends_of_narrow_beta_agree_with_the_exact_mean_of_their_bucket(a: float, b: float) -> None:
    from scipy.stats import beta

    table = quantile_table(Beta(a, b)) / ONE
    u = (np.arange(1 << 11) + 0.5) / (1 << 21)
    if table[0] > 0:
        assert (table[0] + table[1]) / 2 == pytest.approx(beta.ppf(u, a, b).mean(), abs=2e-7, rel=3e-4)
    if table[-1] < 1:
        assert (table[-1] + table[-2]) / 2 == pytest.approx(beta.isf(u, a, b).mean(), abs=2e-7, rel=3e-4)
    assert (table[0], table[-1]) != (0, 1)


def test_tables_of_usual_parameters_end_at_0_and_1() -> None:
    usual = [0.4, 0.5, 1.0, 2.0, 5.0, 10.0]
    pairs = [(a, b) for a in usual for b in usual] + [(a, a) for a in np.geomspace(0.01, 50, 20)]
    for a, b in pairs:
        table = quantile_table(Beta(a, b))
        expected = np.rint(Beta(a, b).inverse_cdf(np.arange(1025) / 1024) * ONE)
        np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize(("a", "b"), [(1e8, 1e12), (1e4, 2e4), (1e5, 1e5), (1e4, 0.5), (1e12, 1e12)])
def test_folded_narrow_beta(a: float, b: float) -> None:
    started = time.process_time()
    table = quantile_table(Beta(a, b).folded()) / ONE
    assert time.process_time() - started < 20  # 2^20 quantiles take minutes
    larger, smaller = max(a, b), min(a, b)
    mean, spread = larger / (a + b), np.sqrt(a / (a + b) * (b / (a + b)) / (a + b + 1))
    expected = mean if larger != smaller else mean + spread * np.sqrt(2 / np.pi)
    assert moments(quantile_table(Beta(a, b).folded()))[0] == pytest.approx(expected, abs=0.02 * spread + 1e-6)
    assert max(expected - table[0], table[-1] - expected) <= 40 * spread + 2**-24


@pytest.mark.parametrize("lam", [
    Uniform(0, 5e-324), Uniform(1 - 2**-53, 1), Fixed(5e-324), Scaled(Beta(1e-3), 1e-300), Beta(1e-3).folded(),
    Beta(1e12).folded(), Uniform(0, 1e-300).folded(), InverseCDF(lambda u: np.round(u * 1e3) / 1e3 - 1e-17 * (u == 0.5)),
])  # fmt: skip
def test_extreme_parameters_of_other_distributions(lam: LamDistribution) -> None:
    table = quantile_table(lam)
    assert (np.diff(table) >= 0).all() and 0 <= table[0] <= table[-1] <= ONE


def test_policies_accept_extreme_parameters() -> None:
    groups = GroupIndex([0, 0, 1, 1], [0, 1, 0, 1])
    for policy in (policies.mixup(0.001), policies.mixup(0.002), policies.mixup(1e12), policies.lisa(alpha=1e-3)):
        assert policy.audit(groups).residual == pytest.approx(0, abs=1e-6)


def test_moments_of_uniform_and_fixed() -> None:
    assert moments(quantile_table(Uniform(0.5, 1))) == pytest.approx((0.75, 7 / 12), abs=1e-6)
    assert moments(quantile_table(Fixed(0.3))) == pytest.approx((0.3, 0.09), abs=1e-6)


def test_folded_is_the_larger_weight() -> None:
    assert quantile_table(Uniform().folded()) == pytest.approx(quantile_table(Uniform(0.5, 1)), abs=ONE * 1e-5)
    assert moments(quantile_table(Fixed(0.2).folded()))[0] == pytest.approx(0.8, abs=1e-6)
    rng = np.random.default_rng(0)
    sample = rng.beta(0.4, 1.2, 200_000)
    expected = np.quantile(np.maximum(sample, 1 - sample), np.arange(1025) / 1024)
    assert quantile_table(Beta(0.4, 1.2).folded()) / ONE == pytest.approx(expected, abs=0.01)


def test_numbers_and_functions_are_distributions() -> None:
    assert as_distribution(0.25) == Fixed(0.25)
    assert quantile_table(as_distribution(lambda u: u**2))[512] == ONE // 4
    assert isinstance(Folded(Beta(1)), Folded)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Beta(0), ValueError, "positive"),
        (lambda: Beta(1, float("nan")), ValueError, "positive"),
        (lambda: Uniform(0.5, 0.2), ValueError, "low <= high"),
        (lambda: Uniform(-0.1, 0.2), ValueError, "low <= high"),
        (lambda: Fixed(1.5), ValueError, "[0, 1]"),
        (lambda: as_distribution("beta"), TypeError, "lam must be"),
        (lambda: InverseCDF(3), TypeError, "callable"),  # type: ignore[arg-type]
        (lambda: quantile_table(InverseCDF(lambda u: 1 - u)), ValueError, "must not decrease"),
        (lambda: quantile_table(InverseCDF(lambda u: 2 * u)), ValueError, "stay in [0, 1]"),
        (lambda: quantile_table(InverseCDF(lambda u: u * np.nan)), ValueError, "not finite"),
        (lambda: quantile_table(InverseCDF(lambda u: u[:5])), ValueError, "shape"),
    ],
)
def test_bad_input(make: object, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        make()  # type: ignore[operator]
    assert text in str(caught.value)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_two_points_have_an_exact_mean_and_almost_no_other_weights(a: float, b: float, p: float) -> None:
    low, high = min(a, b), max(a, b)
    table = quantile_table(TwoPoint(low, high, p))
    assert moments(table)[0] == pytest.approx(p * low + (1 - p) * high, abs=2**-23)
    assert (np.diff(table) >= 0).all() and np.count_nonzero(np.diff(table)) <= 2
    assert table[0] >= round(low * ONE) and table[-1] <= round(high * ONE)
    assert abs(moments(quantile_table(TwoPoint(low, high, p).folded()))[0] - 0.75) <= 0.2501


@pytest.mark.parametrize("p", [0.0, 1e-12, 1 / 2048, 1 / 1024, 0.3, 0.5, 1 - 1 / 4096, 1.0])
def test_probabilities_of_two_points(p: float) -> None:
    table = quantile_table(TwoPoint(0.25, 1, p))
    assert np.count_nonzero(table == ONE // 4) == pytest.approx(1024 * p, abs=1.5)
    assert np.count_nonzero(table == ONE) == pytest.approx(1024 * (1 - p), abs=1.5)
    assert repr(TwoPoint(0.25, 1, p)) == f"TwoPoint(0.25, 1, {p:g})"


def test_invalid_two_points() -> None:
    with pytest.raises(ValueError, match=r"TwoPoint: p must be in \[0, 1\]"):
        TwoPoint(0, 1, 1.5)
    with pytest.raises(ValueError, match=r"TwoPoint: low must be at most high, got 0\.9, 0\.2"):
        TwoPoint(0.9, 0.2, 0.5)
    with pytest.raises(TypeError, match="TwoPoint: low must be a number"):
        TwoPoint("a", 0.2, 0.5)  # type: ignore[arg-type]
