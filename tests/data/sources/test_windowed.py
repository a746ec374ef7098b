"""WindowedImages: direct reads, limits of memory, files that fail, and forks."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_samples import loader, write_dataset

from spurmix import ImageSource, PackedDataset, evaluate
from spurmix.core import memory
from spurmix.data.dataset.format import DatasetError
from spurmix.data.sources.windowed import WindowedImages
from spurmix.ops.augment import Augment


def drop_from_page_cache(path: Path) -> None:
    """Drop a file from the page cache, except for pages that are mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("options", [{}, dict(augment=Augment(size=50))], ids=["", "crops"])
def test_batches_equal_those_of_images_in_memory(cached: bool, options: Any, large: PackedDataset) -> None:
    """For several world sizes and window sizes, on a split that begins at an odd byte."""
    test = large.split("test")
    expected = [b.clone() for b in loader(ImageSource(test.array.copy()), 20, 12, **options)]
    for world, choice in ((1, dict(window=1)), (2, dict(window=4)), (3, dict(window=99)), (1, dict(memory=2 << 20))):
        read = WindowedImages(test.path / "images.npy", 40, 20, **choice)  # type: ignore[arg-type]
        for rank in range(world):
            if not cached:
                drop_from_page_cache(test.path / "images.npy")
            part = slice(rank * 12 // world, (rank + 1) * 12 // world)
            for a, b in zip(loader(read, 20, 12, rank=rank, world_size=world, **options), expected, strict=True):
                assert all(torch.equal(x, y[part]) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_rows_are_read_directly_and_through_the_page_cache(
    large: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, pixels = large.source(2), torch.from_numpy(large.array.copy())
    assert isinstance(read, WindowedImages)
    for rows in ([0], [59], [3, 4, 5, 17, 18, 59], list(range(60))):
        chosen = np.array(rows)
        for direct in (True, False):
            monkeypatch.setattr(read, "_direct", direct)
            drop_from_page_cache(large.path / "images.npy")
            images, places = read.read(chosen)
            assert torch.equal(images[places], pixels[chosen])
    assert read.gather(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 104, 107)
    assert torch.equal(read.raw(torch.tensor([7, 3, 7])), pixels[[7, 3, 7]])
    from spurmix import _host

    out = memory.pages(1 << 20)
    with (large.path / "images.npy").open("rb") as file:
        n = file.fileno()
        for rows, target, error, message in (
            ([2, 1], out, ValueError, "rows must be in ascending order"), ([1, 1], out, ValueError, "rows must be in ascending order"),
            ([-1], out, IndexError, "row -1 is out of range"), ([1 << 60], out, IndexError, "is out of range"),
            ([1], out[:99], ValueError, "at least the bytes of one row"), (list(range(40)), out, ValueError, "must have at least .* bytes"),
            ([60], out, OSError, "Input/output error"),
        ):  # fmt: skip
            with pytest.raises(error, match=message):
                _host.read_rows(n, -1, 128, 104 * 107 * 3, np.array(rows), target, 4)
        with pytest.raises(ValueError, match="start on a page"):
            _host.read_rows(n, n, 128, 104 * 107 * 3, np.array([1]), out[8:], 4)
        # If direct reads fail, the file is read through the page cache.
        places = _host.read_rows(n, 9999, 128, 104 * 107 * 3, np.array([5]), out, 4)
        assert np.array_equal(out[places[0] :][: 104 * 107 * 3], pixels[5].numpy().ravel())
        with pytest.raises(OSError, match="Bad file descriptor"):
            _host.read_rows(9999, -1, 128, 104 * 107 * 3, np.array([5]), out, 4)


def test_too_little_memory_is_an_error(large: PackedDataset) -> None:
    source = WindowedImages(large.path / "images.npy", 0, 60, memory=100_000)
    with pytest.raises(ValueError, match=r"memory: two batches of 8 images require .* bytes, memory is 100,000 bytes"):
        next(iter(loader(source)))
    with pytest.raises(DatasetError, match="must contain uint8 images"):
        WindowedImages(large.path / "images.npy", 40, 21)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_file_that_is_truncated_during_a_run(prefetch: int, tmp_path: Path) -> None:
    """The first batch that cannot be read raises an error, at each attempt, until the file is restored."""
    data = write_dataset(tmp_path / "t", np.random.default_rng(1).integers(0, 256, (60, 104, 107, 3), dtype=np.uint8))
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


def test_a_read_error_is_raised_for_its_batch(large: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert run.step == 4 and len(list(run)) == 8  # the run resumes at the failed batch


def test_set_step_during_a_window_and_the_end_of_threads(large: PackedDataset) -> None:
    gc.collect()  # collects what tracebacks of other tests refer to
    before = set(threading.enumerate())
    read, mapped = loader(large.source(2), steps=30), loader(large.source(), steps=30)
    for _ in range(3):
        batches = iter(read)
        next(batches)
        read.set_step(7)  # forwards, while a window is read, and back
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
def test_a_forked_process_reads_its_own_windows(large: PackedDataset) -> None:
    """The child process does not have the thread that reads windows."""
    torch.set_num_threads(1)
    try:
        read = loader(large.source(2), steps=12)
        expected = [loader(large.source(), steps=12).batch(k).input for k in range(12)]
        read.batch(0)  # the second window is being read now
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
