"""Saved states of MixLoader."""

from __future__ import annotations

import pytest
from small_loader import IMAGES, LABELS, loader

from spurmix import GroupIndex, MixLoader, policies


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
