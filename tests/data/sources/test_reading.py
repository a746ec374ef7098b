"""Where a packed dataset is read from, and reading by windows: what fits, rooms of memory, files that fail, forks."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spurmix import FeatureSource, GroupIndex, ImageSource, MixLoader, evaluate, policies
from spurmix.core import memory
from spurmix.data.dataset import format as store
from spurmix.data.dataset.format import Metadata
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.sources import arrays as sources
from spurmix.data.sources import placement as tiers
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops.augment import Augment

GIB = 1 << 30


def make(folder: Path, array: np.ndarray[Any, Any], kind: str = "images") -> PackedDataset:
    """A dataset of an array, two thirds of it training, without attributes."""
    folder.mkdir()
    np.save(folder / store.ARRAY_FILES[kind][0], array)
    count = len(array)
    metadata = Metadata(
        np.arange(count) % 2, ["train"] * (2 * count // 3) + ["test"] * (count - 2 * count // 3),
        [str(n) for n in range(count)], {}, ("a", "b"), {},
    )  # fmt: skip
    store.write_metadata(folder, metadata)
    store.write_description(folder, kind, metadata, {})
    return PackedDataset(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Images of 104 x 107 pixels: large enough to be read past the page cache, at odd offsets."""
    pixels = np.random.default_rng(2).integers(0, 256, (60, 104, 107, 3), dtype=np.uint8)
    return make(tmp_path_factory.mktemp("large") / "t", pixels)


def loader(source: Any, count: int = 60, size: int = 8, steps: int = 9, **options: Any) -> MixLoader:
    groups = GroupIndex(np.arange(count) % 2, np.arange(count) // 2 % 2)
    return MixLoader(source, groups, policies.lisa(), size, seed=3, steps=steps, **options)


def forget(path: Path) -> None:
    """Drop a file from the page cache, as far as nobody maps it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize(
    ("sizes", "kind", "name", "why"),
    [
        (tiers.Sizes(GIB, 2 * GIB), "images", "cache", r"^mapped: .*, 1.00 GiB$"),
        (tiers.Sizes(GIB, GIB), "images", "cache", "^mapped"),
        (tiers.Sizes(GIB, GIB - 1), "images", "disk", "^the data take 1.00 GiB, 1.00 GiB of memory may be used; read"),
        (tiers.Sizes(GIB, 9 * GIB, 2 * GIB, GIB), "images", "device", "^on the GPU"),
        (tiers.Sizes(GIB, 9 * GIB, 2 * GIB, GIB + 1), "images", "pinned", "2.00 GiB free, 1.00 GiB of that kept for the model; in"),
        (tiers.Sizes(2 * GIB, 3 * GIB, GIB), "images", "cache", "at most half of the 3.00 GiB .* can be pinned; mapped"),
        (tiers.Sizes(2 * GIB, GIB, GIB), "images", "disk", "free; .*pinned; .*may be used; read"),
        (tiers.Sizes(GIB, 9 * GIB, GIB // 2), "features", "cache", "free; mapped"),
        (tiers.Sizes(GIB, 5, GIB // 2), "features", "cache", "memory-mapped, because features cannot be read by windows"),
        (tiers.Sizes(GIB, 9 * GIB, 9 * GIB), "tokens", "cache", "^mapped"),
    ],
)  # fmt: skip
def test_the_fastest_tier_that_fits_is_taken(sizes: tiers.Sizes, kind: str, name: str, why: str) -> None:
    tier = tiers.choose(sizes, "auto", kind)
    assert tier.name == name
    assert re.search(why, tier.why), tier.why


def test_tiers_that_cannot_be_had_say_why() -> None:
    for wanted, sizes, kind, error, message in (
        ("ram", tiers.Sizes(1, 9), "images", ValueError, "tier must be auto, device, pinned, cache, disk, got 'ram'"),
        ("device", tiers.Sizes(1, 9), "images", ValueError, "is for a GPU; name it"),
        ("pinned", tiers.Sizes(1, 9, 9), "features", ValueError, "features can be read from device or cache, got 'pinned'"),
        ("disk", tiers.Sizes(1, 9), "tokens", ValueError, "tokens can be read from cache"),
        ("device", tiers.Sizes(GIB, GIB, GIB, 1), "images", MemoryError, "the GPU has 1.00 GiB free"),
        ("pinned", tiers.Sizes(GIB, GIB, GIB), "images", MemoryError, "at most half of the 1.00 GiB"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            tiers.choose(sizes, wanted, kind)
    assert tiers.choose(tiers.Sizes(GIB, 5), "cache").why.startswith("asked for; the data take 1.00 GiB")


def test_a_dataset_is_read_from_where_it_fits(large: PackedDataset, tmp_path: Path) -> None:
    train = large.split("train")
    assert train.nbytes == 40 * 104 * 107 * 3 and large.nbytes == 60 * 104 * 107 * 3
    mapped, read = train.source(tier="auto"), train.source(tier="auto", memory=train.nbytes - 1)
    assert type(mapped) is ImageSource and mapped.tier is not None and mapped.tier.name == "cache"
    assert isinstance(read, WindowedImages) and read.tier is not None and read.tier.name == "disk"
    assert "tier" not in repr(train.source()) and "; cache: mapped" in repr(mapped)
    assert "1 MiB at a time; disk: the data take" in repr(read)
    assert type(large.source(tier="auto", memory=large.nbytes)) is ImageSource
    assert type(large.source()) is ImageSource and large.source().tier is None
    assert isinstance(large.source(3), WindowedImages) and isinstance(large.source(tier="disk"), WindowedImages)
    for a, b in zip(loader(mapped, 40, 4), loader(read, 40, 4), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
    features = make(tmp_path / "f", np.ones((6, 3), np.float32), "features")
    assert isinstance(features.source(tier="auto", memory=0), FeatureSource)
    assert "; cache: the data take" in repr(features.source(tier="auto", memory=0))
    for arguments, message in (
        (dict(memory=-1), "memory must be 0 or more bytes, got -1"), (dict(window=2, tier="cache"), 'window is for tier "disk"'),
        (dict(device="cuda"), "CUDA is not available here"), (dict(tier="device"), "is for a GPU"),
        (dict(tier="auto", reserve=-2), "reserve must be 0 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            large.source(**arguments)  # type: ignore[arg-type]


def test_a_gpu_has_the_data_where_there_is_room(large: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one: CUDA's answers are given by the test, and moving is noted."""
    free = [4 * large.nbytes]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sources, "free_on", lambda device: (free[0], 9 * GIB))
    monkeypatch.setattr(ImageSource, "to", lambda self, device: ImageSource(self.images.clone()))
    monkeypatch.setattr(ImageSource, "pinned", lambda self: ImageSource(self.images.clone()))

    def tier(**options: Any) -> str:
        found = large.source(device="cuda", **options).tier
        assert found is not None
        return found.name

    assert tier(tier="auto") == "device"
    free[0] = 2 * large.nbytes - 2  # half of it is left to the model
    assert (
        tier(tier="auto") == "pinned" and tier(tier="device") == "device" and tier(tier="auto", reserve=0) == "device"
    )
    assert tier(tier="auto", memory=large.nbytes) == "cache" and tier(tier="auto", memory=large.nbytes - 1) == "disk"
    with pytest.raises(MemoryError, match="kept for the model"):
        tier(tier="device", reserve=2 * large.nbytes)


def test_memory_is_what_system_groups_and_limits_leave(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    write("proc/self/cgroup", "4:cpu,memory:/a/b\n0::/user/job\n")
    assert memory.available(tmp_path) == 5000 << 10
    group = "sys/fs/cgroup/user"
    write(f"{group}/memory.max", "3000000")
    write(f"{group}/memory.current", "1500000")
    write(f"{group}/memory.stat", "active_file 100000\ninactive_file 200000\nanon 7\n")
    assert memory.available(tmp_path) == 1_800_000
    write(f"{group}/job/memory.max", "max")
    write(f"{group}/job/memory.current", "1")
    write(f"{group}/job/memory.stat", "")
    assert memory.available(tmp_path) == 1_800_000
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "990000")
    write("sys/fs/cgroup/memory/memory.stat", "active_file 999\ntotal_active_file 5\ntotal_inactive_file 6\n")
    assert memory.available(tmp_path) == 10_011
    write("proc/meminfo", "?")
    write("proc/self/cgroup", "")
    assert memory.available(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available() < 1 << 50


LIMITED = """
import resource, sys
import spurmix, torch
from spurmix.data.dataset.packed import PackedDataset
data = PackedDataset(sys.argv[1])
data.split("test").source(tier="auto")  # what is imported once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + data.nbytes * 3 // 4,) * 2)
print(data.source(tier="auto").tier.name, data.split("test").source(tier="auto").tier.name)
"""


def test_a_process_that_may_use_less_reads_from_disk(tmp_path: Path, scarce: Any) -> None:
    data = make(tmp_path / "t", np.zeros((90, 512, 512, 3), np.uint8))
    done = scarce(LIMITED, data.path)
    assert done.stdout.split() == ["disk", "cache"], done.stderr[-2000:]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("options", [{}, dict(augment=Augment(size=50))], ids=["", "crops"])
def test_large_images_read_past_the_page_cache(cached: bool, options: Any, large: PackedDataset) -> None:
    """Each world size, window size and way to say it; a split, whose rows begin at an odd byte."""
    test = large.split("test")
    expected = [b.clone() for b in loader(ImageSource(test.array.copy()), 20, 12, **options)]
    for world, choice in ((1, dict(window=1)), (2, dict(window=4)), (3, dict(window=99)), (1, dict(memory=2 << 20))):
        read = WindowedImages(test.path / "images.npy", 40, 20, **choice)  # type: ignore[arg-type]
        for rank in range(world):
            if not cached:
                forget(test.path / "images.npy")
            part = slice(rank * 12 // world, (rank + 1) * 12 // world)
            for a, b in zip(loader(read, 20, 12, rank=rank, world_size=world, **options), expected, strict=True):
                assert all(torch.equal(x, y[part]) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_reading_any_rows_any_way(large: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read, pixels = large.source(2), torch.from_numpy(large.array.copy())
    assert isinstance(read, WindowedImages)
    for rows in ([0], [59], [3, 4, 5, 17, 18, 59], list(range(60))):
        chosen = np.array(rows)
        for direct in (True, False):
            monkeypatch.setattr(read, "_direct", direct)
            forget(large.path / "images.npy")
            images, places = read.read(chosen)
            assert torch.equal(images[places], pixels[chosen])
    assert read.gather(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 104, 107)
    assert torch.equal(read.raw(torch.tensor([7, 3, 7])), pixels[[7, 3, 7]])
    from spurmix import _host

    out = memory.pages(1 << 20)
    with (large.path / "images.npy").open("rb") as file:
        n = file.fileno()
        for rows, target, error, message in (
            ([2, 1], out, ValueError, "rows must ascend"), ([1, 1], out, ValueError, "rows must ascend"),
            ([-1], out, IndexError, "row -1 is out of range"), ([1 << 60], out, IndexError, "no file is that large"),
            ([1], out[:99], ValueError, "shorter than a row"), (list(range(40)), out, ValueError, "bytes, .* are read"),
            ([60], out, OSError, "Input/output error"),
        ):  # fmt: skip
            with pytest.raises(error, match=message):
                _host.read_rows(n, -1, 128, 104 * 107 * 3, np.array(rows), target, 4)
        with pytest.raises(ValueError, match="begin on a page"):
            _host.read_rows(n, n, 128, 104 * 107 * 3, np.array([1]), out[8:], 4)
        # A descriptor that refuses direct reads: the plain one serves.
        places = _host.read_rows(n, 9999, 128, 104 * 107 * 3, np.array([5]), out, 4)
        assert np.array_equal(out[places[0] :][: 104 * 107 * 3], pixels[5].numpy().ravel())
        with pytest.raises(OSError, match="Bad file descriptor"):
            _host.read_rows(9999, -1, 128, 104 * 107 * 3, np.array([5]), out, 4)


def test_memory_that_holds_no_window_is_an_error(large: PackedDataset) -> None:
    source = WindowedImages(large.path / "images.npy", 0, 60, memory=100_000)
    with pytest.raises(ValueError, match=r"memory: batches of 8 images are read into .* bytes, 100,000 may be used"):
        next(iter(loader(source)))
    with pytest.raises(store.DatasetError, match="are not images"):
        WindowedImages(large.path / "images.npy", 40, 21)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_file_that_ends_while_it_is_read(prefetch: int, tmp_path: Path) -> None:
    """Batches that were read are handed out; the one that cannot be made raises, and again; once mended, all is well."""
    data = make(tmp_path / "t", np.random.default_rng(1).integers(0, 256, (60, 104, 107, 3), dtype=np.uint8))
    path = data.path / "images.npy"
    whole = path.read_bytes()
    read = loader(data.source(2), steps=40, prefetch=prefetch)
    seen = 0
    batches = iter(read)
    with pytest.raises(OSError, match=r"ends before row \d+"):
        for _ in batches:
            seen += 1
            if seen == 3:
                os.truncate(path, len(whole) // 3)
    assert 3 <= seen < 40 and read.step == seen
    with pytest.raises(OSError, match=r"ends before row \d+"):
        next(iter(read))
    path.write_bytes(whole)
    assert torch.equal(next(iter(read)).input, read.batch(seen).input)


def test_errors_of_the_disk_are_those_of_the_batch(large: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    source = large.source(2)
    good = source.read  # type: ignore[union-attr]
    calls: list[int] = []

    def read(rows: Any, memory: Any = None) -> Any:
        calls.append(rows.size)
        if len(calls) == 3:
            raise OSError(5, "Input/output error", "images.npy")
        return good(rows, memory)

    monkeypatch.setattr(source, "read", read)
    run = loader(source, steps=12)
    with pytest.raises(OSError, match=r"images\.npy"):
        list(run)
    assert run.step == 4 and len(list(run)) == 8  # it goes on where it broke off


def test_a_loader_left_in_the_middle_leaves_no_thread(large: PackedDataset) -> None:
    gc.collect()  # what errors in other tests keep
    before = set(threading.enumerate())
    read, mapped = loader(large.source(2), steps=30), loader(large.source(), steps=30)
    for _ in range(3):
        batches = iter(read)
        next(batches)
        read.set_step(7)  # forwards, with a window under way, and back
        assert torch.equal(next(iter(read)).input, mapped.batch(7).input)
        read.set_step(1)
        assert torch.equal(next(iter(read)).input, mapped.batch(1).input)
        for step in (29, 0, 13, 12):
            assert torch.equal(read.batch(step).input, mapped.batch(step).input)
        read.set_step(0)
    del read, batches
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:This process")
def test_a_fork_reads_windows_of_its_own(large: PackedDataset) -> None:
    """The child has neither the reading thread nor what that was doing."""
    torch.set_num_threads(1)
    try:
        read = loader(large.source(2), steps=12)
        expected = [loader(large.source(), steps=12).batch(k).input for k in range(12)]
        read.batch(0)  # its second window is under way now
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            same = [torch.equal(read.batch(k).input, expected[k]) for k in (2, 3, 4, 11)]
            same += [torch.equal(b.input, e) for b, e in zip(read, expected, strict=True)]
            os._exit(0 if all(same) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert torch.equal(read.batch(2).input, expected[2])
    finally:
        torch.set_num_threads(2)


def test_evaluation_reads_ahead_in_bounded_memory(large: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 2))
    read, alive = large.source(2), []
    results = [evaluate(model, s, large.groups(), batch_size=7) for s in (large.source(), read)]
    assert results[0].average == results[1].average
    gather = WindowedImages.gather

    def counting(self: Any, index: Any) -> Any:
        gc.collect()
        alive[:] = [r for r in alive if r() is not None]
        made = gather(self, index)
        alive.append(weakref.ref(made))
        assert len(alive) <= 3
        return made

    monkeypatch.setattr(WindowedImages, "gather", counting)
    evaluate(model, read, large.groups(), batch_size=7)
    monkeypatch.setattr(WindowedImages, "gather", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, read, large.groups(), batch_size=7)


def test_memory_stays_while_batches_are_made() -> None:
    """Every kind in one process; the long run is a slow test."""
    assert max(growth(["map", "window", "direct", "tokens"], 1000)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "window", "direct", "tokens"])
def test_memory_stays_over_a_hundred_thousand_batches(kind: str) -> None:
    assert max(growth([kind], 100_000)) < 0.01


def growth(kinds: list[str], steps: int) -> list[float]:
    """By how much a process grew from a tenth of each loader's run on."""
    command = [sys.executable, "-m", "bench.soak", *kinds, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(json.loads(line)[1]) for line in done.stdout.splitlines()]
