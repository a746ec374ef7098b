"""Policies of the demo: which examples they draw."""

from __future__ import annotations

import numpy as np
import pytest

from spurmix import draw
from spurmix.cli.demo.policies import COMPARED, demo_policies
from spurmix.core import policies
from spurmix.core.groups import UNKNOWN, GroupIndex

LABEL = np.repeat([0, 1], 20)
KNOWN = np.array(([0] * 3 + [1] * 3 + [UNKNOWN] * 14) * 2)
GROUPS = GroupIndex(LABEL, KNOWN)
PRIOR = [[0.9, 0.1], [0.1, 0.9]]


def test_there_is_every_policy() -> None:
    assert set(demo_policies(PRIOR)) == set(policies.__all__) >= set(COMPARED)


@pytest.mark.parametrize("name", ["group_balanced", "lisa", "selecmix"])
def test_published_methods_draw_only_known_attributes(name: str) -> None:
    audit = demo_policies(PRIOR)[name].audit(GROUPS)
    shares = {row.name: row.share for row in audit.groups}
    assert all((share == 0) == ("unknown" in row) for row, share in shares.items())


def test_mixpro_mixes_unknown_examples_with_known_ones_of_the_same_class() -> None:
    drawn = draw(GROUPS, demo_policies(PRIOR)["mixpro"], seed=0, start=0, count=200)
    index, partner = drawn.index.numpy(), drawn.partner.numpy()
    assert (KNOWN[index] == UNKNOWN).all() and (KNOWN[partner] != UNKNOWN).all()
    assert (LABEL[index] == LABEL[partner]).all()


@pytest.mark.parametrize("unmixed", [0.0, 0.5])
def test_balance_attributes_uses_the_prior(unmixed: float) -> None:
    audit = demo_policies(PRIOR, unmixed)["balance_attributes"].audit(GROUPS)
    assert audit.residual < 1e-6 < 0.3 < audit.raw
    assert (audit.residual_given_lam < 1e-6) == (unmixed > 0)
