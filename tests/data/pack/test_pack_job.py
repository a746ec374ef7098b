"""`PackJob`: locks, kills, full disks and resuming."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked_python
import numpy as np
import pytest
from image_samples import birds, class_folder, encoded
from PIL import Image

from spurmix.data.dataset.format import DatasetError
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack import images, job
from spurmix.data.pack import writer as writer_module
from spurmix.data.pack.decode import ImageError
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.job import BrokenFiles, NoSpace, PackJob, run_in_threads
from spurmix.data.pack.layouts.waterbirds import from_waterbirds

CHILD = """
import sys
from spurmix.data.pack import images
from spurmix.data.pack.layouts.waterbirds import from_waterbirds
images.BLOCK_ROWS = 32
images.pack_images(from_waterbirds(sys.argv[1]), sys.argv[2], size=64, workers=2, broken="skip")
"""


def test_job_killed_at_random_times_resumes(tmp_path: Path) -> None:
    root, target = birds(tmp_path / "birds", 600), tmp_path / "packed"
    for n in (4, 5, 301):
        (root / f"{n % 3:03d}.Bird/Bird_{n:04d}.png").write_bytes(b"")
    pack_images(from_waterbirds(root), tmp_path / "expected", size=64, broken="skip")
    expected = PackedDataset(tmp_path / "expected")
    moments, kills = random.Random(4), 0
    while not target.exists():
        child = forked_python.start(CHILD, root, target)
        if kills < 20:
            time.sleep(moments.uniform(0.01, 0.3))
            kills += child.poll() is None
            child.kill()
        assert child.wait() in (0, -signal.SIGKILL)
        if target.exists():
            assert np.array_equal(PackedDataset(target).array, expected.array)
    data = PackedDataset(target)
    assert kills and np.array_equal(data.array, expected.array) and data.verify() == []
    assert not (tmp_path / "packed.packing").exists()


def test_two_processes_with_one_target(tmp_path: Path) -> None:
    rows = from_waterbirds(birds(tmp_path / "birds", 6))
    with PackJob(tmp_path / "t", "images", {}), pytest.raises(ValueError, match="another process is packing"):
        pack_images(rows, tmp_path / "t", size=4)
    pack_images(rows, tmp_path / "t", size=4)
    with pytest.raises(ValueError, match="already exists"):
        pack_images(rows, tmp_path / "t", size=4)
    with pytest.raises(ValueError, match="cannot write into"):
        pack_images(rows, "/dev/null/t", size=4)


def test_missing_disk_space_is_reported_first(tmp_path: Path) -> None:
    rows = from_waterbirds(birds(tmp_path / "birds", 60))
    with pytest.raises(OSError, match=r"packing requires .* GiB of disk space, but .* are free"):
        pack_images(rows, tmp_path / "t", size=32767)
    assert not (tmp_path / "t").exists()


class Killed(BaseException):
    """Simulates SIGKILL. No error handler catches it."""


def kill_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, after: bool = False) -> None:
    """Raise `Killed` at the given call of a function, before or after the call."""
    real, calls = getattr(owner, name), 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = real(*arguments, **options)
        if calls == call:
            raise Killed
        return result

    patch.setattr(owner, name, dying)


def decode_empty_only(data: bytes, *_: Any) -> Any:
    assert data == b"", "decoded again"
    raise ImageError("the file is empty")


POINTS: list[tuple[Any, str, range]] = [
    (os, "pwrite", range(1, 3)),
    (images, "array_header", range(1, 2)),
    (Path, "replace", range(1, 3)),
    (job, "write_metadata", range(1, 2)),
    (job, "write_description", range(1, 2)),
    (Path, "unlink", range(1, 6)),
    (Path, "rename", range(1, 2)),
]


@pytest.mark.parametrize(("owner", "name", "calls"), POINTS, ids=[name for _, name, _ in POINTS])
@pytest.mark.parametrize("after", [False, True])
def test_job_killed_while_finishing_resumes_without_decoding(
    owner: Any, name: str, calls: range, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = class_folder(tmp_path, unreadable=(1, 2, 7))
    kept = [n for n in range(12) if n not in (1, 2, 7)]
    killed = 0
    for call in calls:
        target = tmp_path / f"t{call}"
        with pytest.raises(BrokenFiles):
            pack_images(found, target, size=4)
        with monkeypatch.context() as patch:
            kill_at(patch, owner, name, call, after)
            try:
                pack_images(found, target, size=4, broken="skip")
            except Killed:
                killed += 1
        if not target.exists():
            with pytest.raises(DatasetError, match="packing is incomplete; run the same command again"):
                PackedDataset(f"{target}.packing")
            with monkeypatch.context() as patch:
                patch.setattr(images, "decode_image", decode_empty_only)
                report = pack_images(found, target, size=4, broken="skip")
            assert report.resumed == 9 and len(report.broken) == 3
        data = PackedDataset(target)
        assert data.array[:, 0, 0, 0].tolist() == kept and data.verify() == [] and data.provenance["broken"] == 3
        names = {"dataset.json", "images.npy", "metadata.parquet", "broken.jsonl"}
        assert {p.name for p in target.iterdir()} == names and not Path(f"{target}.packing").exists()
    assert killed


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    found = class_folder(tmp_path, unreadable=(11,))
    with pytest.raises(BrokenFiles):
        pack_images(found, tmp_path / "t", size=4)
    (tmp_path / "images/cat/03.png").write_bytes(encoded(Image.new("RGB", (6, 6), (99, 99, 99))))
    (tmp_path / "images/cat/11.png").write_bytes(encoded(Image.new("RGB", (6, 6), (11, 11, 11))))
    report = pack_images(found, tmp_path / "t", size=4)
    assert report.notes == ("1 file changed since the interrupted job and will be read again",) and report.resumed == 10
    assert PackedDataset(report.path).array[:, 0, 0, 0].tolist() == [0, 1, 2, 99, *range(4, 12)]


def test_job_with_other_settings_starts_over(tmp_path: Path) -> None:
    found = class_folder(tmp_path, unreadable=(1,))
    with pytest.raises(BrokenFiles):
        pack_images(found, tmp_path / "t", size=4)
    report = pack_images(found, tmp_path / "t", size=5, broken="skip")
    assert (
        "t.packing contains an interrupted job with another shape; packing starts over" in str(report)
        and report.resumed == 0
    )


def test_job_of_another_version_starts_over(tmp_path: Path) -> None:
    found = class_folder(tmp_path, unreadable=(1,))
    with pytest.raises(BrokenFiles):
        pack_images(found, tmp_path / "t", size=4)
    plan = tmp_path / "t.packing/plan.json"
    old = json.loads(plan.read_text())
    del old["version"]
    plan.write_text(json.dumps(old))
    report = pack_images(found, tmp_path / "t", size=4, broken="skip")
    assert "t.packing contains an interrupted job of another spurmix version; packing starts over" in str(report)
    assert report.resumed == 0


def test_dropping_rows_needs_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = class_folder(tmp_path, unreadable=(1,))
    with pytest.raises(BrokenFiles):
        pack_images(found, tmp_path / "t", size=4)
    with monkeypatch.context() as patch:
        patch.setattr(job.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))  # type: ignore[attr-defined]
        with pytest.raises(NoSpace, match=r"dropping 1 unreadable image \(a second copy of the array\) requires"):
            pack_images(found, tmp_path / "t", size=4, broken="skip")
    assert pack_images(found, tmp_path / "t", size=4, broken="skip").resumed == 11


@pytest.mark.parametrize("where", ["images.npy", "metadata", "write_description"])
def test_full_disk(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = class_folder(tmp_path)
    (tmp_path / "images/cat/03.png").write_bytes(b"")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        if where == "images.npy":
            patch.setattr(writer_module.os, "pwrite", fail)
        else:
            patch.setattr(job, "write_metadata" if where == "metadata" else "write_description", fail)
        with pytest.raises(
            NoSpace, match=r"no space left for .*run the same command again to resume; completed work is kept"
        ):
            pack_images(found, tmp_path / "t", size=4, broken="skip")
    assert not (tmp_path / "t").exists()
    with pytest.raises(DatasetError):
        PackedDataset(tmp_path / "t.packing")
    report = pack_images(found, tmp_path / "t", size=4, broken="skip")
    data = PackedDataset(report.path)
    assert data.array[:, 0, 0, 0].tolist() == [0, 1, 2, *range(4, 12)] and data.verify() == []
    assert report.resumed == (0 if where == "images.npy" else 11)
    names = {"dataset.json", "images.npy", "metadata.parquet", "broken.jsonl"}
    assert {p.name for p in report.path.iterdir()} == names


def test_another_process_finishes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes between the check of the target and the lock."""
    found, lock = class_folder(tmp_path), job._lock

    def late(file: Any, place: Path) -> None:
        (tmp_path / "t").mkdir()
        lock(file, place)

    monkeypatch.setattr(job, "_lock", late)
    with pytest.raises(ValueError, match="already exists"):
        pack_images(found, tmp_path / "t", size=4)
    assert not any((tmp_path / "t").iterdir())


def test_run_in_threads() -> None:
    """Each block is done once, by all workers. No block is started after an error, and the first error is raised."""
    seen: list[int] = []
    assert len(list(run_in_threads(seen.append, iter(range(100)), 3))) == 100 and sorted(seen) == list(range(100))
    assert list(run_in_threads(seen.append, iter(()), 2)) == []
    both = threading.Barrier(2, timeout=10)

    def meet(_: int) -> None:
        both.wait()

    assert len(list(run_in_threads(meet, range(4), 2))) == 4
    taken: list[int] = []

    def third(k: int) -> None:
        taken.append(k)
        if k == 3:
            raise KeyError("third")

    with pytest.raises(KeyError, match="third"):
        list(run_in_threads(third, itertools.count(), 2))
    assert sorted(taken) == list(range(len(taken)))

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(run_in_threads(seen.append, broken(), 3))
    started = run_in_threads(seen.append, itertools.count(1000), 2)
    next(started)
    started.close()  # as when a progress bar is interrupted
    count = len(seen)
    time.sleep(0.02)
    assert len(seen) == count
