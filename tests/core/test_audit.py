"""The audit of unknown attributes: too little evidence gives NaN and words, never a correlation of 0."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest

from spurmix import Beta, Fixed, GroupIndex, MixPolicy, Uniform, draw, policies
from spurmix.core import correlation, memory
from spurmix.core.audit import Audit, correlation_text
from spurmix.core.correlation import normalized_blocks, partner_shares, row_shares
from spurmix.core.lam import InverseCDF
from spurmix.core.residual import SecondMoment
from spurmix.core.tables import build_tables

POLICIES = [getattr(policies, name)() for name in policies.__all__ if name != "upweight"]


def check_undetermined(audit: Audit) -> None:
    assert math.isnan(audit.raw) and math.isnan(audit.residual) and math.isnan(audit.residual_given_lam)
    assert "given lam" not in str(audit)
    assert "correlation of class and attribute: cannot be determined\n" in str(audit)
    stored = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
    assert stored["raw"] is None and stored["residual"] is None
    assert stored["residual_given_lam"] is None


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize(
    "attributes",
    [
        [1, None, 1, None, 1, None, None, None],  # two values, of which the second is missing
        [0, 1, 0, 1, 1, 1, None, None],  # one known value in class 1
        [0, 1, 0, 1, None, None, None, None],  # none in class 1
        [None] * 8,
    ],
)
def test_too_few_known_attributes_in_a_class(policy: Any, attributes: list[int | None]) -> None:
    audit = policy.audit(GroupIndex([0] * 4 + [1] * 4, attributes, class_names=["cat", "dog"]))
    check_undetermined(audit)
    assert np.isnan(audit.joint).all() and "joint table" not in str(audit)
    assert audit.classes == ("cat", "dog")
    assert "the correlation cannot be determined" in audit.warnings[0] and "dog (" in audit.warnings[0]


def test_a_prior_determines_it() -> None:
    groups = GroupIndex([0] * 4 + [1] * 4, [0, 1, 0, 1, None, None, None, None])
    audit = policies.erm().audit(groups, prior={1: [0, 1]})
    assert audit.raw == audit.residual == pytest.approx(1 / math.sqrt(3)) and audit.warnings == ()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_single_class_has_no_correlation(policy: Any) -> None:
    for label in (0, 3):
        audit = policy.audit(GroupIndex([label] * 10, [0, 1] * 5))
        check_undetermined(audit)
        assert audit.joint.sum() == pytest.approx(1) or "partners cannot be determined" in str(audit)
    check_undetermined(policies.erm().audit(GroupIndex([1] * 4, [0, 1, 1, None])))


def test_samples_of_a_single_class_have_no_correlation() -> None:
    groups = GroupIndex([0] * 4 + [1] * 4, [0, 0, 0, 1, 0, 1, 1, 1])
    audit = MixPolicy(strata="classes", weights=[1.0, 0.0]).audit(groups)
    assert audit.raw == pytest.approx(0.5)
    assert math.isnan(audit.residual) and math.isnan(audit.residual_given_lam)
    mixed = MixPolicy(strata="classes", partner=np.kron([[0, 1], [1, 0]], np.ones((2, 2))), lam=Fixed(0.5)).audit(
        groups
    )
    assert mixed.residual == pytest.approx(0, abs=1e-9)  # all mixed labels are equal, and both classes occur


def test_no_or_a_constant_attribute_has_no_correlation() -> None:
    for attributes in (None, [0] * 8, [2] * 8):
        for policy in POLICIES:
            audit = policy.audit(GroupIndex([0] * 4 + [1] * 4, attributes))
            check_undetermined(audit)
            reasons = ["the correlation cannot be determined: the groups have no attributes"]
            if attributes is not None:
                reasons = [f"the correlation cannot be determined: all examples have the attribute a={attributes[0]}"]
            if audit.policy.startswith("MixPolicy<mixpro>"):
                reasons.append("the partners cannot be determined: mixpro: no example has the target attribute 1")
            else:
                assert audit.joint.sum() == pytest.approx(1)
            assert list(audit.warnings) == reasons


def test_known_attributes_that_equal_the_class_are_correlated() -> None:
    audit = policies.erm().audit(GroupIndex([0] * 4 + [1] * 4, [0] * 4 + [1] * 4))
    assert audit.raw == audit.residual == pytest.approx(1) and audit.warnings == ()


def test_much_unknown_is_a_warning() -> None:
    labels, attributes = [0] * 8 + [1] * 8, [0, 0, 0, 1, *[None] * 4, 0, 1, 1, 1, 1, 1, 1, None]
    (warning,) = policies.erm().audit(GroupIndex(labels, attributes)).warnings
    assert warning.startswith("many attributes are unknown in y=0 (4 of 8 unknown); the audit assumes")
    assert policies.erm().audit(GroupIndex(labels, attributes), prior={0: [0.5, 0.5]}).warnings == ()
    many = GroupIndex(np.repeat(np.arange(9), 4), [0, 1, None, None] * 9)
    (warning,) = policies.erm().audit(many).warnings
    assert "y=3 (2 of 4 unknown) and 5 more classes" in warning


def test_custom_groups() -> None:
    groups = GroupIndex([0] * 4 + [1] * 4, [0, 1, 0, 1, 1, 1, None, None], groups=[0, 1] * 4)
    check_undetermined(policies.erm().audit(groups))


def binned_by_lam(groups: GroupIndex, policy: MixPolicy, count: int = 100_000, bins: int = 50) -> float:
    """Correlation of drawn binary labels and attributes, in bins of lam, weighted by the samples in each bin."""
    out = draw(groups, policy, seed=3, start=0, count=count)
    index, partner, lam = out.index.numpy(), out.partner.numpy(), out.lam.numpy().astype(np.float64)
    keep = policy.resolve(groups).labels == "keep"
    label, attribute = (np.asarray(v)[index] * 1.0 for v in (groups.labels, groups.attributes))
    label = label if keep else lam * label + (1 - lam) * groups.labels[partner]
    attribute = lam * attribute + (1 - lam) * np.asarray(groups.attributes)[partner]
    number = (lam * bins).astype(int)
    total = 0.0
    for k in np.unique(number):
        y, a = label[number == k], attribute[number == k]
        if y.std() > 0 and a.std() > 0:
            total += abs(np.corrcoef(y, a)[0, 1]) * y.size
    return total / count


BIASED = GroupIndex([0] * 950 + [1] * 950 + [0] * 50 + [1] * 50, [0] * 950 + [1] * 950 + [1] * 50 + [0] * 50)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (policies.erm(), 0.9),
        (policies.group_balanced(), 0.0),
        (policies.mixup(), 0.9),
        (policies.balance_attributes(Fixed(0.5)), 0.0),
        (policies.balance_attributes(Beta(0.4)), 0.7766),
        (policies.balance_attributes(Beta(0.4), labels="keep"), None),
        (policies.balance_attributes(Uniform(0, 0.9)), None),
        (policies.lisa(), 0.0),
        (MixPolicy(partner={(0, 0): {(0, 1): 1}, (1, 1): {(1, 0): 1}}, lam=Uniform(0.2, 1)), None),  # two are unmixed
    ],
)
def test_residual_given_lam_agrees_with_draws(policy: MixPolicy, expected: float | None) -> None:
    audit = policy.audit(BIASED)
    assert audit.residual_given_lam == pytest.approx(binned_by_lam(BIASED, policy), abs=0.02)
    if expected is not None:
        assert audit.residual_given_lam == pytest.approx(expected, abs=1e-3)
    assert audit.to_dict()["residual_given_lam"] == audit.residual_given_lam
    assert f"after mixing, {audit.residual_given_lam:.4f} given lam\n(0 after mixing means" in str(audit)


def test_residual_given_lam_of_unmixed_samples_and_of_lam_1() -> None:
    """Samples without a partner have lam = 1, like those with a partner and lam = 1."""
    half = InverseCDF(lambda u: np.where(u < 0.5, 0.5, 1.0))
    policy = MixPolicy("all", partner={(0, 0): {(0, 1): 1}, (1, 1): {(1, 0): 1}}, lam=half)
    assert policy.audit(BIASED).residual_given_lam == pytest.approx(binned_by_lam(BIASED, policy), abs=0.02)
    assert MixPolicy("all", partner=np.ones((4, 4)), lam=1.0).audit(BIASED).residual_given_lam == pytest.approx(0.9)


def test_residual_given_lam_of_many_classes_uses_few_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.arange(4000) % 20
    groups = GroupIndex(y, np.where(np.random.default_rng(0).random(4000) < 0.7, y % 4, y // 5))
    fine = policies.mixup(0.4).audit(groups).residual_given_lam
    monkeypatch.setattr(correlation, "LARGE", 10)
    assert policies.mixup(0.4).audit(groups).residual_given_lam == pytest.approx(fine, abs=5e-3)


def test_words_of_a_correlation() -> None:
    assert correlation_text(0.25, 3) == "0.250"
    assert correlation_text(math.nan) == correlation_text(None) == "cannot be determined"


def test_a_policy_that_cannot_choose_partners_is_audited_but_not_used() -> None:
    groups = GroupIndex([0] * 4 + [1] * 4, [0, 0, 0, 1, None, None, None, None])
    policy = policies.balance_attributes()
    audit = policy.audit(groups)
    check_undetermined(audit)
    assert "the partners cannot be determined: prior: class 1 has no example" in audit.warnings[-1]
    assert [g.share for g in audit.groups] == pytest.approx([3 / 8, 1 / 8, 1 / 2])
    assert all(math.isnan(g.distinct) and math.isnan(g.uses) for g in audit.groups) and "nan" not in str(audit)
    with_prior = policy.audit(groups, prior={1: [0, 1]})
    assert with_prior.raw == pytest.approx(math.sqrt(0.6)) and math.isnan(with_prior.residual)
    assert "0.7746 in the data, cannot be determined after mixing" in str(with_prior)
    json.dumps(with_prior.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="class 1 has no example whose attribute is known; give its attribute shares"):
        build_tables(groups, policy)
    assert policies.balance_attributes(prior={1: [0, 1]}).audit(groups).residual < 1


def test_a_prior_of_an_attribute_without_donors() -> None:
    groups = GroupIndex([0, 0, 1, 1], [0, 0, None, None], attribute_names=["in", "out"])
    policy = policies.balance_attributes(prior={1: [0.5, 0.5]})
    check_undetermined(policy.audit(groups))
    assert "the partners cannot be determined: prior: attribute 1 has" in policy.audit(groups).warnings[-1]
    with pytest.raises(ValueError, match="no known example has it"):
        build_tables(groups, policy)


def test_a_wrong_target_is_an_error() -> None:
    groups = GroupIndex([0, 0, 1, 1], [0, 1, 0, 1])
    with pytest.raises(ValueError, match="no example has the target attribute 2"):
        policies.mixpro(target=2).audit(groups)


def test_a_single_class_or_attribute_is_the_reason_in_the_warnings() -> None:
    for labels, attributes, reason in (
        ([3] * 4, [0, 1, 0, 1], "all examples have the class y=3"),
        ([0, 1, 0, 1], [2] * 4, "all examples have the attribute a=2"),
        ([1] * 4, [0, 1, 1, None], "all examples have the class y=1"),
    ):
        audit = policies.erm().audit(GroupIndex(labels, attributes))
        assert f"the correlation cannot be determined: {reason}" in audit.warnings
        assert reason in str(audit)
    named = GroupIndex([0, 0], [0, 1], class_names=["a\x1b", "b"])
    assert "all examples have the class a\\x1b" in policies.erm().audit(named).warnings[0]
    assert policies.erm().audit(GroupIndex([0, 1, 1], [0, 0, 1])).warnings == ()


@pytest.mark.parametrize("policy", [policies.lisa(), policies.selecmix()])
def test_too_many_classes_for_the_memory_are_reported(policy: MixPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2 << 30)
    number = np.arange(100_000)
    groups = GroupIndex(number // 2, number % 2)
    audit = policy.audit(groups)
    assert audit.raw == pytest.approx(0) and np.isnan(audit.residual) and np.isnan(audit.residual_given_lam)
    text = r"50,000 classes and 2 attributes need about 37\.3 GiB of memory, but 2\.0 GiB are available"
    assert any(re.search(text, warning) for warning in audit.warnings)
    assert sum(g.share for g in audit.groups) == pytest.approx(1)
    assert all(np.isfinite([g.uses, g.distinct]).all() for g in audit.groups)


def test_covariances_that_do_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2 << 30)
    share = np.full(20_000, 1 / 20_000)
    with pytest.raises(memory.NotEnoughMemory, match=r"20,000 classes or attributes need about 8\.9 GiB"):
        SecondMoment(share, share).covariance()


@pytest.mark.parametrize("name", ["lisa", "selecmix"])
def test_partner_shares_without_the_entries_of_rows(name: str, rng: np.random.Generator) -> None:
    groups = GroupIndex(rng.integers(0, 6, 900), rng.integers(0, 5, 900))
    partners = policies.__dict__[name]().resolve_arrays(groups).partner_rows
    share = rng.random(groups.num_groups)
    expected = sum(
        row_shares(partners, share)[at : at + rows.shape[0]] @ rows for at, rows in normalized_blocks(partners)
    )
    assert partners.even
    np.testing.assert_allclose(partner_shares(partners, share), expected, rtol=1e-12)
