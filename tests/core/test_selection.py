"""Examples of unknown attribute, subsamples and target sets: which examples policies draw."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from spurmix import GroupIndex, MixLoader, MixPolicy, draw, policies
from spurmix.core.resolved_policy import normalized_rows
from spurmix.core.table_digest import table_digest
from spurmix.core.tables import build_tables

RNG = np.random.default_rng(4)
LABELS = np.repeat([0, 1], 300)
TRUE = np.where(RNG.random(600) < 0.85, LABELS, 1 - LABELS)
ATTRIBUTES = np.where(RNG.random(600) < 0.4, TRUE, -1)
GROUPS = GroupIndex(LABELS, ATTRIBUTES, class_names=["cat", "dog"], attribute_names=["in", "out"])
UNKNOWN = np.flatnonzero(ATTRIBUTES == -1)
CELLS = GroupIndex([0, 0, 0, 1, 1, 1], [-1, 0, 1, -1, 0, 1])
BY_GROUP: dict[str, Any] = {
    "group_balanced": policies.group_balanced, "lisa": policies.lisa, "selecmix": policies.selecmix,
    "mixpro": lambda **given: policies.mixpro(target=1, **given),
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "erm": policies.erm, "class_balanced": policies.class_balanced, "mixup": policies.mixup,
    "dispel": policies.dispel, "balance_attributes": policies.balance_attributes,
    "upweight": lambda **given: policies.upweight({0: 2.0}, **given),
}  # fmt: skip
ALL = {**BY_GROUP, **OTHERS}


def drawn(policy: MixPolicy, groups: GroupIndex = GROUPS, count: int = 3000, seed: int = 0) -> Any:
    out = draw(groups, policy, seed=seed, start=0, count=count)
    return out.index.numpy(), out.partner.numpy(), out.lam.numpy()


@pytest.mark.parametrize("name", ALL)
def test_excluded_examples_are_neither_index_nor_partner(name: str) -> None:
    policy = ALL[name](attributed_only=True)
    index, partner, _ = drawn(policy)
    assert not np.isin(index, UNKNOWN).any() and not np.isin(partner, UNKNOWN).any()
    assert policy.unknown == "exclude" and "unknown='exclude'" in repr(policy)
    audit = policy.audit(GROUPS)
    assert [g.share == 0 for g in audit.groups] == [g.name.endswith("unknown") or (name == "mixpro" and "out" in g.name)
                                                    for g in audit.groups]  # fmt: skip
    assert [g.count for g in audit.groups] == GROUPS.sizes.tolist()


@pytest.mark.parametrize("name", ALL)
def test_policies_that_need_attributes_leave_out_unknown_ones_by_default(name: str) -> None:
    policy = ALL[name]()
    assert policy.unknown == ("exclude" if name in BY_GROUP else "group" if name == "upweight" else "bulk")
    assert np.isin(drawn(policy)[0], UNKNOWN).any() == (name not in BY_GROUP)
    known = GroupIndex(LABELS, TRUE)
    tables = [build_tables(known, ALL[name](unknown=choice)).packed for choice in ("exclude", "group", "bulk")]
    assert np.array_equal(tables[0], tables[1]) and np.array_equal(tables[0], tables[2])  # all are known


def test_exclusion_keeps_the_cycles_of_classes_and_of_all_examples() -> None:
    known = np.flatnonzero(ATTRIBUTES >= 0)
    index, _, _ = drawn(policies.erm(unknown="exclude"), count=known.size)
    assert sorted(index) == known.tolist()
    columns = GroupIndex(LABELS, np.stack([np.arange(600) % 3, ATTRIBUTES], axis=1), spurious=1)
    index, _, _ = drawn(policies.class_balanced(unknown="exclude"), columns, 600)
    assert not np.isin(index, UNKNOWN).any() and np.bincount(LABELS[index]).tolist() == [300, 300]


def test_examples_keep_the_numbers_of_their_groups() -> None:
    loader = MixLoader(np.zeros((600, 2), np.float32), GROUPS, policies.lisa(), 64, steps=3, prefetch=0)
    for batch in loader:
        assert np.array_equal(batch.group, GROUPS.group_ids()[batch.index.numpy()])
        assert np.array_equal(batch.label, LABELS[batch.index.numpy()])


def test_bulk_draws_unknown_examples_in_proportion_to_their_number() -> None:
    audit = policies.group_balanced(unknown="bulk").audit(GROUPS)
    share = [g.share for g in audit.groups]
    assert share[0] == pytest.approx(GROUPS.sizes[0] / 600, abs=1e-4)
    assert share[1] == pytest.approx(share[2], abs=1e-4) and sum(share) == pytest.approx(1)
    assert {g.share for g in policies.group_balanced(unknown="group").audit(GROUPS).groups} == {1 / 6}


def test_custom_groups_are_excluded_by_example() -> None:
    groups = GroupIndex(LABELS, ATTRIBUTES, groups=np.arange(600) % 2)
    index, _, _ = drawn(policies.group_balanced(), groups)
    assert not np.isin(index, UNKNOWN).any() and np.isin(index, np.arange(0, 600, 2)).mean() == 0.5
    policies.group_balanced().audit(groups)


def test_weights_and_partners_of_excluded_groups_are_0() -> None:
    policy = MixPolicy(weights=[1, 2, 3, 4, 5, 6], partner=np.ones((6, 6)), lam=0.5, unknown="exclude")
    arrays = policy.resolve_arrays(CELLS)
    assert arrays.weights.tolist() == [0, 2, 3, 0, 5, 6]
    assert arrays.partner is not None
    np.testing.assert_allclose(normalized_rows(arrays.partner)[1], [0, 0.25, 0.25, 0, 0.25, 0.25])


def test_subsample_has_the_size_of_the_smallest_group_and_depends_on_the_seed() -> None:
    smallest = int(GROUPS.sizes[[1, 2, 4, 5]].min())
    seen = []
    for seed in (0, 1):
        index, partner, _ = drawn(policies.lisa(subsample=True), seed=seed, count=4000)
        seen.append(frozenset(index.tolist()))
        assert set(partner.tolist()) == seen[-1]
        cells = 2 * LABELS[list(seen[-1])] + ATTRIBUTES[list(seen[-1])]
        assert np.bincount(cells).tolist() == [smallest] * 4
    assert seen[0] != seen[1]
    index, _, _ = drawn(policies.erm(attributed_only=True, subsample=True), count=4 * smallest)
    assert len(set(index.tolist())) == 4 * smallest and frozenset(index.tolist()) == seen[0]
    assert "subsample=True" in repr(policies.erm(subsample=True))
    uses = policies.erm(attributed_only=True, subsample=True).audit(GROUPS)
    assert uses.residual == pytest.approx(0, abs=1e-9) and uses.raw > 0.5
    assert {round(g.distinct) for g in uses.groups if g.share} == {smallest}


def test_subsample_of_unknown_examples() -> None:
    index, _, _ = drawn(policies.erm(subsample=True), count=600)
    assert np.isin(UNKNOWN, index).all()  # the bulk is no group
    smallest = int(GROUPS.sizes.min())
    index, _, _ = drawn(policies.erm(unknown="group", subsample=True), count=6 * smallest)
    assert np.bincount(GROUPS.group_ids()[index]).tolist() == [smallest] * 6


def test_loaders_use_the_subsample_of_their_seed() -> None:
    policy = policies.group_balanced(subsample=True)
    values = np.arange(600, dtype=np.float32)[:, None]
    for seed in (3, 9):
        loader = MixLoader(values, GROUPS, policy, 64, steps=4, seed=seed, prefetch=0, copy=True)
        index = np.concatenate([batch.index.numpy() for batch in loader])
        assert np.array_equal(index, drawn(policy, seed=seed, count=256)[0])


def test_mixpro_mixes_the_attributed_examples_into_the_others() -> None:
    policy = policies.mixpro(s=0.25)
    index, partner, lam = drawn(policy)
    assert np.isin(index, UNKNOWN).all() and not np.isin(partner, UNKNOWN).any()
    assert np.array_equal(LABELS[index], LABELS[partner]) and (lam == 0.75).all()
    assert np.array_equal(drawn(policies.mixpro("attributed", 0.25))[1], partner)
    known = GroupIndex(LABELS, TRUE)
    assert np.array_equal(drawn(policies.mixpro(), known)[1], drawn(policies.mixpro(1), known)[1])


@pytest.mark.parametrize("as_mask", [True, False])
def test_the_target_of_mixpro_is_a_set_of_examples(as_mask: bool) -> None:
    target = np.array([3, 7, 299, 310, 500])
    mask = np.zeros(600, bool)
    mask[target] = True
    policy = pickle.loads(pickle.dumps(policies.mixpro(mask if as_mask else target.tolist())))
    index, partner, lam = drawn(policy, count=5950)
    assert set(partner) == set(target.tolist()) and np.array_equal(LABELS[index], LABELS[partner])
    assert np.array_equal(np.bincount(index, minlength=600), np.where(mask, 0, 10)) and (lam == 0.5).all()
    audit = policy.audit(GROUPS)
    assert [g.count for g in audit.groups[-2:]] == [3, 2] and [g.share for g in audit.groups[-2:]] == [0, 0]
    assert sum(g.share for g in audit.groups) == pytest.approx(1)
    assert build_tables(GROUPS, policy).fingerprint == build_tables(GROUPS, policies.mixpro(mask)).fingerprint
    other = policies.mixpro(target - 1)
    assert build_tables(GROUPS, policy).fingerprint != build_tables(GROUPS, other).fingerprint


@pytest.mark.parametrize("subsample", [False, True])
def test_fingerprint_covers_the_target_examples(subsample: bool) -> None:
    cells = GroupIndex(LABELS, TRUE)
    first, second = (int(cells.members[k]) for k in (0, 1))  # of the same group
    loaders = [
        MixLoader(np.zeros((600, 2), np.float32), cells, policies.mixpro([target], subsample=subsample), 8, steps=3)
        for target in (first, second, first)
    ]
    assert loaders[0].tables.built.packed.tolist() == loaders[1].tables.built.packed.tolist()
    with pytest.raises(ValueError, match="another sequence; different: policy"):
        loaders[1].load_state_dict(loaders[0].state_dict())
    loaders[2].load_state_dict(loaders[0].state_dict())


@pytest.mark.parametrize("policy", [policies.group_balanced(), policies.erm(unknown="exclude", subsample=True)])
def test_fingerprint_covers_the_excluded_examples_of_custom_groups(policy: MixPolicy) -> None:
    digests = []
    for shift in (0, 4, 0):
        attributes = np.where(np.roll(np.arange(600) % 8 < 4, shift), np.arange(600) % 2, -1)
        groups = GroupIndex(LABELS, attributes, groups=np.arange(600) % 2)
        digests.append((groups.fingerprint(), build_tables(groups, policy).fingerprint))
    assert digests[0][0] == digests[1][0] and digests[0] == digests[2]  # the groups are the same
    assert digests[0] != digests[1]


@pytest.mark.parametrize("policy", [policies.lisa(), policies.erm(subsample=True), policies.mixpro(1)])
def test_fingerprint_of_other_policies_is_that_of_the_packed_tables(policy: MixPolicy) -> None:
    tables = build_tables(GROUPS, policy)
    assert tables.members.size and tables.fingerprint == table_digest(tables.packed)


def test_the_target_of_mixpro_is_a_group() -> None:
    index, partner, _ = drawn(policies.mixpro("dog, in"))
    assert set(GROUPS.group_ids()[partner[LABELS[index] == 1]]) == {4}


ONE_CLASS = GroupIndex([0, 0, 1, 1], [0, 1, None, None], class_names=["cat", "dog"])


@pytest.mark.parametrize(
    ("groups", "policy", "text"),
    [
        (GroupIndex([0, 1], [None, None]), policies.lisa(), "no example has a known attribute"),
        (
            GroupIndex([0, 1], [None, None]),
            policies.erm(attributed_only=True),
            'give unknown="group" or unknown="bulk"',
        ),
        (ONE_CLASS, policies.group_balanced(), "class dog has no example whose attribute is known"),
        (GroupIndex([0, 1], groups=[0, 2]), policies.erm(subsample=True), "subsample: group 1 has no examples"),
        (GroupIndex([0, 1], [None, None]), policies.erm(subsample=True), "no example has a known attribute"),
        (GROUPS, policies.mixpro([600]), "target must have example numbers from 0 to 599, got 600 to 600"),
        (GROUPS, policies.mixpro([-1]), "target must have example numbers from 0 to 599"),
        (GROUPS, policies.mixpro([True] * 4), "target must have an entry for each of 600 examples, got 4"),
        (GROUPS, policies.mixpro([True] * 600), "every example is a target example"),
        (GROUPS, policies.mixpro(UNKNOWN, unknown="exclude"), "all target examples are left out"),
        (GROUPS, policies.mixpro("red"), "no attribute or group named 'red'"),
        (GroupIndex(LABELS, TRUE), policies.mixpro("attributed"), "every example has a known attribute"),
        (GROUPS, policies.mixpro("attributed", unknown="exclude"), "every example has a known attribute"),
    ],
)
def test_selections_that_do_not_fit_the_groups(groups: GroupIndex, policy: MixPolicy, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        build_tables(groups, policy)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_bad_choices(name: str) -> None:
    with pytest.raises(ValueError, match="unknown must be one of 'bulk', 'exclude', 'group', got 'drop'"):
        ALL[name](unknown="drop")
    with pytest.raises(ValueError, match="attributed_only=True contradicts unknown='bulk'"):
        ALL[name](attributed_only=True, unknown="bulk")
    with pytest.raises(TypeError, match=f"{name}: attributed_only must be"):
        ALL[name](attributed_only="yes")
    with pytest.raises(TypeError, match=f"{name}: subsample must be"):
        ALL[name](subsample=3)
    assert ALL[name](attributed_only=False).unknown in ("bulk", "group")


@pytest.mark.parametrize("target", [[], [[1, 2]], [0.5], "", [False, False]])
def test_bad_targets(target: Any) -> None:
    with pytest.raises(ValueError, match="mixpro: target"):
        policies.mixpro(target)


def test_a_class_that_disappears_is_reported_by_the_audit() -> None:
    audit = policies.group_balanced().audit(ONE_CLASS)
    assert np.isnan(audit.residual) and "class dog has no example whose attribute is known" in audit.warnings[-1]
