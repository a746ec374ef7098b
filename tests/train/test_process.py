"""Training beside other code that uses Accelerate in the same process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spurmix import GroupIndex, MixLoader, finetune, policies

RNG = np.random.default_rng(8)
LABELS = RNG.integers(0, 2, 120)
FEATURES = (RNG.standard_normal((120, 6)) + 2 * LABELS[:, None]).astype(np.float32)
GROUPS = GroupIndex(LABELS, RNG.integers(0, 2, 120))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def loader() -> MixLoader:
    return MixLoader(FEATURES, GROUPS, policies.lisa(), 24, steps=6, seed=2)


@pytest.fixture
def accelerate_states() -> Iterator[list[dict[str, Any]]]:
    """The contents of Accelerate's process, precision and gradient states, empty during the test."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState, is_initialized

    initialized = is_initialized()
    precision = AcceleratorState() if initialized else Accelerator(cpu=True).state
    states = [vars(state) for state in (PartialState(), precision, GradientState())]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    yield states
    for state, contents in zip(states, before, strict=True):
        state.clear()
        state.update(contents)
    if not initialized:
        states[1].clear()


def test_accelerators_of_the_caller_have_no_effect_and_do_not_change(
    accelerate_states: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator
    from accelerate.state import is_initialized

    expected = finetune(network(), loader(), accumulate=2).losses
    assert not is_initialized()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    theirs = Accelerator(mixed_precision="bf16", cpu=True)
    theirs.gradient_state.sync_gradients = False  # in the middle of an accumulation
    before = [dict(state) for state in accelerate_states]
    assert finetune(network(), loader(), accumulate=2).losses == expected
    assert [dict(state) for state in accelerate_states] == before
    assert theirs.mixed_precision == "bf16" and theirs.gradient_accumulation_steps == 4
    with pytest.raises(ValueError, match="the loss is nan"):
        broken = network()
        nn.init.constant_(broken[2].weight, torch.nan)  # type: ignore[index]
        finetune(broken, loader())
    assert [dict(state) for state in accelerate_states] == before


def test_accelerate_state_of_another_device(
    accelerate_states: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    Accelerator(cpu=True)
    for state in accelerate_states[:2]:
        state["device"] = torch.device("meta")
    model = network()
    finetune(model, loader())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert accelerate_states[0]["device"].type == "meta"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="batches are on cpu, but the process group was initialized for meta"):
        finetune(model, loader())
