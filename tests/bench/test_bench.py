"""The benchmark runner: its gate, its files, its messages. Figures are not tested."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import bench.cases  # noqa: E402, F401
from bench import limits, measure, report  # noqa: E402
from bench.__main__ import main  # noqa: E402
from bench.context import Context  # noqa: E402
from bench.peers.client import Peers  # noqa: E402
from bench.registry import CASES, Case, Contender, selected  # noqa: E402


def row(case: str = "images_256", contender: str = "spurmix", kind: str = "ours", ratio: float = 1.0) -> measure.Row:
    return measure.Row(case, contender, kind, 2.0 * ratio, 1.0, 3.0, 10.0, ratio, "")


def test_a_contender_that_computes_something_else_gets_no_figure() -> None:
    right, near = torch.arange(4.0), torch.arange(4.0) + 1e-6
    case = Case(
        [
            Contender("ours", lambda: right, "ours"),
            Contender("near", lambda: near),
            Contender("wrong", lambda: right + 1),
            Contender("shape", lambda: right[:3]),
            Contender("nan", lambda: right * float("nan")),
            Contender("raises", lambda: torch.zeros(2) @ torch.zeros(3)),
        ],
        items=4,
        repeats=3,
        absent=["someone"],
    )
    rows = {r.contender: r for r in measure.measure("case", case, 1.0)}
    assert rows["ours"].ratio == 1 and rows["near"].median_ms is not None
    for name, note in (
        ("wrong", "gate"),
        ("shape", "gate: differs from ours by shape"),
        ("nan", "gate"),
        ("raises", "failed"),
    ):
        assert rows[name].median_ms is None and rows[name].note.startswith(note), rows[name]
    assert rows["someone"].note == "absent"


def test_cases_are_selected_by_pattern() -> None:
    assert {r.name for r in selected([], quick=True)} < set(CASES)
    assert [r.name for r in selected(["loss_256_*"], quick=False)] == ["loss_256_1000", "loss_256_2"]
    with pytest.raises(ValueError, match="matches no case"):
        list(selected(["nothing"], quick=True))
    assert all(r.description for r in CASES.values())


def test_peers_that_are_not_installed_are_named(tmp_path: Path) -> None:
    peers = Peers(1, python=tmp_path / "python")
    assert peers.versions() == {}
    case = CASES["images_32"].build(Context(1, True, peers, {}))
    assert {"torchvision v2.MixUp", "timm Mixup batch", "kornia RandomMixUpV2"} <= set(case.absent)
    peers.close()


@pytest.mark.parametrize("body", ["exit 3", "sleep 0.3"])
def test_a_broken_peer_environment_is_an_error_with_a_name(tmp_path: Path, body: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    peers = Peers(1, python=python)
    with pytest.raises(RuntimeError, match="peers' process ended"):
        peers.versions()
    peers.close()


def test_a_worker_that_hears_nothing_is_ended(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nread line\necho "{\\"versions\\": {}}"\nexec sleep 60\n')
    python.chmod(0o755)
    peers = Peers(1, python=python)
    assert peers.versions() == {}
    began = time.perf_counter()
    peers.close()
    assert time.perf_counter() - began < 20 and not peers.folder.exists()


def test_results_are_written_whole_and_drawn(tmp_path: Path) -> None:
    head = {"date": "2026-01-01", "device": "a", "isa": "b", "threads": 2, "torch": "c", "peers": {}}
    target = tmp_path / "missing" / "folder" / "cpu.json"
    report.save(head, [row(), row(contender="peer", kind="peer", ratio=8.0)], target)
    assert [r["contender"] for r in json.loads(target.read_text())["rows"]] == ["spurmix", "peer"]
    assert target.with_suffix(".csv").read_text().count("\n") == 3
    assert sorted(p.name for p in target.parent.iterdir()) == ["cpu.csv", "cpu.json"]
    assert report.plot(target.parent, tmp_path / "plot.png").stat().st_size > 5000
    with pytest.raises(FileNotFoundError, match="no results"):
        report.plot(tmp_path / "empty", tmp_path / "other.png")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.json"
    report.write(target, "old")
    monkeypatch.setattr(Path, "replace", lambda *a: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        report.write(target, "new")
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_run_that_is_killed_leaves_no_files_of_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of a file's calls is the last: what lies beside the JSON is of the same run, or not there."""
    target, calls = tmp_path / "cpu.json", 0
    head = {"date": "2026-01-01", "device": "a", "isa": "b", "threads": 2, "torch": "c", "peers": {}}
    real = {name: getattr(Path, name) for name in ("write_text", "replace", "unlink")}

    class Killed(BaseException):
        pass

    def until(last: int) -> None:
        def counted(name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > last:
                    raise Killed
                return real[name](*arguments, **options)

            return call

        for name in real:
            monkeypatch.setattr(Path, name, counted(name))

    seen = set()
    for last in range(12):
        monkeypatch.undo()
        report.save({**head, "date": "old"}, [row()], target)
        calls = 0
        until(last)
        try:
            report.save({**head, "date": "new"}, [row()], target)
        except Killed:
            pass
        monkeypatch.undo()
        table = target.with_suffix(".csv")
        beside = table.read_text().rstrip().rpartition(",")[2] if table.exists() else "none"
        seen.add((json.loads(target.read_text())["date"], beside))
    assert seen == {("old", "old"), ("old", "none"), ("new", "none"), ("new", "new")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threads", "0"), "--threads must be 1 or more, got 0"),
        (("--threads", "100000"), "this machine has"),
        (("--case", "nothing"), "matches no case"),
        (("--json", "results.csv"), "--json must name a file that ends in .json"),
        (("--json", "/proc/nowhere/x.json"), "results cannot be written to /proc/nowhere/x.json"),
    ],
)
def test_bad_arguments_give_one_message(arguments: tuple[str, ...], message: str, command: Any) -> None:
    done = command(*arguments, main=main)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(limits.library() is None, reason="the limit kernels need a compiler and AVX2")
def test_the_limit_touches_what_it_should() -> None:
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    index, partner = torch.tensor([0, 2]), torch.tensor([1, 1])
    for last in (False, True):
        layout = torch.channels_last if last else torch.contiguous_format
        memory = np.zeros(2 * 3 * 64 * 4 + 64, dtype=np.uint8)
        start = -memory.ctypes.data % 64
        flat = torch.from_numpy(memory[start : start + 2 * 3 * 64 * 4]).view(torch.float32)
        out = flat.view(2, 8, 8, 3).permute(0, 3, 1, 2) if last else flat.view(2, 3, 8, 8)
        assert out.is_contiguous(memory_format=layout)
        limits.image_limit(images, index, partner, out)
        written = flat.view(torch.uint8).view(2, -1, 32)
        seen = {tuple(v.tolist()) for v in written.reshape(-1, 32)}
        mixed = images[index] ^ images[partner]
        assert seen == {tuple(v.tolist()) for v in mixed.reshape(-1, 32)}
