"""`PackJob`: the folder in which a dataset is packed. It is locked, resumable, and renamed to the target at the end."""

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
from typing import Any, TextIO, TypedDict, TypeVar

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.files import FileError, discard, read_json, read_json_lines
from spurmix.core.names import printable
from spurmix.data.dataset.format import (
    ARRAY_FILES,
    DESCRIPTION_FILE,
    METADATA_FILE,
    PACKING_SUFFIX,
    UNREADABLE_FILE,
    DatasetError,
    Metadata,
    Provenance,
    write_description,
    write_metadata,
)
from spurmix.data.dataset.packed import PackedDataset

T = TypeVar("T")
PENDING, DONE, UNREADABLE = 0, 1, 2
"""State of a row."""
PLAN_FILE, LOCK_FILE = "plan.json", "lock"
PLAN_VERSION = 3
"""Version of the working files. A job of another version starts over."""
POLL_SECONDS = 0.1
"""Seconds between two checks of the progress of the workers."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PackReport:
    """The result of packing.

    Args:
        path: Folder of the dataset.
        count: Number of examples in the dataset.
        broken: Source and reason of each example that could not be read.
        resumed: Number of examples that an interrupted job had already packed.
        seconds: Duration in seconds.
        notes: Remarks for the user.
    """

    path: Path
    count: int
    broken: tuple[tuple[str, str], ...]
    resumed: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        resumed = f" ({self.resumed:,} resumed from an interrupted job)" if self.resumed else ""
        lines = [*self.notes, f"{self.path}: {counted(self.count, 'example')}{resumed} in {self.seconds:.1f} s"]
        if self.broken:
            lines.append(
                f"skipped {counted(len(self.broken), 'unreadable example')}, see {self.path / UNREADABLE_FILE}"
            )
        return "\n".join(map(printable, lines))


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 file", "2,000 files"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class BrokenFiles(ValueError):
    """Images or texts cannot be read, and broken="error" is set.

    Args:
        broken: Source and reason of each.
        report: File that lists all of them.
        what: What cannot be read: "file" or "text".
    """

    def __init__(self, broken: list[tuple[str, str]], report: Path, what: str = "file") -> None:
        shown = "; ".join(f"{source}: {reason}" for source, reason in broken[:5])
        shown = printable(shown)
        more = f"; and {len(broken) - 5:,} more" if len(broken) > 5 else ""
        super().__init__(
            f"{counted(len(broken), what)} cannot be packed: {shown}{more}. {report} lists all of them. Repair them and run "
            "again, or skip them with broken='skip'"
        )


class NoSpace(OSError):
    """The disk is full, or has less space than packing needs."""


class PackJob:
    """The working folder `<target>.packing`. Use it as a context manager.

    Args:
        target: Folder of the dataset to make.
        kind: "images", "tokens" or "features".
        plan: Everything that determines the result. A job resumes only if its plan is the same.

    Attributes:
        folder: The working folder.
        resumes: Whether the working folder contains an interrupted job with the same plan.
        finished: The complete dataset, if a job was interrupted just before it renamed the folder.
        notes: Remarks for the user.

    Raises:
        ValueError: If the target exists, cannot be written, or another process packs into it.
        NoSpace: If the disk is full. Completed work is kept.
    """

    def __init__(self, target: str | Path, kind: str, plan: Mapping[str, object]) -> None:
        self.target = checks.new_path(target, "target", len(PACKING_SUFFIX))
        first = self.target.parts[0] if self.target.parts else ""
        if first.endswith(":") and not Path(first).is_dir():  # Path keeps one slash of "s3://"
            raise ValueError(f"target must be a local folder, got the URL {target}")
        if not self.target.name:
            raise ValueError(f"target must name a new folder, got {str(target)!r}")
        if self.target.name.endswith(PACKING_SUFFIX):
            raise ValueError(
                f"target must not end in {PACKING_SUFFIX}, which marks an incomplete dataset, got {target}"
            )
        self.folder = self.target.with_name(self.target.name + PACKING_SUFFIX)
        self.kind = kind
        self.plan: dict[str, object] = json.loads(json.dumps({"version": PLAN_VERSION, "kind": kind, **plan}))
        self.resumes = False
        self.finished: PackedDataset | None = None
        self.notes: tuple[str, ...] = ()

    def __enter__(self) -> PackJob:
        try:
            self._require_new_target()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = (self.folder / LOCK_FILE).open("w")
        except OSError as error:
            raise ValueError(f"target: cannot write into {self.target.parent} ({error.strerror})") from None
        _lock(self.lock, self.folder)
        self._require_new_target()  # another process may have finished before this one got the lock
        self._read_state()
        return self

    def _read_state(self) -> None:
        """Set `finished`, `resumes` and `notes` from the content of the working folder."""
        with contextlib.suppress(DatasetError):
            found = PackedDataset.open_incomplete(self.folder)
            if found.provenance.get("plan") == self.fingerprint:
                self.finished = found
            else:
                self.notes = (f"{self.folder} contains a dataset with other settings; packing starts over",)
            return
        try:
            plan = read_json(self.folder / PLAN_FILE, dict[str, object])
        except FileError:
            return
        changed = [key for key in {**plan, **self.plan} if plan.get(key) != self.plan.get(key)]
        self.resumes = not changed
        if "version" in changed:
            self.notes = (f"{self.folder} contains an interrupted job of another spurmix version; packing starts over",)
        elif changed:
            reason = ", ".join(changed)
            self.notes = (f"{self.folder} contains an interrupted job with another {reason}; packing starts over",)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.lock.close()
        if isinstance(error, OSError) and error.errno in _DISK_FULL and not isinstance(error, NoSpace):
            raise NoSpace(
                error.errno,
                f"no space left for {self.folder} ({error.strerror}); free disk space and run the same command again to "
                "resume; completed work is kept",
            ) from None

    @property
    def fingerprint(self) -> str:
        """Hex digest of the plan. The dataset stores it."""
        return hashlib.blake2b(json.dumps(self.plan, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _require_new_target(self) -> None:
        if self.target.exists():
            raise ValueError(f"target: {self.target} already exists; choose another folder or remove it")

    def clear(self) -> None:
        """Remove the content of the working folder, the description first, so that nothing incomplete opens."""
        self.resumes = False
        for name in (DESCRIPTION_FILE, PLAN_FILE):
            (self.folder / name).unlink(missing_ok=True)
        self._remove_all_but(LOCK_FILE)

    def _remove_all_but(self, *names: str) -> None:
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink()

    def write_plan(self) -> None:
        """Record that the working files exist. From now on the job can be resumed."""
        (self.folder / PLAN_FILE).write_text(json.dumps(self.plan))

    def open_arrays(
        self, shapes: Mapping[str, tuple[tuple[int, ...], str]], direct: Iterable[str] = ()
    ) -> list[NDArray[Any]]:
        """Open the arrays of the interrupted job, or create arrays of zeros.

        Args:
            shapes: Shape and dtype of each array, by file name.
            direct: Files that are written with system calls, not through the memory map. A full disk is then an error of
                the call, so their space is not reserved.

        Returns:
            Writable memory maps, in the order of `shapes`.
        """
        if self.resumes:
            found = [self._reopen(name, *wanted) for name, wanted in shapes.items()]
            if all(array is not None for array in found):
                return [array for array in found if array is not None]
        self.clear()
        self.require_space(sum(_array_bytes(*wanted) for wanted in shapes.values()), "packing")
        made = [self.create_array(name, *wanted, reserve=name not in direct) for name, wanted in shapes.items()]
        self.write_plan()
        return made

    def _reopen(self, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any] | None:
        try:
            found: NDArray[Any] = np.load(self.folder / name, mmap_mode="r+", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return found if found.shape == shape and found.dtype == np.dtype(dtype) else None

    def create_array(self, name: str, shape: tuple[int, ...], dtype: str, *, reserve: bool = True) -> NDArray[Any]:
        """Create a memory-mapped array of zeros.

        Args:
            name: File name.
            shape: Shape of the array.
            dtype: Type of the array.
            reserve: Whether to allocate disk space now. Otherwise a full disk ends the process when the map is written.

        Returns:
            The array.
        """
        path = self.folder / name
        self.require_space(_array_bytes(shape, dtype), "packing")
        array: NDArray[Any] = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        if reserve and hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    def require_space(self, required: int, purpose: str) -> None:
        """Check that `required` bytes of disk space are free. Errors name the purpose.

        Raises `NoSpace` if they are not.
        """
        free = shutil.disk_usage(self.folder).free
        if required > free:
            raise NoSpace(
                errno.ENOSPC,
                f"{purpose} requires {_format_bytes(required)} of disk space, but {_format_bytes(free)} are free in "
                f"{self.folder.parent}; free disk space and run the same command again",
            )

    def write_report(self, unreadable: list[tuple[str, str]]) -> Path:
        """Write `broken.jsonl`, or remove it if everything could be read."""
        path = self.folder / UNREADABLE_FILE
        if unreadable:
            path.write_text("".join(json.dumps({"source": s, "reason": r}) + "\n" for s, r in unreadable))
        else:
            discard(path)
        return path

    def finish(
        self,
        metadata: Metadata,
        provenance: Provenance,
        extra_files: Iterable[str] = (),
        known_checksums: Mapping[str, Mapping[int, str]] | None = None,
    ) -> None:
        """Write metadata and description, and rename the folder to the target. See `write_description`."""
        write_metadata(self.folder, metadata)
        extra_files = tuple(extra_files)
        for name in (*ARRAY_FILES[self.kind], METADATA_FILE, *extra_files):
            with (self.folder / name).open("rb") as file:
                os.fsync(file.fileno())
        provenance = {**provenance, "plan": self.fingerprint}
        write_description(self.folder, self.kind, metadata, provenance, extra_files, known_checksums)
        self.publish(extra_files)

    def publish(self, extra_files: Iterable[str] = ()) -> None:
        """Remove the working files and rename the folder to the target.

        The description exists already. If the process is killed in between, the next run only has to rename the folder.
        """
        dataset_files = (*ARRAY_FILES[self.kind], METADATA_FILE, DESCRIPTION_FILE, UNREADABLE_FILE, *extra_files)
        self._remove_all_but(LOCK_FILE, *dataset_files)
        (self.folder / LOCK_FILE).unlink(missing_ok=True)
        self.folder.rename(self.target)

    def publish_finished(self, began: float) -> PackReport:
        """Publish the dataset `finished`."""
        assert self.finished is not None
        count, unreadable = len(self.finished), read_report(self.finished)
        self.publish(self.finished.extra_files)
        return PackReport(self.target, count, tuple(unreadable), count, time.perf_counter() - began)


class _UnreadableRow(TypedDict):
    """Line of `broken.jsonl`."""

    source: str
    reason: str


def read_report(data: PackedDataset) -> list[tuple[str, str]]:
    """Return source and reason of the examples that could not be read when a dataset was packed."""
    path = data.path / UNREADABLE_FILE
    if not path.is_file():
        return []
    try:
        return [(row["source"], row["reason"]) for row in read_json_lines(path, _UnreadableRow)]
    except FileError as error:
        raise DatasetError(error) from None


def _array_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:,.1f} MiB"


def _lock(file: TextIO, folder: Path) -> None:
    """Lock the folder until this process ends."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"target: another process is packing into {folder}") from None


def run_in_threads(work: Callable[[T], None], blocks: Iterable[T], workers: int) -> Iterator[None]:
    """Call `work` for each block in several threads. Each thread takes the next block when it has finished one.

    Yields once for each finished block. The first error, of `work` or `blocks`, is raised after the running blocks end.
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
                # Poll, because waking up for every block would block the workers, which need the interpreter lock.
                ended, running = wait(running, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
                for worker in ended:
                    worker.result()
                while done:
                    yield done.pop()
        finally:
            stop = True


def process_shard() -> tuple[int, int]:
    """Return (rank, number of processes) from torchrun's environment variables, or (0, 1) without them.

    Raises `ValueError` if the variables are invalid.
    """
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        shard = int(rank), int(world_size)
    except ValueError:
        raise ValueError(f"RANK and WORLD_SIZE must be integers, got {rank!r} and {world_size!r}") from None
    check_shard(shard)
    return shard


def check_shard(shard: tuple[int, int]) -> None:
    """Check that `shard` is (i, n) with 0 <= i < n."""
    if not (shard[1] >= 1 and 0 <= shard[0] < shard[1]):
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {shard}")


def shard_rows(count: int, shard: tuple[int, int]) -> NDArray[np.int64]:
    """Return the rows of shard (i, n): the i-th of n contiguous parts of [0, count).

    Raises `ValueError` if the shard is empty.
    """
    begin, end = (count * k // shard[1] for k in (shard[0], shard[0] + 1))
    if begin == end:
        raise ValueError(f"shard {shard[0]} of {shard[1]} has no examples; use at most {count} shards")
    return np.arange(begin, end)


def shard_provenance(shard: tuple[int, int]) -> Provenance:
    """Return the provenance by which `merge` recognizes a shard."""
    return {"shard": list(shard)} if shard[1] > 1 else {}


def shard_path(target: str | Path, shard: tuple[int, int]) -> Path:
    """Return the folder of a shard of `target`."""
    return Path(target) if shard[1] == 1 else Path(f"{target}.shard-{shard[0]}-of-{shard[1]}")


def check_positive(**values: int | None) -> None:
    """Check that the given integers are 1 or more."""
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be 1 or more, got {value}")


def check_broken(broken: str) -> None:
    """Check the argument `broken`."""
    if broken not in ("error", "skip"):
        raise ValueError(f'broken must be "error" or "skip", got {broken!r}')
