"""Packing: image files, decoded in parallel, into a PackedDataset. A job that was killed goes on where it was: a journal of
finished rows lies beside the arrays."""

from __future__ import annotations

import errno
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix._version import __version__
from spurmix.core.progress import bar
from spurmix.core.ranges import chunks
from spurmix.data.dataset import packed as store
from spurmix.data.dataset.packed import REPORT
from spurmix.data.pack import job as jobs
from spurmix.data.pack.compaction import Moving
from spurmix.data.pack.decode import FITS, ImageError, decoded, fitted, pillow
from spurmix.data.pack.job import BROKEN, DONE, TODO, BrokenFiles, Job, PackReport, in_threads
from spurmix.data.pack.manifest import Listing, check_inside
from spurmix.data.pack.writer import Part, StripeWriter

PART, STRIPE, KEPT = 16, 1 << 24, 256
"""Files a worker takes at a time; bytes, and images, that are written at once at most. A kill costs what is not written."""
WORKERS = (os.cpu_count() or 1) + 1
"""One more than cores: a worker waits at times, for a file or the interpreter."""


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
    """Decode the images of `listing` and write them as a packed dataset, examples of a split together.

    Args:
        target: the folder to make. With `shard` (i, n), the i-th of n parts goes into `<target>.shard-i-of-n`; `merge`
            puts them together.
        size: (height, width), or one number for both. fit: "crop" or "exact", see `decoded`.
        workers: threads; default: one more than there are cores.
        limit: at most so many examples of each split.
        broken: "error" ends with a list of all images that cannot be read, keeping what was packed; "skip" leaves them
            out and lists them in `broken.jsonl`.
        progress: show a progress bar; default: on a terminal.

    Raises:
        ValueError: for bad arguments, a target that exists or cannot be written, broken files. OSError: without space.
    """
    began = time.perf_counter()
    extent = (size, size) if isinstance(size, int) else size
    if len(extent) != 2 or not all(isinstance(v, int) and 0 < v <= 32767 for v in extent):
        raise ValueError(f"size must be one or two positive integers, got {extent!r}")
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    jobs.check_counts(workers=workers, limit=limit)
    jobs.check_broken(broken)
    jobs.check_shard(shard)
    if listing.kind != "images":
        raise ValueError(f"listing holds {listing.kind}; see pack_texts")
    pillow()
    if listing.content is None:
        check_inside(listing.metadata.sources, listing.root)
    ordered = listing.ordered(limit)
    part = ordered.take(jobs.shard_rows(len(ordered), shard))
    final = jobs.shard_path(target, shard)
    shape = (len(part), *extent, 3)
    digest = jobs.digest_of(part.root, part.metadata, "" if part.content is None else part.content.digest())
    made = {
        "spurmix": __version__,
        "root": listing.root,
        "size": list(extent),
        "fit": fit,
        "notes": list(listing.notes),
        **jobs.made_by(shard),
    }
    sums: dict[int, str] = {}
    with Job(final, "images", {"listing": digest, "shape": shape, "fit": fit}) as job:
        if job.finished is not None:
            return job.found(began)
        moving = Moving(job.folder, shape) if job.resumes else None
        if moving is not None and moving.began:  # all that can be is decoded, and rows are where they will be
            failed = moving.failed
            if broken == "error":
                raise ValueError(
                    f"target: {job.folder} is being finished without {jobs.counted(len(failed), 'broken file')}, "
                    f"listed in its {REPORT}; go on with broken='skip', or remove it to begin anew"
                )
            kept = moving.kept
            resumed = kept.size
        else:
            state, stamps = _arrays(job, part, shape, workers or WORKERS)
            resumed = int((state == DONE).sum())
            file = job.folder / "images.npy"
            reasons, sums = _decode(part, file, state, stamps, extent, fit, workers or WORKERS, progress)
            failed = [(part.metadata.sources[n], reasons[n]) for n in sorted(reasons)]
            kept = np.flatnonzero(state == DONE)
            report = job.report(failed)
            if failed and (broken == "error" or (kept.size == 0 and shard[1] == 1)):
                raise BrokenFiles(failed, report)
            moving = Moving(job.folder, shape)
        if failed:
            moving.move(kept, failed)
        known = {} if failed else {"images.npy": sums}
        job.finish(part.metadata.take(kept), {**made, "broken": len(failed)}, known=known)
    return PackReport(final, int(kept.size), tuple(failed), resumed, time.perf_counter() - began, job.notes)


def _arrays(
    job: Job, part: Listing, shape: tuple[int, ...], workers: int
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Where each row stands, and what its file looked like when it was read; a row whose file is another now is to do."""
    stamp = part.stamper()
    wanted: dict[str, tuple[tuple[int, ...], str]] = {"images.npy": (shape, "uint8"), "state.npy": (shape[:1], "uint8")}
    if stamp is not None:
        wanted["stamps.npy"] = (shape[:1], "int64")
    _, state, *rest = job.arrays(wanted, written=("images.npy",))
    state[state == BROKEN] = TODO  # they may have been mended
    if stamp is None:
        return state, None
    (stamps,) = rest

    def compare(rows: NDArray[np.int64]) -> None:
        for row in rows.tolist():
            if stamps[row] != stamp(row):
                state[row] = TODO

    done = np.flatnonzero(state == DONE)
    for _ in in_threads(compare, (done[r.start : r.stop] for r in chunks(done.size, 1024)), workers):
        pass
    changed = int(done.size) - int((state == DONE).sum())
    if changed:
        job.notes += (f"{jobs.counted(changed, 'file')} changed since they were packed, and are read again",)
    return state, stamps


def _decode(
    source: Listing,
    file: Path,
    state: NDArray[Any],
    stamps: NDArray[np.int64] | None,
    size: tuple[int, int],
    fit: str,
    workers: int,
    progress: bool | None,
) -> tuple[dict[int, str], dict[int, str]]:
    """Decode what is still to do; why rows could not be, and checksums of the file's chunks as far as they are known."""
    read, stamped = source.reader(), source.stamped_reader()
    library, _ = pillow()
    reasons: dict[int, str] = {}
    guard = threading.Lock()
    begin, row_bytes = store.array_header(file)[2], 3 * size[0] * size[1]
    each = max(1, min(PART, STRIPE // row_bytes))
    stripe = max(1, min(STRIPE // row_bytes, KEPT) // each) * each
    stripes = 3 + -(-workers * each // stripe)  # being filled, waiting for their last parts, and written
    target = StripeWriter(file, begin, row_bytes, stripe, stripes)

    def made(row: int) -> Any:
        """The image of a row, or None, and why, where there is none."""
        try:
            if stamps is not None and stamped is not None:
                item, stamps[row] = stamped(row)
            else:
                item = read(row)
            if item is None:
                raise ImageError("is missing")
            is_file = isinstance(item, bytes)
            return decoded(item, size, fit) if is_file else fitted(library.fromarray(item), size, fit)
        except (ImageError, OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
                raise
            state[row] = BROKEN
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            reason = "takes more memory than there is" if isinstance(error, MemoryError) else reason
            with guard:
                reasons[row] = reason
            return None

    def fill(part: Part) -> None:
        try:
            good = []
            for k in range(part.count):
                image = made(part.first + k)
                part.set(k, image)
                if image is not None:
                    good.append(part.first + k)
        except BaseException as error:
            target.fail(error)
            raise

        def written() -> None:
            state[good] = DONE

        target.put(part, written)

    todo = np.flatnonzero(state == TODO)
    starts = np.flatnonzero(np.diff(todo, prepend=-2) != 1)  # of runs of consecutive rows
    sizes = np.diff(starts, append=todo.size)
    runs = zip(todo[starts].tolist(), sizes.tolist(), strict=True)
    parts = (part for first, count in runs for part in target.parts(first, count, each))
    done = (len(source) - int(todo.size)) // each
    total = done + int((-(-sizes // each)).sum())
    with target, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file; what cannot be read is an error
        finished = in_threads(fill, parts, workers)
        for _ in bar(finished, "packing", total=total, done=done, size=each, unit="images", shown=progress):
            pass
    return reasons, target.sums
