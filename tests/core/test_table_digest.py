"""Digests of draw tables are those of the first layout, which saved states of loaders and runs contain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from spurmix import Beta, GroupIndex, MixPolicy, policies
from spurmix.core import packed_rows, table_digest
from spurmix.core.tables import build_tables

NUMBER = np.arange(600)
GROUPS = {
    "pairs": GroupIndex(NUMBER**2 % 7, NUMBER**3 % 5),
    "unknown": GroupIndex(NUMBER % 4, NUMBER**2 % 11 - 1),
    "custom": GroupIndex(NUMBER % 3, NUMBER // 3 % 4, groups=NUMBER * 5 % 12),
}


def matrix(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Weights of different sizes, some of which are too small to change a threshold, and rows without a partner."""
    row, column = np.indices((count, count))
    return np.where((row + column) % 3 == 0, 0.0, 1.0 + row % 2) * np.where(column % 4 == 1, 1e-13, 1.0) * (row % 5 > 0)


POLICIES: dict[str, Callable[[int], MixPolicy]] = {
    "lisa": lambda count: policies.lisa(unknown="group"),
    "lisa of one kind": lambda count: policies.lisa(1.0, unknown="group"),
    "lisa of tiny probability": lambda count: policies.lisa(1e-11, unknown="group"),
    "selecmix": lambda count: policies.selecmix(unknown="group"),
    "mixup": lambda count: policies.mixup(),
    "mixpro": lambda count: policies.mixpro(0, unknown="group"),
    "balance_attributes": lambda count: policies.balance_attributes(labels="keep"),
    "group_balanced": lambda count: policies.group_balanced(unknown="group"),
    "matrix": lambda count: MixPolicy(partner=matrix(count), lam=Beta(0.5), replacement=True),
}
EXPECTED = {
    "pairs, lisa": "ddfe786219a556461ad1e5ea47c4a189",
    "pairs, lisa of one kind": "f8178b64104d62a433b05efa49d92ccd",
    "pairs, lisa of tiny probability": "715a9cff7de36208ee0adaf5552a81a6",
    "pairs, selecmix": "1eba949d23339e753a9f9d7aa6272eeb",
    "pairs, mixup": "a797b8f2e36987a604ffb52d5deda466",
    "pairs, mixpro": "3fa306a6e1dedc50ed4986b824da7de3",
    "pairs, balance_attributes": "f08805049f17f9e1bc278e4117e9df68",
    "pairs, group_balanced": "6522cd2c6131a5fe2a83a9a76647be43",
    "pairs, matrix": "a9ee2995165f8479994b92c2fcaa108a",
    "unknown, lisa": "0f931bfd0e8f1beed5bc6860d32869d4",
    "unknown, lisa of one kind": "a45b42cab93d721dd5bea5f256192d45",
    "unknown, lisa of tiny probability": "4a6ad191a8a0e0b218e913a99d6ab092",
    "unknown, selecmix": "291812609e769352d5016db8fecbd715",
    "unknown, mixup": "0953f3bf1844baf77cc3b7acf4debc33",
    "unknown, mixpro": "58f2d2739999e1ed5ef2ef0a34f645d4",
    "unknown, balance_attributes": "55fa859a7996d85deb6a321e4423fcaa",
    "unknown, group_balanced": "f6f7e0ef8cefa6549f444d2598639c32",
    "unknown, matrix": "4229670efd6347f4210df2ea6155914a",
    "custom, lisa": "d1db3205a60ca263ce0b7e04a0c87ed8",
    "custom, lisa of one kind": "de16a5cd6978eec2aa7780e768e56be9",
    "custom, lisa of tiny probability": "a354d8773bb098c4d7dac7af91615a03",
    "custom, selecmix": "395e798c0c06f8982f7d7299a9ea4c47",
    "custom, mixup": "c410ae50c65c43b9f6d08e1e2d23e556",
    "custom, mixpro": "70b68bc6104f42e2bfcdf3f03e2452ed",
    "custom, group_balanced": "8fc19dbc146035c4550eb97d0efbf319",
    "custom, matrix": "a6b31d2eb1661a2e230efa75fdbf93c9",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_digests_of_earlier_versions(name: str) -> None:
    groups, policy = name.split(", ")
    index = GROUPS[groups]
    assert build_tables(index, POLICIES[policy](index.num_groups)).fingerprint == EXPECTED[name]


def test_blocks_do_not_change_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_digest, "BLOCK_WORDS", 40)
    test_digests_of_earlier_versions("pairs, matrix")


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(("lisa", "selecmix"))])
def test_running_sums_do_not_change_the_digest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_rows, "MAX_THRESHOLDS", -1)
    monkeypatch.setattr(packed_rows, "MIN_ENTRIES", 0)
    test_digests_of_earlier_versions(name)


def test_large_tables_are_hashed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    index = GROUPS["pairs"]
    monkeypatch.setattr(table_digest, "MAX_DENSE_WORDS", index.num_groups - 1)
    digests = {build_tables(index, policies.lisa(p)).fingerprint for p in (0.5, 0.5, 0.25)}
    assert len(digests) == 2 and EXPECTED["pairs, lisa"] not in digests
