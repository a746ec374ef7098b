"""Saved states of MixLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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


def test_a_state_of_another_sequence_is_rejected() -> None:
    state = loader().state_dict()
    for other, word in (
        (loader(seed=5), "seed"),
        (loader(batch=48), "batch_size"),
        (loader(policy=policies.lisa()), "policy"),
    ):
        with pytest.raises(ValueError, match=f"different: {word} "):
            other.load_state_dict(state)
    other_groups = MixLoader(IMAGES, GroupIndex(LABELS), policies.mixup(), 24, steps=6, seed=4)
    with pytest.raises(ValueError, match="different: groups "):
        other_groups.load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict"):
        loader().load_state_dict({"step": 3})
