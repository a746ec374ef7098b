"""The choice of a tier."""

from __future__ import annotations

import re

import pytest

from spurmix.data.sources.tiers import Sizes, choose_tier

GIB = 1 << 30


@pytest.mark.parametrize(
    ("sizes", "kind", "name", "why"),
    [
        (Sizes(GIB, 2 * GIB), "images", "cache", r"^memory-mapped; .*, 1.00 GiB$"),
        (Sizes(GIB, GIB), "images", "cache", "^memory-mapped"),
        (Sizes(GIB, GIB - 1), "images", "disk", "^the data take 1.00 GiB, 1.00 GiB of memory are available; read"),
        (Sizes(GIB, 9 * GIB, 2 * GIB, GIB), "images", "device", "^in GPU memory"),
        (Sizes(GIB, 9 * GIB, 2 * GIB, GIB + 1), "images", "pinned", "2.00 GiB free, 1.00 GiB of it reserved for the model; in"),
        (Sizes(2 * GIB, 3 * GIB, GIB), "images", "cache", "at most half of the 3.00 GiB .* can be pinned; memory-mapped"),
        (Sizes(2 * GIB, GIB, GIB), "images", "disk", "free; .*pinned; .*are available; read"),
        (Sizes(GIB, 9 * GIB, GIB // 2), "features", "cache", "free; memory-mapped"),
        (Sizes(GIB, 5, GIB // 2), "features", "cache", "memory-mapped, because features cannot be read by windows"),
        (Sizes(GIB, 9 * GIB, 9 * GIB), "tokens", "cache", "^memory-mapped"),
    ],
)  # fmt: skip
def test_the_fastest_tier_that_fits_is_chosen(sizes: Sizes, kind: str, name: str, why: str) -> None:
    tier = choose_tier(sizes, "auto", kind)
    assert tier.name == name
    assert re.search(why, tier.why), tier.why


def test_unavailable_tiers_are_rejected() -> None:
    for requested, sizes, kind, error, message in (
        ("ram", Sizes(1, 9), "images", ValueError, "tier must be auto, device, pinned, cache, disk, got 'ram'"),
        ("device", Sizes(1, 9), "images", ValueError, "requires a GPU; pass its name"),
        ("pinned", Sizes(1, 9, 9), "features", ValueError, "tier must be device or cache for a dataset of features, got 'pinned'"),
        ("disk", Sizes(1, 9), "tokens", ValueError, "tier must be cache for a dataset of tokens"),
        ("device", Sizes(GIB, GIB, GIB, 1), "images", MemoryError, "the GPU has 1.00 GiB free"),
        ("pinned", Sizes(GIB, GIB, GIB), "images", MemoryError, "at most half of the 1.00 GiB"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            choose_tier(sizes, requested, kind)
    assert choose_tier(Sizes(GIB, 5), "cache").why.startswith("requested; the data take 1.00 GiB")
