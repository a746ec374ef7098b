"""Running sums as runs: each threshold is that of the float64 sums of all weights, and few words are stored."""

from __future__ import annotations

import numpy as np
import pytest

from spurmix import _host
from spurmix.core import running_sums
from spurmix.core.array_types import FloatArray, Int64Array
from spurmix.core.running_sums import pack_sums, unpack_thresholds
from spurmix.core.schedule import partner_thresholds


def lists(kind: str, rng: np.random.Generator) -> tuple[FloatArray, Int64Array]:
    """Weights and counts of the parts of several lists."""
    shape = int(rng.integers(1, 6)), 4
    counts = rng.integers(0, 400, shape)
    counts[:, 2] += 1
    weights = rng.random(shape) * 10.0 ** rng.integers(-4, 5, shape)
    if kind == "binary":  # many sums are exact, and many are rounded to even
        weights = np.round(weights * 8) / 8 + 0.125
    if kind == "equal":
        weights[:] = rng.integers(1, 4096) / 4096
    if kind == "many":
        counts[0], weights[0] = [50_000, 1, 20_000, 0], [1e-5, 0.5, 1e-5, 0.0]
    return weights, counts


def expected(weights: FloatArray, counts: Int64Array) -> list[Int64Array]:
    return [partner_thresholds(np.repeat(w, n)) for w, n in zip(weights, counts, strict=True)]


@pytest.mark.parametrize("kind", ["random", "binary", "equal", "many"])
def test_thresholds_are_those_of_all_weights(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in (1, 3, 1 << 13):
        monkeypatch.setattr(running_sums, "BLOCK_LISTS", block)
        for _ in range(2 if kind == "many" else 30):
            weights, counts = lists(kind, rng)
            sums = pack_sums(weights, counts)
            thresholds = unpack_thresholds(sums.words, sums.first, counts.sum(axis=1))
            assert np.array_equal(thresholds, np.concatenate(expected(weights, counts)))
            assert sums.length.sum() == sums.words.size and sums.length.max() < 300


@pytest.mark.parametrize("kind", ["random", "binary", "equal", "many"])
def test_search_at_every_threshold(kind: str, rng: np.random.Generator) -> None:
    """A threshold and the word before it select different entries."""
    weights, counts = lists(kind, rng)
    sums = pack_sums(weights, counts)
    for k, thresholds in enumerate(expected(weights, counts)):
        words = np.unique(np.clip(np.concatenate([thresholds - 1, thresholds, [0, 2**32 - 1]]), 0, 2**32 - 1))
        one = sums.words[sums.first[k] : sums.first[k] + sums.length[k]]
        found = _host.sums_at_most(one, thresholds.size, words)
        assert np.array_equal(found, np.searchsorted(thresholds, words, side="right"))


def test_altered_words_are_not_followed(rng: np.random.Generator) -> None:
    sums = pack_sums(*lists("random", rng))
    one = sums.words[: sums.length[0]]
    count = 300
    words = rng.integers(0, 2**32, 50)
    for value in (-1, 0, 1, 2**31, 2**62, 2**63 - 1, -(2**63), 0x7FF8 << 48):
        for word in range(one.size):
            altered = one.copy()
            altered[word] = value
            found = _host.sums_at_most(altered, count, words)
            assert found.min() >= -1 and found.max() <= count
