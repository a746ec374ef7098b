"""Packing: image files, decoded in parallel, into a PackedDataset. A job that was killed goes on where it was.

Work happens in `<target>.packing`: a journal of finished rows beside the arrays. The dataset's description is written
last, and the folder renamed then: until that moment nothing opens as a dataset.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from spurmix._version import __version__
from spurmix.core.progress import bar
from spurmix.data import store
from spurmix.data.decode import FITS, ImageError, decode, pillow
from spurmix.data.listing import Listing, check_inside, open_root
from spurmix.data.store import METADATA, Metadata, PackedDataset, describe, write_metadata

BLOCK = 32
"""Files a worker takes at a time."""
TODO, DONE, BROKEN = 0, 1, 2


@dataclass(frozen=True)
class PackReport:
    """What packing made: the folder, its examples, the files that were left out and why, and seconds it took."""

    path: Path
    count: int
    broken: tuple[tuple[str, str], ...]
    resumed: int
    seconds: float

    def __str__(self) -> str:
        again = f" ({self.resumed:,} of them made before)" if self.resumed else ""
        lines = [f"{self.path}: {self.count:,} examples{again} in {self.seconds:.1f} s"]
        if self.broken:
            lines.append(f"{len(self.broken):,} broken files were left out, see {self.path / 'broken.jsonl'}")
        return "\n".join(lines)


class BrokenFiles(ValueError):
    """Files that cannot be read, where none may be left out."""

    def __init__(self, broken: list[tuple[str, str]], report: Path) -> None:
        shown = "; ".join(f"{source}: {reason}" for source, reason in broken[:5])
        more = f"; and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        super().__init__(
            f"{len(broken):,} files cannot be packed: {shown}{more}. All are listed in {report}; mend them and pack again, "
            "or leave them out (broken='skip')"
        )


def pack_images(
    listing: Listing,
    target: str | Path,
    *,
    size: int | tuple[int, int] = 224,
    fit: str = "crop",
    workers: int | None = None,
    limit: int | None = None,
    broken: str = "error",
    shard: tuple[int, int] = (0, 1),
    progress: bool | None = None,
) -> PackReport:
    """Decode the files of `listing` and write them as a packed dataset, examples of a split together.

    Args:
        target: the folder to make. With `shard` (i, n), the i-th of n parts goes into `<target>.shard-i-of-n`; `merge`
            puts them together.
        size: (height, width), or one number for both. fit: "crop" or "exact", see `decode`.
        workers: threads; default: as many as there are cores.
        limit: at most so many examples of each split.
        broken: "error" ends with a list of all files that cannot be read, keeping what was packed; "skip" leaves them
            out and lists them in `broken.jsonl`.
        progress: show a progress bar; default: on a terminal.

    Raises:
        ValueError: for bad arguments, a target that exists or cannot be written, broken files. OSError: without space.
    """
    began = time.perf_counter()
    extent = (size, size) if isinstance(size, int) else size
    _check(extent, fit, workers, limit, broken, shard)
    pillow()
    check_inside(listing.metadata.sources, listing.root)
    part = _shard(listing.ordered(limit), shard)
    if len(part) == 0:
        raise ValueError(f"shard {shard[0]} of {shard[1]} has no examples")
    final = Path(target) if shard[1] == 1 else Path(f"{target}.shard-{shard[0]}-of-{shard[1]}")
    shape = (len(part), *extent, 3)
    plan = {"listing": _digest(part), "shape": list(shape), "fit": fit}
    with _Job(final, plan, shape) as job:
        resumed = job.decode(part, extent, fit, workers or os.cpu_count() or 1, progress)
        failed = job.broken(part)
        if failed and broken == "error":
            raise BrokenFiles(failed, job.report(failed))
        kept = np.flatnonzero(job.state == DONE)
        if kept.size == 0:
            raise BrokenFiles(failed, job.report(failed))
        made = {
            "spurmix": __version__,
            "root": listing.root,
            "size": list(extent),
            "fit": fit,
            "broken": len(failed),
            "notes": list(listing.notes),
        }
        job.finish(part.metadata.take(kept), kept, failed, made)
    return PackReport(final, int(kept.size), tuple(failed), resumed, time.perf_counter() - began)


def _check(
    extent: tuple[int, ...], fit: str, workers: int | None, limit: int | None, broken: str, shard: tuple[int, int]
) -> None:
    if len(extent) != 2 or not all(isinstance(v, int) and 0 < v <= 32767 for v in extent):
        raise ValueError(f"size must be one or two positive integers, got {extent!r}")
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    for name, value in (("workers", workers), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if broken not in ("error", "skip"):
        raise ValueError(f'broken must be "error" or "skip", got {broken!r}')
    if not (shard[1] >= 1 and 0 <= shard[0] < shard[1]):
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {shard}")


def _shard(listing: Listing, shard: tuple[int, int]) -> Listing:
    begin, end = (len(listing) * k // shard[1] for k in (shard[0], shard[0] + 1))
    return Listing(listing.root, listing.metadata.take(np.arange(begin, end)), listing.notes)


def _digest(listing: Listing) -> str:
    metadata = listing.metadata
    text = json.dumps([listing.root, metadata.sources, metadata.splits, metadata.class_names, metadata.attribute_names])
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for values in (metadata.labels, *metadata.attributes.values()):
        digest.update(values.tobytes())
    return digest.hexdigest()


class _Job:
    """The working folder of one target: locked, resumed where it fits the plan, renamed at the end."""

    def __init__(self, final: Path, plan: dict[str, Any], shape: tuple[int, ...]) -> None:
        self.final, self.folder = final, final.with_name(final.name + ".packing")
        self.plan, self.shape = plan, shape

    def __enter__(self) -> _Job:
        if self.final.exists():
            raise ValueError(f"target: {self.final} exists already; choose another folder or remove it")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise ValueError(f"target: cannot write into {self.final.parent} ({error.strerror})") from None
        _lock(self.lock, self.folder)
        try:
            self._prepare()
        except BaseException:
            self.lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.close()

    def _prepare(self) -> None:
        plan, images, state = (self.folder / name for name in ("plan.json", "images.npy", "state.npy"))
        try:
            same = json.loads(plan.read_text()) == self.plan
        except (OSError, ValueError):
            same = False
        if same:
            with contextlib.suppress(OSError, ValueError):
                self.images = np.load(images, mmap_mode="r+", allow_pickle=False)
                self.state = np.load(state, mmap_mode="r+", allow_pickle=False)
                if self.images.shape == self.shape and self.state.shape == self.shape[:1]:
                    self.state[self.state == BROKEN] = TODO  # they may have been mended
                    return
        (self.folder / store.DESCRIPTION).unlink(missing_ok=True)  # first: nothing incomplete may open
        for old in self.folder.iterdir():
            if old.name != "lock":
                old.unlink()
        needed = int(np.prod(self.shape, dtype=np.int64))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"packing takes {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free in {self.folder.parent}",
            )
        self.images = open_memmap(images, mode="w+", dtype=np.uint8, shape=self.shape)
        with images.open("r+b") as file:  # so that a full disk shows now, and not as a crash in the middle
            os.posix_fallocate(file.fileno(), 0, images.stat().st_size)
        self.state = open_memmap(state, mode="w+", dtype=np.uint8, shape=self.shape[:1])
        plan.write_text(json.dumps(self.plan))

    def decode(self, listing: Listing, size: tuple[int, int], fit: str, workers: int, progress: bool | None) -> int:
        """Decode what is still to do; how much was done before."""
        system, base = open_root(listing.root)
        sources = listing.metadata.sources
        self.reasons: dict[int, str] = {}
        guard = threading.Lock()

        def block(rows: NDArray[np.int64]) -> None:
            for row in rows:
                try:
                    data = system.cat_file(f"{base}/{sources[row]}")
                    self.images[row] = decode(data, size, fit)
                    self.state[row] = DONE
                except (ImageError, OSError) as error:
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
                        raise
                    self.state[row] = BROKEN
                    reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
                    with guard:
                        self.reasons[int(row)] = reason

        todo = np.flatnonzero(self.state != DONE)
        blocks = (todo[r.start : r.stop] for r in store.chunks(todo.size, BLOCK))
        finished = _in_threads(block, blocks, workers)
        for _ in bar(finished, "packing", total=-(-todo.size // BLOCK), size=BLOCK, unit="images", shown=progress):
            pass
        return len(sources) - int(todo.size)

    def broken(self, listing: Listing) -> list[tuple[str, str]]:
        """(source, reason) of every file that could not be read."""
        return [(listing.metadata.sources[n], self.reasons[n]) for n in np.flatnonzero(self.state == BROKEN).tolist()]

    def report(self, failed: list[tuple[str, str]]) -> Path:
        """Write `broken.jsonl`."""
        path = self.folder / "broken.jsonl"
        path.write_text("".join(json.dumps({"source": s, "reason": r}) + "\n" for s, r in failed))
        return path

    def finish(
        self, metadata: Metadata, kept: NDArray[np.int64], failed: list[tuple[str, str]], made: dict[str, Any]
    ) -> None:
        """Leave out broken rows, write what describes the images, and make the folder the dataset."""
        images = self.folder / "images.npy"
        if failed:
            whole = self.folder / "kept.npy"
            copy = open_memmap(whole, mode="w+", dtype=np.uint8, shape=(kept.size, *self.shape[1:]))
            for rows in store.chunks(kept.size, 1024):
                copy[rows.start : rows.stop] = self.images[kept[rows.start : rows.stop]]
            copy.flush()
            (self.folder / "plan.json").unlink()  # the arrays do not fit it any more
            whole.replace(images)
            self.report(failed)
        else:
            self.images.flush()
            (self.folder / "broken.jsonl").unlink(missing_ok=True)
        write_metadata(self.folder, metadata)
        for name in ("images.npy", METADATA):
            with (self.folder / name).open("rb") as file:
                os.fsync(file.fileno())
        describe(self.folder, "images", metadata, made)
        self.folder.rename(self.final)
        for name in ("plan.json", "state.npy", "lock"):
            (self.final / name).unlink(missing_ok=True)


def _lock(file: Any, folder: Path) -> None:
    """Take the folder for this process alone, as long as it lives."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"target: another process is packing into {folder}") from None


def _in_threads(
    work: Callable[[NDArray[np.int64]], None], blocks: Iterable[NDArray[np.int64]], workers: int
) -> Iterator[None]:
    """Once for each block that is done, a few blocks ahead of the workers; an error ends it once the running blocks did."""
    waiting: set[Future[None]] = set()
    iterator = iter(blocks)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(waiting) < 2 * workers and (block := next(iterator, None)) is not None:
                    waiting.add(pool.submit(work, block))
                if not waiting:
                    return
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            for future in waiting:
                future.cancel()


def merge(parts: list[str | Path], target: str | Path) -> PackReport:
    """Put datasets of one kind and shape, such as shards, behind one another.

    Raises:
        ValueError: where they do not fit together, naming the one that differs.
    """
    began = time.perf_counter()
    opened = [PackedDataset(path) for path in parts]
    if not opened:
        raise ValueError("parts: need at least one dataset")
    first = opened[0]
    for other in opened[1:]:
        for what, of in (
            ("kind", lambda d: d.kind),
            ("shape of its images", lambda d: d.array.shape[1:]),
            ("class names", lambda d: d.metadata.class_names),
            ("attributes", lambda d: d.metadata.attribute_names),
        ):
            if of(other) != of(first):
                raise ValueError(f"{other.path}: its {what} differ from those of {first.path}")
    if first.kind != "images":
        raise ValueError(f"parts: only images are merged, got {first.kind}")
    total = sum(map(len, opened))
    splits = [name for part in opened for name in part.metadata.splits]
    if not store.contiguous(splits):
        raise ValueError("parts: the examples of a split do not lie together; name the parts in their order")
    metadata = Metadata(
        np.concatenate([p.metadata.labels for p in opened]),
        splits,
        [s for p in opened for s in p.metadata.sources],
        {k: np.concatenate([p.metadata.attributes[k] for p in opened]) for k in first.metadata.attributes},
        first.metadata.class_names,
        first.metadata.attribute_names,
    )
    shape = (total, *first.array.shape[1:])
    plan = {"merge": [str(p.path) for p in opened], "shape": list(shape)}
    with _Job(Path(target), plan, shape) as job:
        at = 0
        for part in opened:
            for rows in store.chunks(len(part), 1024):
                job.images[at + rows.start : at + rows.stop] = part.array[rows.start : rows.stop]
            at += len(part)
        made = {**first.made, "broken": sum(p.made.get("broken", 0) for p in opened), "parts": len(opened)}
        job.finish(metadata, np.arange(total), [], made)
    return PackReport(Path(target), total, (), 0, time.perf_counter() - began)
