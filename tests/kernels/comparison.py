"""Inputs of the kernel tests, and the tolerances of their comparison with the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from spurmix import Beta, GroupIndex, MixPolicy, policies
from spurmix.core import packed_rows
from spurmix.core.table_layout import FLAG_MEMBERS, FLAG_SUMS, HEADER_WORDS, QUANTILES, WORD_FLAGS
from spurmix.ops import functional as F
from spurmix.ops.tables import DrawTables, draw_tables

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    torch.float64: dict(rtol=1e-12, atol=1e-12),
    torch.float32: dict(rtol=3e-6, atol=3e-6),
    torch.float16: dict(rtol=2.0**-10, atol=2.0**-10),
    torch.bfloat16: dict(rtol=2.0**-7, atol=2.0**-7),
}


def close(actual: Any, expected: Any) -> None:
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, equal_nan=True, **TOLERANCE[expected.dtype])


def pairs(rng: np.random.Generator, n: int, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    index, partner = (torch.from_numpy(rng.integers(0, n, batch)) for _ in range(2))
    lam = torch.from_numpy(rng.random(batch).astype(np.float32))
    lam[::3] = 1.0
    return index, partner, lam


def compare_group_counts(
    backend: str, sizes: tuple[tuple[int, int, int], ...], dtype: torch.dtype, rng: np.random.Generator
) -> None:
    """Compare counts of a backend with the reference. Sizes are batch, classes and groups."""
    for batch, classes, groups in sizes:
        logits = torch.from_numpy(rng.integers(-2, 3, (batch, classes))).to(dtype)  # with ties
        if batch:
            logits[0, classes // 2] = torch.nan
            logits[-1] = -torch.inf
        label = torch.from_numpy(rng.integers(0, min(classes, 3), batch))
        group = torch.from_numpy(rng.integers(-1, groups, batch))
        member = torch.from_numpy(rng.random((batch, groups)) < 0.4)
        for chosen in (group, member):
            expected = F.group_counts(logits, label, chosen, groups, backend="reference")
            assert torch.equal(F.group_counts(logits, label, chosen, groups, backend=backend), expected)


random_draws = given(
    st.integers(1, 3000),
    st.integers(1, 6),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**62),
    st.integers(0, 300),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["groups", "classes", "all"]),
)
"""Number of examples, number of labels, seed, start, count, replacement, whether there are partners, strata."""


def random_tables(n: int, labels: int, replacement: bool, partners: bool, strata: Any) -> DrawTables:
    rng = np.random.default_rng(n)
    groups = GroupIndex(rng.integers(0, labels, n), rng.integers(0, 3, n))
    weights = rng.random((groups.num_groups,) * 2) * (rng.random((groups.num_groups, 1)) < 0.7)
    policy = MixPolicy(strata, partner=weights if partners else None, lam=Beta(0.4), replacement=replacement)
    return draw_tables(groups, policy)


def with_and_without_members(tables: DrawTables) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Packed tables with members of 32 and 64 bits, and tables of which positions are example numbers."""
    yield tables.packed, tables.members
    yield tables.packed, tables.members.long()
    packed = tables.packed.clone()
    packed[WORD_FLAGS] &= ~FLAG_MEMBERS
    yield packed, torch.empty(0, dtype=torch.int32)


def summed_tables(groups: GroupIndex, policy: MixPolicy) -> DrawTables:
    """Tables in which rows of partners have running sums in place of thresholds, as tables of many groups."""
    with mock.patch.multiple(packed_rows, MAX_THRESHOLDS=-1, MIN_ENTRIES=0):
        tables = draw_tables(groups, policy)
    assert int(tables.packed[WORD_FLAGS]) & FLAG_SUMS
    return tables


def altered_tables(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Packed tables of ten examples with one altered word of a section or of the members: `count` of each policy."""
    rng = np.random.default_rng(0)
    groups = GroupIndex([0, 0, 1, 1, 2, 2, 0, 1, 2, 2], [0, 1, 0, 1, 0, 1, 1, 0, 0, 1])
    for tables in (
        *(draw_tables(groups, policy) for policy in (policies.lisa(), policies.mixup())),
        draw_tables(groups, MixPolicy(replacement=True, partner=np.eye(6), lam=0.5)),
        summed_tables(groups, policies.lisa()),
    ):
        words = rng.integers(HEADER_WORDS, tables.packed.numel() - QUANTILES, count - count // 4)
        words = np.append(words, rng.integers(tables.packed.numel() - QUANTILES, tables.packed.numel(), count // 4))
        for word, value in zip(words, rng.choice([-1, 0, 2**31, 2**40, 2**62, -(2**63)], count), strict=True):
            packed = tables.packed.clone()
            packed[word] = int(value)
            yield packed, tables.members
        yield tables.packed, tables.members[:0]
        for value in (-1, 10, -(2**31), 2**31 - 1):
            members = tables.members.clone()
            members[rng.integers(0, 10, 6)] = value
            yield tables.packed, members


def invalid_weights() -> Iterator[torch.Tensor]:
    """Weights of a batch of two, of which the second is not in [0, 1]."""
    for value in (1.5, -0.25, float("nan"), float("inf"), 1 + 2.0**-23, -(2.0**-149)):
        yield torch.tensor([0.5, value])


def calls_with_weights(backend: str) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Calls of all operators that take lam `[2]`. The result has a row for each weight."""
    index, store = torch.tensor([0, 1]), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    ids = torch.tensor([[0, 1], [2, 1]])
    yield lambda lam: F.mix_rows(torch.zeros(2, 3), index, index, lam, backend=backend)
    yield lambda lam: F.mix_labels(index, index, lam, 2, backend=backend)
    yield lambda lam: F.mix_images(store, index, index, lam, backend=backend)
    boxes = torch.full((2, 2, 4), 2.0)
    yield lambda lam: F.mix_images(store, index, index, lam, boxes=boxes, size=(3, 3), backend=backend)
    yield lambda lam: F.mix_embeddings(torch.zeros(3, 4), ids, ids, lam, backend=backend)
    yield lambda lam: F.mixed_cross_entropy(torch.zeros(2, 3), index, index, lam, reduction="none", backend=backend)


def check_altered_draw(drawn: tuple[torch.Tensor, ...], reported: bool) -> None:
    """Check that samples are valid, or NaN and reported."""
    index, partner, lam, group = drawn
    invalid = group < 0
    assert bool(invalid.any()) == reported
    assert index.min() >= 0 and index.max() < 10 and partner.min() >= 0 and partner.max() < 10 and group.max() < 6
    assert (index[invalid] == 0).all() and (partner[invalid] == 0).all() and torch.equal(lam.isnan(), invalid)
