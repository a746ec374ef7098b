"""Any number of processes gives the same batches, losses, learning rates and evaluation, also after a resume."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import forked_python
import pytest

MODULES = ("spurmix.train.finetune", "accelerate")
SCRIPT = """
import json, os, sys
import numpy as np, torch
from torch import nn
from spurmix import GroupDRO, GroupIndex, MixLoader, evaluate, find_errors, finetune, policies

out, batches = sys.argv[1], int(sys.argv[2])
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
torch.set_num_threads(1)


class Killed(Exception):
    pass


class Model(nn.Sequential):
    left = batches

    def forward(self, x):
        if self.training:
            Model.left -= 1
            if Model.left < 0:
                raise Killed
        return super().forward(x)


rng = np.random.default_rng(0)
labels, attributes = rng.integers(0, 2, 240), rng.integers(0, 2, 240)
features = (rng.standard_normal((240, 6)) + labels[:, None]).astype(np.float32)
groups = GroupIndex(labels, attributes)
model = Model(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
loader = MixLoader(features, groups, policies.lisa(), 24, steps=11, seed=5, rank=rank, world_size=world)
try:
    done = finetune(model, loader, learning_rate=0.05, accumulate=2, output=out, save_every=4, resume=True)
except Killed:
    os._exit(0)  # like a killed process, without cleanup
distributed = torch.distributed.is_initialized()
found = evaluate(model, features, groups, batch_size=50, sharded=distributed)
errors = find_errors(model, features, groups, batch_size=50, sharded=distributed)
assert errors.sum() == 240 - sum(g.correct for g in found.groups)
drawn = [[batch.index.tolist(), batch.partner.tolist(), batch.lam.tolist()] for batch in loader]
objective = GroupDRO(groups, step=0.3, adjustment=1.0)
network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
dro = finetune(network, loader, objective=objective, learning_rate=0.05).losses + tuple(objective.weights.tolist())
report = dict(losses=done.losses, groups=[g.correct for g in found.groups], drawn=drawn, dro=dro, errors=errors.tolist())
with open(f"{out}/rank-{rank}.json", "w") as file:
    json.dump(report, file)
if distributed:
    torch.distributed.barrier()  # no process ends while another uses the group
    torch.distributed.destroy_process_group()
"""


def run(folder: Path, world: int, batches: int = 1000) -> None:
    for done in forked_python.run_ranks(world, SCRIPT, folder, batches, modules=MODULES):
        assert done.returncode == 0, done.stderr[-3000:]


def reports(folder: Path, world: int) -> dict[str, Any]:
    """Combine the reports of all ranks: the concatenated draws, and results that must be equal in all ranks."""
    ranks = [json.loads((folder / f"rank-{k}.json").read_text()) for k in range(world)]
    assert all(r["losses"] == ranks[0]["losses"] and r["groups"] == ranks[0]["groups"] for r in ranks)
    assert all(r["dro"] == ranks[0]["dro"] and r["errors"] == ranks[0]["errors"] for r in ranks)
    drawn = [[list(chain(*(r["drawn"][k][part] for r in ranks))) for part in range(3)] for k in range(11)]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(11))
    assert [m["loss"] for m in metrics] == pytest.approx(ranks[0]["losses"], abs=1e-5)
    return {**ranks[0], "drawn": drawn, "rates": [m["learning_rate"] for m in metrics]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, 1)
    return reports(folder, 1)


def same(found: dict[str, Any], alone: dict[str, Any]) -> None:
    assert found["drawn"] == alone["drawn"] and found["rates"] == alone["rates"] and found["groups"] == alone["groups"]
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert found["dro"] == pytest.approx(alone["dro"], abs=1e-5)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_results_do_not_depend_on_the_number_of_processes(world: int, alone: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "run", world)
    same(reports(tmp_path / "run", world), alone)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000008", "step-00000011"]


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_resume_with_another_number_of_processes(first: int, then: int, alone: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "run", first, batches=6)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    run(tmp_path / "run", then)
    same(reports(tmp_path / "run", then), alone)
