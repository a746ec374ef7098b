"""Files written by version 0.1.0 (`fixtures/v0.1.0`) give the same data, draws and training results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from spurmix import Beta, GroupIndex, MixLoader, PackedDataset, finetune, policies
from spurmix.cli.app import app

FIXTURES = Path(__file__).parent / "fixtures" / "v0.1.0"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """The expected weights were computed with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hexadecimal(values: torch.Tensor) -> list[str]:
    return [float(x).hex() for x in values.flatten()]


@pytest.mark.parametrize("kind", ["images", "tokens", "features"])
def test_packed_datasets_give_the_same_batches(kind: str) -> None:
    expected = EXPECTED[kind]
    dataset = PackedDataset(FIXTURES / kind)
    assert dataset.verify() == []
    split = dataset.split("train")
    batch = next(
        iter(MixLoader(split.source(), split.groups(), policies.balance_attributes(Beta(0.4, 0.4)), 4, seed=7))
    )
    assert batch.index.tolist() == expected["index"]
    assert batch.partner.tolist() == expected["partner"]
    assert hexadecimal(batch.lam) == expected["lam"]
    if kind == "tokens":
        assert [values.tolist() for values in batch.input.tensors()] == expected["ids"]
    else:
        # Instruction sets and backends may round differently.
        torch.testing.assert_close(batch.input, torch.from_numpy(np.load(FIXTURES / f"{kind}_input.npy")))


def test_checkpoint_resumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, 120)
    features = (rng.standard_normal((120, 6)) + 2 * labels[:, None]).astype(np.float32)
    groups = GroupIndex(labels, rng.integers(0, 2, 120))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    loader = MixLoader(features, groups, policies.lisa(), 24, steps=8, seed=2)
    output = shutil.copytree(FIXTURES / "finetune", tmp_path / "finetune")
    result = finetune(model, loader, output=output, resume=True)
    losses = [float.fromhex(value) for value in EXPECTED["finetune"]["losses"]]
    # Other processors may round sums in another order.
    np.testing.assert_allclose([float(loss) for loss in result.losses], losses, rtol=1e-5)
    for name, values in model.state_dict().items():
        expected = [float.fromhex(value) for value in EXPECTED["finetune"]["weights"][name]]
        np.testing.assert_allclose(values.flatten().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_finished_run_is_evaluated(tmp_path: Path) -> None:
    run = shutil.copytree(FIXTURES / "run", tmp_path / "run")
    weights = load_file(run / "model.safetensors")
    assert {name: hexadecimal(values) for name, values in weights.items()} == EXPECTED["run"]
    command = ["evaluate", str(run), "--dataset", str(FIXTURES / "features"), "--split", "test"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "51.72%" in done.output and "70.37%" in done.output
