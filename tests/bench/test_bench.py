"""The benchmark runner: correctness gate, result files, messages. Times are not tested."""

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
from bench.row import Row, table  # noqa: E402


def row(case: str = "images_256", contender: str = "spurmix", kind: str = "ours", ratio: float = 1.0) -> Row:
    return Row(case, contender, kind, 2.0 * ratio, 1.0 * ratio, 3.0 * ratio, 10.0, ratio)


def test_a_contender_with_another_result_is_not_timed() -> None:
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
    for name, error in (
        ("wrong", "gate"),
        ("shape", "gate: differs from ours by shape"),
        ("nan", "gate"),
        ("raises", "failed"),
    ):
        assert rows[name].median_ms is None and rows[name].error.startswith(error), rows[name]
    assert rows["someone"].error == "absent"


def test_cases_are_selected_by_pattern() -> None:
    assert {r.name for r in selected([], quick=True)} < set(CASES)
    assert [r.name for r in selected(["loss_256_*"], quick=False)] == ["loss_256_1000", "loss_256_2"]
    with pytest.raises(ValueError, match="matches no case"):
        list(selected(["nothing"], quick=True))
    assert all(r.description for r in CASES.values())


def test_absent_libraries_are_listed(tmp_path: Path) -> None:
    peers = Peers(1, python=tmp_path / "python")
    assert peers.versions() == {}
    case = CASES["images_32"].build(Context(1, True, peers, {}))
    assert {"torchvision v2.MixUp", "timm Mixup batch", "kornia RandomMixUpV2"} <= set(case.absent)
    peers.close()


@pytest.mark.parametrize("body", ["exit 3", "sleep 0.3"])
def test_a_broken_environment_of_the_peers_raises_an_error(tmp_path: Path, body: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    peers = Peers(1, python=python)
    with pytest.raises(RuntimeError, match=r"the process of \.venv-peers ended"):
        peers.versions()
    peers.close()


def test_close_kills_a_worker_that_does_not_answer(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nread line\necho "{\\"versions\\": {}}"\nexec sleep 60\n')
    python.chmod(0o755)
    peers = Peers(1, python=python)
    assert peers.versions() == {}
    began = time.perf_counter()
    peers.close()
    assert time.perf_counter() - began < 20 and not peers.folder.exists()


def test_results_are_written_and_drawn(tmp_path: Path) -> None:
    head = {"date": "2026-01-01", "device": "a", "isa": "b", "threads": 2, "torch": "c", "peers": {}}
    target = tmp_path / "missing" / "folder" / "cpu.json"
    report.save(head, [row(), row(contender="peer", kind="peer", ratio=8.0)], target, repeated=("device", "date"))
    assert [r["contender"] for r in json.loads(target.read_text())["rows"]] == ["spurmix", "peer"]
    columns = "case,contender,kind,median_ms,q1_ms,q3_ms,per_second,ratio,device,date"
    assert target.with_suffix(".csv").read_text().splitlines()[0] == columns
    assert target.with_suffix(".csv").read_text().count("\n") == 3
    assert sorted(p.name for p in target.parent.iterdir()) == ["cpu.csv", "cpu.json"]
    assert report.plot(target.parent, tmp_path / "plot.png").stat().st_size > 5000
    with pytest.raises(FileNotFoundError, match="no results"):
        report.plot(tmp_path / "empty", tmp_path / "other.png")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.json"
    report.write(target, "old")
    monkeypatch.setattr(Path, "replace", lambda *a: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        report.write(target, "new")
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_killed_run_leaves_no_files_of_different_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill at any file operation, the CSV file belongs to the same run as the JSON file or is missing."""
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
        report.save({**head, "date": "old"}, [row()], target, repeated=("date",))
        calls = 0
        until(last)
        try:
            report.save({**head, "date": "new"}, [row()], target, repeated=("date",))
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
        (("--threads", "0"), "--threads must be a positive integer, got 0"),
        (("--threads", "100000"), "the number of cores of this machine, got 100000"),
        (("--case", "nothing"), "matches no case"),
        (("--json", "results.csv"), "--json must be a file name that ends in .json, got 'results.csv'"),
        (("--json", "/proc/nowhere/x.json"), "cannot write results to /proc/nowhere/x.json"),
    ],
)
def test_bad_arguments_give_one_message(arguments: tuple[str, ...], message: str, command: Any) -> None:
    done = command(*arguments, main=main)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_rows_that_are_faster_than_the_limit_are_errors() -> None:
    limit = Row("case", "memory limit", "limit", 2.0, 1.9, 2.1)
    within_noise, slower, faster = (
        Row("case", "spurmix", "ours", median, median - 0.05, median + 0.05) for median in (1.95, 4.0, 1.2)
    )
    measure.add_shares([limit, within_noise, slower, faster])
    assert [r.share for r in (limit, slower)] == [1.0, 0.5] and within_noise.share == pytest.approx(2 / 1.95)
    assert not limit.error and not within_noise.error and not slower.error
    assert faster.error == "faster than the memory limit by a factor of 1.67; the limit needs a faster variant"
    baseline = [row(), row(kind="baseline", ratio=2.0)]
    measure.add_shares(baseline)
    assert [r.share for r in baseline] == [None, None]


def test_columns_without_values_are_left_out() -> None:
    assert table([Row("a", "b"), Row("c", "d", note="e")]) == [
        {"case": "a", "contender": "b", "note": ""},
        {"case": "c", "contender": "d", "note": "e"},
    ]


def aligned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that start at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)


@pytest.mark.skipif(limits.library() is None, reason="the limit kernels need a compiler and AVX2")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_every_variant_of_the_limit_writes_the_whole_output(dtype: torch.dtype, last: bool) -> None:
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    index, partner = torch.tensor([0, 2]), torch.tensor([1, 1])
    flat = aligned((2, 32, 32, 3), dtype)
    out = flat.permute(0, 3, 1, 2) if last else flat.view(2, 3, 32, 32)
    limit = limits.MemoryLimit(images, index, partner, out, planes=(1, 3))
    kinds = {(v.store, v.planes) for v in limit._variants}
    assert kinds == {(store, planes) for store in limits.STORES for planes in (1, 3)}
    mixed = (images[index] ^ images[partner]).view(2, -1).numpy()
    for variant in limit._variants:
        flat.zero_()
        limit.run_variant(variant)
        written = flat.view(torch.uint8).view(2, variant.planes, -1).numpy()
        for n in range(2):
            for start in range(0, mixed.shape[1], variant.block):
                block = mixed[n, start : start + variant.block].reshape(-1, 16)
                width = block.size * dtype.itemsize // variant.planes
                at = start * dtype.itemsize // variant.planes
                found = written[n, :, at : at + width]
                if variant.store == "rep stosb":
                    assert len(np.unique(found)) == 1, variant
                else:  # a vector of 32 or 64 bytes, repeated
                    folded = np.bitwise_xor.reduce(found.reshape(variant.planes, -1, 64)[0, 0].reshape(-1, 16))
                    vectors = found.reshape(-1, 64)
                    assert (vectors == vectors[0]).all(), variant
                    if limits.vector_bytes() == 64:
                        np.testing.assert_array_equal(folded, np.bitwise_xor.reduce(block), str(variant))


@pytest.mark.skipif(limits.library() is None, reason="the limit kernels need a compiler and AVX2")
def test_the_limit_keeps_the_fastest_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, out = aligned((4, 128), torch.float32), aligned((2, 128), torch.float32)
    index = torch.tensor([0, 3])
    limit = limits.MemoryLimit(rows, index, index, out)
    fast = limit._variants[3]
    monkeypatch.setattr(limit, "_seconds", lambda variant: 1.0 if variant == fast else 2.0)
    assert limit.fastest == fast and limit.seconds() == 1.0
