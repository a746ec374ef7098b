"""Training beside other code that uses Accelerate in the same process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import forked_python
import numpy as np
import pytest
import torch
from torch import nn

from spurmix import GroupIndex, MixLoader, finetune, policies
from spurmix.train.process import LostProcessError, lost_process_named

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


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711",
        "Connection reset by peer",
        "[1] is setting up NCCL communicator: Broken pipe",
    ],
)
def test_errors_after_a_lost_process_are_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=text[-9:]), lost_process_named():
        raise RuntimeError(text)  # one process alone has lost none
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    with (
        pytest.raises(LostProcessError, match=r"process 3 lost the connection .*resume") as caught,
        lost_process_named(),
    ):
        raise RuntimeError(text)
    assert "gloo" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shape"), lost_process_named():
        raise RuntimeError("shape mismatch")


@pytest.mark.slow
def test_ranks_name_a_lost_process() -> None:
    script = (
        "import os, torch\n"
        "torch.distributed.init_process_group('gloo')\n"
        "torch.distributed.barrier()\n"
        "if os.environ['RANK'] == '1': os._exit(3)\n"
        "from spurmix.train.evaluate import reduce\n"
        "for _ in range(100): reduce(torch.ones(3), torch.distributed.ReduceOp.SUM)\n"
    )
    done = forked_python.run_ranks(2, script)
    assert "LostProcessError: process 0 lost the connection to another process" in done[0].stderr
