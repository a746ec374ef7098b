"""A packing job: the working folder of one target, which one process has for itself, goes on with after a kill, and
renames at the end. Until that moment nothing opens as a dataset."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from spurmix.data.dataset.packed import (
    ARRAYS,
    DESCRIPTION,
    METADATA,
    PACKING,
    REPORT,
    DatasetError,
    Metadata,
    PackedDataset,
    describe,
    write_metadata,
)

T = TypeVar("T")
TODO, DONE, BROKEN = 0, 1, 2
PLAN, LOCK = "plan.json", "lock"
TICK = 0.1
"""Seconds between two looks at what workers have done."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PackReport:
    """What packing made: the folder, its examples, what was left out and why, what was made before, seconds it took, and
    notes for the user."""

    path: Path
    count: int
    broken: tuple[tuple[str, str], ...]
    resumed: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        again = f" ({self.resumed:,} of them made before)" if self.resumed else ""
        lines = [*self.notes, f"{self.path}: {counted(self.count, 'example')}{again} in {self.seconds:.1f} s"]
        if self.broken:
            lines.append(f"{counted(len(self.broken), 'broken one')} left out, see {self.path / REPORT}")
        return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """A number of things: "1 file", "2,000 files"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class BrokenFiles(ValueError):
    """Images or texts that cannot be packed, where none may be left out."""

    def __init__(self, broken: list[tuple[str, str]], report: Path, what: str = "file") -> None:
        shown = "; ".join(f"{source}: {reason}" for source, reason in broken[:5])
        more = f"; and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        super().__init__(
            f"{counted(len(broken), what)} cannot be packed: {shown}{more}. All are listed in {report}; mend them and pack "
            "again, or leave them out (broken='skip')"
        )


class NoSpace(OSError):
    """A disk that is full, or would be."""


class Job:
    """The working folder `<target>.packing`: locked, taken up again where `plan` is the one it was made with.

    Attributes:
        folder: where the files are made. resumes: whether what lies there is to be gone on with.
        finished: the dataset, where a job of this plan had made all of it and was killed before the folder got its name.
        notes: for the user.

    Raises:
        ValueError: for a target that exists, cannot be written, or that another process packs into.
        NoSpace: where the disk is full, also in the middle; what is done is kept for the next start.
    """

    def __init__(self, final: str | Path, kind: str, plan: dict[str, Any]) -> None:
        self.final = Path(final)
        first = self.final.parts[0] if self.final.parts else ""
        if first.endswith(":") and not Path(first).is_dir():  # a URL, of which a path keeps one slash
            raise ValueError(f"target must be a folder of this machine, got the URL {final}")
        if not self.final.name:
            raise ValueError(f"target must name a folder that is made, got {str(final)!r}")
        if self.final.name.endswith(PACKING):
            raise ValueError(f"target: a name that ends in {PACKING} is that of a folder in the making, got {final}")
        self.folder = self.final.with_name(self.final.name + PACKING)
        self.kind = kind
        self.plan: dict[str, Any] = json.loads(json.dumps({"kind": kind, **plan}))
        self.resumes = False
        self.finished: PackedDataset | None = None
        self.notes: tuple[str, ...] = ()

    def __enter__(self) -> Job:
        try:
            self._check_free()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = (self.folder / LOCK).open("w")
        except OSError as error:
            raise ValueError(f"target: cannot write into {self.final.parent} ({error.strerror})") from None
        _lock(self.lock, self.folder)
        self._check_free()  # another process may have finished since
        with contextlib.suppress(DatasetError):
            found = PackedDataset.unfinished(self.folder)
            if found.made.get("plan") == self.fingerprint:
                self.finished = found
                return self
            self.notes = (f"{self.folder} held a dataset made with other settings, which is begun anew",)
        try:
            known = json.loads((self.folder / PLAN).read_text())
            self.resumes = known == self.plan
            if not self.resumes:
                other = [k for k in {**known, **self.plan} if known.get(k) != self.plan.get(k)]
                self.notes = (f"{self.folder} held other work, which is begun anew: {', '.join(other)} differs",)
        except (OSError, ValueError, TypeError, AttributeError):
            self.resumes = False
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.lock.close()
        if isinstance(error, OSError) and error.errno in _FULL and not isinstance(error, NoSpace):
            text = (
                f"no space left for {self.folder} ({error.strerror}); free some and start again: what is done is kept"
            )
            raise NoSpace(error.errno, text) from None

    @property
    def fingerprint(self) -> str:
        """A hex digest of the plan, which the dataset keeps."""
        return hashlib.blake2b(json.dumps(self.plan, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _check_free(self) -> None:
        if self.final.exists():
            raise ValueError(f"target: {self.final} exists already; choose another folder or remove it")

    def clear(self) -> None:
        """Remove what lies there: the description first, so that nothing incomplete opens."""
        self.resumes = False
        for name in (DESCRIPTION, PLAN):
            (self.folder / name).unlink(missing_ok=True)
        self._remove_all_but(LOCK)

    def _remove_all_but(self, *names: str) -> None:
        for old in self.folder.iterdir():
            if old.name not in names:
                old.unlink()

    def begin(self) -> None:
        """Say that the files for the plan are there: from now on the job can be gone on with."""
        (self.folder / PLAN).write_text(json.dumps(self.plan))

    def arrays(
        self, wanted: Mapping[str, tuple[tuple[int, ...], str]], written: Iterable[str] = ()
    ) -> list[NDArray[Any]]:
        """Arrays to write into, by file name: (shape, dtype); those of the killed job, or new ones, filled with 0.

        written: files that calls write, not the map, so that a full disk is an error of the call.
        """
        if self.resumes:
            found = [self._reopen(name, *what) for name, what in wanted.items()]
            if all(array is not None for array in found):
                return [array for array in found if array is not None]
        self.clear()
        self._check_space(sum(int(np.prod(s, dtype=np.int64)) * np.dtype(d).itemsize for s, d in wanted.values()))
        made = [self.allocate(name, *what, reserve=name not in written) for name, what in wanted.items()]
        self.begin()
        return made

    def _reopen(self, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any] | None:
        try:
            found: NDArray[Any] = np.load(self.folder / name, mmap_mode="r+", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return found if found.shape == shape and found.dtype == np.dtype(dtype) else None

    def allocate(self, name: str, shape: tuple[int, ...], dtype: str, *, reserve: bool = True) -> NDArray[Any]:
        """A new array; reserve: take its space on the disk now, so that a full one is no crash in the middle."""
        path = self.folder / name
        self._check_space(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        array: NDArray[Any] = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        if reserve and hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise NoSpace(
                errno.ENOSPC,
                f"packing takes {_size(needed)}, {_size(free)} are free in {self.folder.parent}",
            )

    def report(self, failed: list[tuple[str, str]]) -> Path:
        """Write `broken.jsonl`, or remove it where nothing failed."""
        path = self.folder / REPORT
        if failed:
            path.write_text("".join(json.dumps({"source": s, "reason": r}) + "\n" for s, r in failed))
        else:
            path.unlink(missing_ok=True)
        return path

    def finish(
        self,
        metadata: Metadata,
        made: dict[str, Any],
        others: Iterable[str] = (),
        known: Mapping[str, Mapping[int, str]] | None = None,
    ) -> None:
        """Write what describes the arrays, and make the folder the dataset; others: further files that belong to it.

        known: checksums of some chunks, by file and number of the chunk.
        """
        write_metadata(self.folder, metadata)
        others = tuple(others)
        for name in (*ARRAYS[self.kind], METADATA, *others):
            with (self.folder / name).open("rb") as file:
                os.fsync(file.fileno())
        describe(self.folder, self.kind, metadata, {**made, "plan": self.fingerprint}, others, known)
        self.publish(others)

    def publish(self, others: Iterable[str] = ()) -> None:
        """Give a folder that is described its name. What only the work needed goes first: a kill leaves nothing of it in
        the dataset, and the next start finds all done."""
        belongs = (*ARRAYS[self.kind], METADATA, DESCRIPTION, REPORT, *others)
        self._remove_all_but(LOCK, *belongs)
        (self.folder / LOCK).unlink(missing_ok=True)
        self.folder.rename(self.final)

    def found(self, began: float) -> PackReport:
        """Publish the `finished` dataset."""
        assert self.finished is not None
        count, failed = len(self.finished), broken_of(self.finished)
        self.publish(self.finished.others)
        return PackReport(self.final, count, tuple(failed), count, time.perf_counter() - began)


def broken_of(data: PackedDataset) -> list[tuple[str, str]]:
    """Source and reason of what was left out of a dataset."""
    path = data.path / REPORT
    if not path.is_file():
        return []
    try:
        return [(row["source"], row["reason"]) for row in map(json.loads, path.read_text().splitlines())]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{path} is damaged: {error}") from None


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:,.1f} MiB"


def _lock(file: Any, folder: Path) -> None:
    """Take the folder for this process alone, as long as it lives."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"target: another process is packing into {folder}") from None


def in_threads(work: Callable[[T], None], blocks: Iterable[T], workers: int) -> Iterator[None]:
    """Once for each block that is done, some at a time; each worker takes the next when it is through with one.

    The first error, of `work` or `blocks`, ends it once the running blocks did.
    """
    iterator, guard, done = iter(blocks), threading.Lock(), list[None]()
    stop = False

    def run() -> None:
        while not stop:
            with guard:
                block = next(iterator, None)
            if block is None:
                return
            work(block)
            done.append(None)

    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(run) for _ in range(workers)}
        try:
            while running:
                # By the clock: to be woken by every block would take the interpreter from the workers each time.
                ended, running = wait(running, timeout=TICK, return_when=FIRST_EXCEPTION)
                for worker in ended:
                    worker.result()
                while done:
                    yield done.pop()
        finally:
            stop = True


def process_shard() -> tuple[int, int]:
    """(rank, number of processes) as torchrun tells them, (0, 1) outside of it.

    Raises:
        ValueError: where they make no sense.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        shard = int(rank), int(world)
    except ValueError:
        raise ValueError(f"RANK and WORLD_SIZE must be numbers, got {rank!r} and {world!r}") from None
    check_shard(shard)
    return shard


def check_shard(shard: tuple[int, int]) -> None:
    """Check (i, n)."""
    if not (shard[1] >= 1 and 0 <= shard[0] < shard[1]):
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {shard}")


def shard_rows(count: int, shard: tuple[int, int]) -> NDArray[np.int64]:
    """The rows of a shard (i, n): the i-th of n runs of [0, count).

    Raises:
        ValueError: where it has none.
    """
    begin, end = (count * k // shard[1] for k in (shard[0], shard[0] + 1))
    if begin == end:
        raise ValueError(f"shard {shard[0]} of {shard[1]} has no examples")
    return np.arange(begin, end)


def made_by(shard: tuple[int, int]) -> dict[str, Any]:
    """What `made` says of a shard, by which `merge` knows it."""
    return {"shard": list(shard)} if shard[1] > 1 else {}


def shard_path(target: str | Path, shard: tuple[int, int]) -> Path:
    """Where a shard of `target` is packed."""
    return Path(target) if shard[1] == 1 else Path(f"{target}.shard-{shard[0]}-of-{shard[1]}")


def check_counts(**values: int | None) -> None:
    """Check that numbers are 1 or more, where they are given."""
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be 1 or more, got {value}")


def check_broken(broken: str) -> None:
    """Check what is to happen with broken examples."""
    if broken not in ("error", "skip"):
        raise ValueError(f'broken must be "error" or "skip", got {broken!r}')


def digest_of(root: str, metadata: Metadata, content: str = "") -> str:
    """A hex digest of what is packed, by which a job is gone on with; content: a digest of what `metadata` does not tell."""
    own = [root, metadata.sources, metadata.splits, metadata.class_names, metadata.attribute_names, content]
    digest = hashlib.blake2b(json.dumps(own).encode(), digest_size=16)
    for values in (metadata.labels, *metadata.attributes.values()):
        digest.update(values.tobytes())
    return digest.hexdigest()
