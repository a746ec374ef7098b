"""The draw: known answers, and properties that follow from the specification."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import spurmix
from spurmix import Beta, Fixed, GroupIndex, MixPolicy, Uniform, _host, policies
from spurmix.core import packed_rows
from spurmix.core.schedule import make_schedule, partner_thresholds
from spurmix.core.table_layout import FLAG_MEMBERS, FLAG_SUMS, WORD_FLAGS, WORD_LIST_WORDS, WORD_NUM_ROWS
from spurmix.ops import backends
from spurmix.ops.reference import draw as reference_draw
from spurmix.ops.tables import draw_tables

LAM = {None: None, "uniform(0, 1)": Uniform(0, 1), "beta(2, 2)": Beta(2)}


def case_policy(case: dict[str, Any]) -> MixPolicy:
    lam = LAM[case["lam"]] if case["partner_rows"] else None
    return MixPolicy(case["strata"], case["weights"], case["partner_rows"], lam, replacement=case["replacement"])


def dataset(vectors: dict[str, Any], name: str) -> GroupIndex:
    return GroupIndex(vectors["datasets"][name]["label"], vectors["datasets"][name]["attribute"])


def test_philox(vectors: dict[str, Any]) -> None:
    for case in vectors["philox"]:
        words = reference_draw.philox(tuple(torch.tensor([w]) for w in case["counter"]), tuple(case["key"]))  # type: ignore[arg-type]
        assert [int(w) for w in words] == case["out"]
        assert _host.philox(case["counter"], case["key"][0] | case["key"][1] << 32) == case["out"]


def test_permutations(vectors: dict[str, Any]) -> None:
    for case in vectors["permutations"]:
        p = torch.arange(len(case["out"]))
        key = reference_draw.cycle_key(
            torch.full_like(p, case["stratum"]), torch.full_like(p, case["cycle"]), case["seed"]
        )
        assert reference_draw.permute(p, torch.full_like(p, case["m"]), key).tolist() == case["out"]
        shared = _host.permute(p.numpy(), case["m"], case["seed"], case["stratum"], case["cycle"])
        assert shared.tolist() == case["out"]


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_permute_is_a_permutation_in_python_and_cpp(m: int, seed: int, cycle: int) -> None:
    p = torch.arange(m)
    key = reference_draw.cycle_key(torch.full_like(p, 3), torch.full_like(p, cycle), seed)
    out = reference_draw.permute(p, torch.full_like(p, m), key)
    assert torch.equal(out.sort().values, p)
    assert np.array_equal(out.numpy(), _host.permute(p.numpy(), m, seed, 3, cycle))


def test_schedules_and_thresholds(vectors: dict[str, Any]) -> None:
    for case in vectors["schedules"]:
        plan, n = make_schedule(np.array(case["weights"], float)), len(case["first_slots"])
        assert plan.share.tolist() == case["share"]
        assert plan.stratum[:n].tolist() == case["first_slots"]
        assert plan.rank[:n].tolist() == case["first_ranks"]
    for case in vectors["thresholds"]:
        assert partner_thresholds(np.array(case["weights"])).tolist() == case["out"]


def test_known_draws(vectors: dict[str, Any], backend: str) -> None:
    for case in vectors["cases"]:
        out = spurmix.draw(
            dataset(vectors, case["dataset"]),
            case_policy(case),
            seed=case["seed"],
            start=case["start"],
            count=case["count"],
            backend=backend,
        )
        for name, expected in case["expect"].items():
            assert getattr(out, name).tolist() == expected, f"{case['name']}: {name}"


def test_shared_device_header_gives_the_same_draws(vectors: dict[str, Any]) -> None:
    for case in vectors["cases"]:
        tables = draw_tables(dataset(vectors, case["dataset"]), case_policy(case))
        out = _host.draw(
            tables.packed.numpy(), tables.members.to(torch.int64).numpy(), case["seed"], case["start"], case["count"]
        )
        for value, name in zip(out, ("index", "partner", "lam"), strict=False):
            assert value.tolist() == case["expect"][name]


def random_groups(rng: np.random.Generator, n: int, classes: int, attributes: int) -> GroupIndex:
    return GroupIndex(rng.integers(0, classes, n), np.ma.masked_equal(rng.integers(-1, attributes, n), -1))


@given(
    st.integers(1, 4000),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**62),
    st.integers(0, 700),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["groups", "classes", "all"]),
)
def test_backends_agree_bit_for_bit(
    n: int,
    classes: int,
    attributes: int,
    seed: int,
    start: int,
    count: int,
    replacement: bool,
    partners: bool,
    strata: Any,
) -> None:
    rng = np.random.default_rng(n * 7 + classes)
    groups = random_groups(rng, n, classes, attributes)
    partner = rng.random((groups.num_groups, groups.num_groups)) * (rng.random((groups.num_groups, 1)) < 0.7)
    policy = MixPolicy(strata, partner=partner if partners else None, lam=Beta(0.3, 1.1), replacement=replacement)
    tables = draw_tables(groups, policy)
    # Members of 32 and 64 bits, and no members: positions are example numbers.
    in_order = tables.packed.clone()
    in_order[WORD_FLAGS] &= ~FLAG_MEMBERS
    for packed, members in (
        (tables.packed, tables.members),
        (tables.packed, tables.members.to(torch.int64)),
        (in_order, torch.empty(0, dtype=torch.int32)),
    ):
        expected = reference_draw.draw_samples(packed, members, seed, start, count)
        actual = torch.ops.spurmix.draw(packed, members, seed, start, count)
        for a, b in zip(actual, expected[:4], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_out_is_written_in_place(backend: str, count: int) -> None:
    groups = GroupIndex([0, 1, 1, 0, 1] * 9)
    policy = MixPolicy(partner=[[0, 1], [1, 0]], lam=Beta(2))
    expected = spurmix.draw(groups, policy, seed=4, start=9, count=count, backend=backend)
    out = [torch.full((count,), 77), torch.full((count,), 77), torch.full((count,), 77.0), torch.full((count,), 77)]
    for given_out in (out[:3], out):
        drawn = spurmix.draw(groups, policy, seed=4, start=9, count=count, out=given_out, backend=backend)
        for a, b, c in zip(drawn, expected, out, strict=False):
            assert a is c and torch.equal(a, b)
    assert torch.equal(out[3], torch.from_numpy(groups.group_ids())[expected.index].long())


def test_bad_out() -> None:
    groups = GroupIndex([0, 1])
    index = torch.empty(3, dtype=torch.int64)
    for out, error, text in [
        ([index], ValueError, "got 1"),
        ([index, index, index], TypeError, r"out\[2\] \(lam\)"),
        ([index, index, torch.empty(3)], ValueError, r"out\[1\] shares memory with out\[0\]"),
        ([index, index[:2], torch.empty(3)], ValueError, r"out\[1\] \(partner\)"),
    ]:
        with pytest.raises(error, match=text):
            spurmix.draw(groups, policies.erm(), seed=0, start=0, count=3, out=out)


def test_the_end_of_the_sequence(backend: str) -> None:
    groups = GroupIndex([0, 1, 1])
    last = 2**63 - 4
    out = spurmix.draw(groups, policies.group_balanced(), seed=2**63 - 1, start=last, count=4, backend=backend)
    assert out.index.tolist()[0::2] == [0, 0]
    with pytest.raises(ValueError, match="count"):
        spurmix.draw(groups, policies.group_balanced(), seed=0, start=last, count=5, backend=backend)


def test_batches_of_whole_periods_are_exactly_balanced(backend: str, rng: np.random.Generator) -> None:
    groups = random_groups(rng, 500, 3, 2)
    ids = groups.group_ids()
    weights = np.array([3, 1, 2] * 3)
    for given_weights, expected in ((None, np.full(9, 7)), (weights, weights * 7)):
        policy = MixPolicy("groups", given_weights)
        period = draw_tables(groups, policy).period
        for k in range(5):
            out = spurmix.draw(groups, policy, seed=3, start=k * 7 * period, count=7 * period, backend=backend)
            assert np.bincount(ids[out.index.numpy()], minlength=9).tolist() == expected.tolist()


def test_schedule_of_more_than_65536_strata(backend: str) -> None:
    """Equal weights need one slot for each stratum. Different weights have at most 65536 slots."""
    count = 70_000
    groups = GroupIndex(np.arange(count) // 100, np.arange(count) % 100)
    out = spurmix.draw(groups, policies.lisa(), seed=1, start=count - 100, count=200, backend=backend)
    assert torch.equal(out.index, torch.arange(count - 100, count + 100) % count)
    assert ((out.partner // 100 == out.index // 100) != (out.partner % 100 == out.index % 100)).all()
    with pytest.raises(ValueError, match=r"70,000 strata have positive weights, but .* at most 65,536 slots"):
        make_schedule(np.arange(1.0, count + 1))


def test_each_member_once_per_cycle(backend: str) -> None:
    groups = GroupIndex([0] * 37 + [1] * 11 + [2])
    out = spurmix.draw(groups, policies.group_balanced(), seed=5, start=0, count=3 * 37 * 11, backend=backend)
    for stratum, members in enumerate((range(37), range(37, 48), range(48, 49))):
        drawn = out.index[stratum::3].reshape(-1, len(members))
        assert torch.equal(drawn.sort(dim=1).values, torch.tensor([*members]).expand_as(drawn))
    assert out.index[0::3][:37].tolist() != out.index[0::3][37:74].tolist()


def test_draws_are_a_function_of_the_sample_number(backend: str, rng: np.random.Generator) -> None:
    groups = random_groups(rng, 300, 2, 2)
    whole = spurmix.draw(groups, policies.mixup(), seed=1, start=1000, count=240, backend=backend)
    for size in (1, 7, 60, 120):
        parts = [
            spurmix.draw(groups, policies.mixup(), seed=1, start=1000 + s, count=min(size, 240 - s), backend=backend)
            for s in range(0, 240, size)
        ]
        for k in range(3):
            assert torch.equal(torch.cat([p[k] for p in parts]), whole[k])


def test_partner_groups_and_lam_follow_their_distributions() -> None:
    groups = GroupIndex([0] * 50 + [1] * 30 + [2] * 20)
    row = np.array([0.2, 0.5, 0.3])
    policy = MixPolicy("all", partner=np.tile(row, (3, 1)), lam=Beta(0.5, 1.5))
    out = spurmix.draw(groups, policy, seed=11, start=2**41, count=200_000)
    counts = np.bincount(groups.group_ids()[out.partner.numpy()], minlength=3)
    assert stats.chisquare(counts, row * 200_000).pvalue > 1e-3
    members = np.bincount(out.partner.numpy()[out.partner.numpy() < 50], minlength=50)
    assert stats.chisquare(members).pvalue > 1e-3
    edges = np.linspace(0, 1, 21)
    observed, _ = np.histogram(out.lam.numpy(), edges)
    assert stats.chisquare(observed, np.diff(stats.beta(0.5, 1.5).cdf(edges)) * 200_000).pvalue > 1e-3


def test_with_replacement_is_uniform() -> None:
    groups = GroupIndex([0] * 40)
    out = spurmix.draw(groups, MixPolicy("all", replacement=True), seed=2, start=0, count=100_000)
    assert stats.chisquare(np.bincount(out.index.numpy(), minlength=40)).pvalue > 1e-3


def test_lam_is_a_multiple_of_two_to_the_minus_24() -> None:
    groups = GroupIndex([0] * 9)
    out = spurmix.draw(groups, policies.mixup(), seed=2, start=0, count=4096)
    assert torch.equal((out.lam.double() * 2**24).round(), out.lam.double() * 2**24)
    fixed = spurmix.draw(groups, MixPolicy("all", partner=[[1]], lam=Fixed(0.3)), seed=2, start=0, count=64)
    assert torch.all(fixed.lam == round(0.3 * 2**24) * 2.0**-24)


def test_counter_moves_the_start(backend: str) -> None:
    groups = GroupIndex([0] * 30)
    tables = draw_tables(groups, policies.erm())
    function = backends.implementation("draw", backend, torch.device("cpu"))
    moved = function(tables.packed, tables.members, 3, 5, 20, torch.tensor([37]))
    plain = function(tables.packed, tables.members, 3, 42, 20)
    assert all(torch.equal(a, b) for a, b in zip(moved, plain, strict=True))


def test_bad_input(backend: str) -> None:
    groups = GroupIndex([0, 1])
    erm = policies.erm()
    for arguments, error, text in [
        (dict(seed=-1, start=0, count=1), ValueError, "seed"),
        (dict(seed=2**63, start=0, count=1), ValueError, "seed"),
        (dict(seed=0, start=-1, count=1), ValueError, "start"),
        (dict(seed=0, start=0, count=-1), ValueError, "count"),
        (dict(seed=0.5, start=0, count=1), TypeError, "seed"),
    ]:
        with pytest.raises(error, match=text):
            spurmix.draw(groups, erm, backend=backend, **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="policy"):
        spurmix.draw(groups, "erm", seed=0, start=0, count=1, backend=backend)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="policy is required"):
        spurmix.draw(groups, seed=0, start=0, count=1, backend=backend)
    with pytest.raises(TypeError, match="groups"):
        spurmix.draw([0, 1], erm, seed=0, start=0, count=1, backend=backend)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend must be one of"):
        spurmix.draw(groups, erm, seed=0, start=0, count=1, backend="gpu")


def test_damaged_tables_are_rejected() -> None:
    tables = draw_tables(GroupIndex([0, 1, 1]), policies.erm())
    for damage in (lambda t: t[:8], lambda t: t[:-1], lambda t: torch.cat([t, t[:1]]), lambda t: t + 1):
        with pytest.raises((RuntimeError, ValueError), match="tables"):
            torch.ops.spurmix.draw(damage(tables.packed.clone()), tables.members, 0, 0, 4)
    for word in (WORD_NUM_ROWS, WORD_LIST_WORDS):
        wrong = tables.packed.clone()
        wrong[word] += 1
        with pytest.raises((RuntimeError, ValueError), match="tables"):
            torch.ops.spurmix.draw(wrong, tables.members, 0, 0, 4)


@pytest.mark.parametrize("shape", [(2, 2), (5, 4), (40, 3), (129, 2)])
def test_running_sums_draw_as_thresholds(
    shape: tuple[int, int], backend: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = np.repeat(np.arange(shape[0] * shape[1]), rng.integers(1, 4, shape[0] * shape[1]))
    groups = GroupIndex(number // shape[1], number % shape[1])
    stored = draw_tables(groups, policies.lisa())
    monkeypatch.setattr(packed_rows, "MAX_THRESHOLDS", -1)
    monkeypatch.setattr(packed_rows, "MIN_ENTRIES", 0)
    summed = draw_tables(groups, policies.lisa())
    assert int(summed.packed[WORD_FLAGS]) & FLAG_SUMS and not int(stored.packed[WORD_FLAGS]) & FLAG_SUMS
    expected = backends.implementation("draw", "reference", torch.device("cpu"))(
        stored.packed, stored.members, 3, 10**6, 2000
    )
    draw = backends.implementation("draw", backend, torch.device("cpu"))
    assert all(map(torch.equal, draw(summed.packed, summed.members, 3, 10**6, 2000), expected))


@pytest.mark.parametrize("value", [5 * 2**30, 2**24 + 1, -1, -(2**63)])
def test_altered_quantiles_are_rejected(backend: str, value: int) -> None:
    tables = draw_tables(GroupIndex([0, 1, 1, 0], [0, 0, 1, 1]), policies.lisa())
    altered = tables.packed.clone()
    altered[-1025:] = value
    with pytest.raises((RuntimeError, ValueError), match="tables"):
        backends.implementation("draw", backend, torch.device("cpu"))(altered, tables.members, 0, 0, 64)


@pytest.mark.parametrize("value", [4, -1, 10**6])
def test_altered_members_are_rejected(backend: str, value: int) -> None:
    tables = draw_tables(GroupIndex([0, 1, 1, 0], [0, 0, 1, 1]), policies.lisa())
    altered = tables.members.clone()
    altered[2] = value
    with pytest.raises((RuntimeError, ValueError), match="tables"):
        backends.implementation("draw", backend, torch.device("cpu"))(tables.packed, altered, 0, 0, 64)


@pytest.mark.parametrize(
    ("groups", "policy"),
    [
        (GroupIndex([0, 1, 1, 0], [0, 0, 1, 1]), policies.lisa()),
        (GroupIndex([0, 0, 0, 1, 1, 1], [-1, 0, 1, -1, 0, 1]), policies.group_balanced()),
        (GroupIndex([0, 0, 1, 1], [0, 0, 1, 1]), policies.mixpro([0, 3])),
    ],
)
def test_removed_members_are_rejected(backend: str, groups: GroupIndex, policy: MixPolicy) -> None:
    tables = draw_tables(groups, policy)
    removed = dataclasses.replace(tables, members=tables.members[:0])
    draw, batch = (backends.implementation(n, backend, torch.device("cpu")) for n in ("draw", "mix_image_batch"))
    count = groups.num_examples
    images, labels = torch.zeros(count, 2, 2, 3, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    with pytest.raises((RuntimeError, ValueError), match="members"):
        draw(removed.packed, removed.members, 0, 0, 4)
    with pytest.raises((RuntimeError, ValueError), match="members"):
        batch(
            images, labels, removed.packed, removed.members, torch.zeros(3), torch.ones(3), False, 0.1, 1.0, 0.7, 1.3,
            False, 0, 0, 4, 2, 2, torch.float32, False,
        )  # fmt: skip


def test_tables_without_members_have_no_flag(backend: str) -> None:
    groups = GroupIndex([0, 0, 1, 1], [0, 1, 0, 1])
    for policy in (policies.lisa(), policies.erm(), policies.group_balanced()):
        tables = draw_tables(groups, policy)
        assert not tables.members.numel() and not int(tables.packed[WORD_FLAGS]) & FLAG_MEMBERS
        backends.implementation("draw", backend, torch.device("cpu"))(tables.packed, tables.members, 0, 0, 4)


def test_tables_of_the_first_layout_are_rejected(backend: str) -> None:
    tables = draw_tables(GroupIndex([0, 1, 1]), policies.erm())
    first = tables.packed.clone()
    first[0] -= 1
    with pytest.raises((RuntimeError, ValueError), match=r"not .*packed draw tables of this version"):
        backends.implementation("draw", backend, torch.device("cpu"))(first, tables.members, 0, 0, 4)
