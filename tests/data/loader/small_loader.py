"""90 examples and a MixLoader of them, for tests of the loader."""

from __future__ import annotations

from typing import Any

import numpy as np

from spurmix import GroupIndex, MixLoader, policies

RNG = np.random.default_rng(3)
LABELS, ATTRIBUTES = RNG.integers(0, 3, 90), RNG.integers(-1, 2, 90)
IMAGES = RNG.integers(0, 256, (90, 8, 7, 3), dtype=np.uint8)
FEATURES = RNG.standard_normal((90, 5)).astype(np.float32)
GROUPS = GroupIndex(LABELS, ATTRIBUTES)


def loader(source: Any = IMAGES, **options: Any) -> MixLoader:
    arguments: dict[str, Any] = dict(steps=6, seed=4)
    return MixLoader(
        source, GROUPS, options.pop("policy", policies.mixup()), options.pop("batch", 24), **arguments | options
    )
