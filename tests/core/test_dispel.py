"""The policy `dispel` against a simulation of its description, its invariants, and its use on all kinds of data."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spurmix import FeatureSource, GroupIndex, ImageSource, MixLoader, TokenSource, draw, policies
from spurmix.core.resolved_policy import normalized_rows
from spurmix.core.shares import UnknownAttributes

RNG = np.random.default_rng(3)
LABELS = np.repeat([0, 1, 2], [300, 200, 400])
TRUE = np.where(RNG.random(900) < 0.8, LABELS, RNG.integers(0, 3, 900))
TRUE[(LABELS == 1) & (TRUE == 2)] = 1  # a missing group
ATTRIBUTES = np.where(RNG.random(900) < 0.4, TRUE, -1)
GROUPS = GroupIndex(LABELS, ATTRIBUTES)


def simulated(groups: GroupIndex, s: float, alpha: float, epochs: int) -> tuple[Any, float, float]:
    """Counts of (class of the index, group of the donor), share of mixed samples and mean of lam, drawn as described."""
    rng = np.random.default_rng(11)
    group_of, labels = groups.group_ids(), groups.labels
    attribute_of = groups.group_attributes[group_of]
    known = [g for g in range(groups.num_groups) if groups.group_attributes[g] >= 0]
    smallest = min(groups.sizes[g] for g in known)
    counts, mixed_samples, samples, lam = np.zeros((groups.num_classes, groups.num_groups)), 0, 0, 0.0
    for _ in range(epochs):
        balanced = np.concatenate([rng.choice(groups.examples(g), smallest, replace=False) for g in known])
        size = np.bincount(labels).min()
        for y in range(groups.num_classes):
            bulk = rng.choice(np.flatnonzero(labels == y), size, replace=False)
            for _ in bulk:
                samples += 1
                if rng.random() >= alpha:
                    lam += 1.0
                    continue
                mixed_samples, lam = mixed_samples + 1, lam + 1.0 - s
                a = rng.integers(0, groups.num_attributes)
                donors = balanced[attribute_of[balanced] == a]
                own = donors[labels[donors] == y]
                counts[y, group_of[rng.choice(own if own.size else donors)]] += 1
    return counts / counts.sum(axis=1, keepdims=True), mixed_samples / samples, lam / samples


def test_partners_follow_the_description() -> None:
    expected, share, mean = simulated(GROUPS, 0.7, 0.6, 60)
    policy = policies.dispel(0.7, 0.6)
    matrix = policy.resolve_arrays(GROUPS).partner
    assert matrix is not None
    rows = normalized_rows(matrix)
    for g in range(GROUPS.num_groups):
        np.testing.assert_allclose(rows[g], expected[GROUPS.group_labels[g]], atol=0.015)
    out = draw(GROUPS, policy, seed=2, start=0, count=60_000)
    index, partner, lam = out.index.numpy(), out.partner.numpy(), out.lam.numpy()
    assert np.ptp(np.bincount(LABELS[index])) == 0
    assert np.mean(lam < 1) == pytest.approx(share, abs=0.01) and lam.mean() == pytest.approx(mean, abs=0.01)
    assert np.mean(np.isin(lam, np.float32([0.3, 1.0])) | np.isclose(lam, 0.3)) > 0.997
    assert (ATTRIBUTES[partner] >= 0).all() and (ATTRIBUTES[index] == -1).any()
    drawn = np.zeros_like(expected)
    np.add.at(drawn, (LABELS[index], GROUPS.group_ids()[partner]), 1)
    np.testing.assert_allclose(drawn / drawn.sum(axis=1, keepdims=True), expected, atol=0.015)
    borrowed = (LABELS[index] == 1) & (ATTRIBUTES[partner] == 2)
    assert borrowed.any() and set(LABELS[partner[borrowed]]) == {0, 2}
    assert (LABELS[partner] == LABELS[index])[~borrowed].all()


@given(
    st.integers(1, 4), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1), st.booleans()
)  # fmt: skip
def test_invariants(classes: int, attributes: int, s: float, alpha: float, seed: int, unknown: bool) -> None:
    rng = np.random.default_rng(seed)
    y, a = rng.integers(0, classes, 80), rng.integers(0, attributes, 80)
    y, a = np.concatenate([y, np.arange(classes)]), np.concatenate([a, rng.integers(0, attributes, classes)])
    if unknown:
        y, a = np.concatenate([y, rng.integers(0, classes, 50)]), np.concatenate([a, np.full(50, -1)])
    groups = GroupIndex(y, a)
    resolved = policies.dispel(s, alpha).resolve_arrays(groups)
    matrix = resolved.partner
    assert matrix is not None and resolved.labels == "keep"
    rows = normalized_rows(matrix)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    assert not rows[:, groups.group_attributes < 0].any()
    present = np.unique(groups.group_attributes[groups.group_attributes >= 0])
    for value in present:  # every attribute is equally likely
        np.testing.assert_allclose(rows[:, groups.group_attributes == value].sum(axis=1), 1 / present.size)
    for g in range(groups.num_groups):  # the own class where it has the attribute
        for h in np.flatnonzero(rows[g]):
            own = (groups.group_labels == groups.group_labels[g]) & (
                groups.group_attributes == groups.group_attributes[h]
            )
            assert groups.group_labels[h] == groups.group_labels[g] or not own.any()
    mean = float(resolved.quantile[:-1].mean() + resolved.quantile[1:].mean()) / 2**25
    assert mean == pytest.approx(1 - s * alpha, abs=1e-6)


def test_the_audit_reports_both_residuals() -> None:
    labels = np.repeat([0, 1], 500)
    attributes = np.where(np.arange(1000) % 10 < 9, labels, 1 - labels)
    groups = GroupIndex(labels, attributes)
    donors = policies.dispel(1.0, 1.0).audit(groups)
    assert donors.residual == pytest.approx(0, abs=1e-6) and donors.residual_given_lam == pytest.approx(0, abs=1e-6)
    half = policies.dispel(1.0, 0.5).audit(groups)
    # The unmixed half has correlation 0.8, the donors 0.
    assert half.residual == pytest.approx(0.4, abs=2e-3) and half.residual_given_lam == pytest.approx(0.4, abs=5e-3)
    mixed = policies.dispel(0.7, 1.0).audit(groups)
    assert 0 < mixed.residual < half.residual and mixed.residual_given_lam == pytest.approx(mixed.residual)
    assert policies.dispel(0.0, 1.0).audit(groups).residual == pytest.approx(0.8)
    assert policies.dispel(0.7, 0.0).audit(groups).residual == pytest.approx(0.8)
    assert f"{mixed.residual:.4f} after mixing, {mixed.residual_given_lam:.4f} given lam" in str(mixed)


def test_groups_of_several_columns_are_equally_likely() -> None:
    attributes = np.stack([np.repeat([0, 1, 0, 1], 10), np.r_[np.zeros(9), 1, np.zeros(20), np.ones(10)]], axis=1)
    groups = GroupIndex(np.repeat([0, 0, 1, 1], 10), attributes.astype(np.int64))
    matrix = policies.dispel().resolve_arrays(groups).partner
    assert matrix is not None and groups.cells is not None
    assert groups.cells.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]]
    np.testing.assert_allclose(normalized_rows(matrix)[0], [0.25, 0.25, 0.5, 0, 0])


def test_features_images_and_texts_are_mixed() -> None:
    groups = GroupIndex([0, 0, 0, 0, 1, 1, 1, 1], [-1, -1, 0, 1, -1, -1, 0, 1])
    policy = policies.dispel(0.75)
    values = np.arange(8, dtype=np.float32)
    batch = next(iter(MixLoader(FeatureSource(values[:, None]), groups, policy, 16, steps=1)))
    expected = 0.25 * values[batch.index] + 0.75 * values[batch.partner]
    torch.testing.assert_close(batch.input[:, 0], torch.from_numpy(expected))
    assert torch.equal(batch.label, batch.partner_label) and torch.equal(batch.label, (batch.index >= 4).long())
    pixels = np.repeat(np.arange(8, dtype=np.uint8) * 20, 4 * 4 * 3).reshape(8, 4, 4, 3)
    images = next(iter(MixLoader(ImageSource(pixels, mean=0.0, std=1.0), groups, policy, 16, steps=1)))
    torch.testing.assert_close(images.input.mean(dim=(1, 2, 3)), torch.from_numpy(expected * 20 / 255))
    tokens = TokenSource(np.arange(8), np.arange(9))
    texts = next(iter(MixLoader(tokens, groups, policy, 16, steps=1)))
    assert torch.equal(texts.input.ids[:, 0], batch.index) and torch.equal(texts.input.partner_ids[:, 0], batch.partner)
    assert torch.equal(texts.lam, batch.lam)


def test_a_policy_can_be_pickled() -> None:
    policy = pickle.loads(pickle.dumps(policies.dispel(0.8, 0.5)))
    assert repr(policy) == "MixPolicy<dispel>(strata='classes', lam=TwoPoint(0.2, 1, 0.5), labels='keep')"
    assert np.array_equal(
        policy.resolve_arrays(GROUPS).partner, policies.dispel(0.8, 0.5).resolve_arrays(GROUPS).partner
    )


def test_invalid_arguments() -> None:
    for arguments, message in (
        ((1.5,), r"dispel: s must be in \[0, 1\]"), ((0.5, -0.1), r"dispel: alpha must be in \[0, 1\]"),
        ((float("nan"),), "dispel: s must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            policies.dispel(*arguments)
    with pytest.raises(TypeError, match="dispel: s must be a number"):
        policies.dispel("0.5")  # type: ignore[arg-type]
    unknown = GroupIndex([0, 0, 1, 1], [-1, -1, -1, -1])
    with pytest.raises(UnknownAttributes, match="dispel: no example has a known attribute"):
        policies.dispel().resolve(unknown)
    one = GroupIndex([0, 0, 1, 1], [0, 1, -1, -1], class_names=["cat", "dog"])
    with pytest.raises(UnknownAttributes, match="dispel: class dog has no example whose attribute is known"):
        policies.dispel().resolve(one)
    assert "the partners cannot be determined: dispel: class dog" in str(policies.dispel().audit(one))
    with pytest.raises(ValueError, match="dispel requires groups of a single class and attribute"):
        policies.dispel().resolve(GroupIndex([0, 1], [0, 1], groups=[0, 0]))
