"""`pack_images`: decodes image files in parallel into a packed dataset.

The working folder contains the array and the state of each row. An interrupted job resumes where it stopped.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spurmix._version import __version__
from spurmix.core.files import FileError
from spurmix.core.progress import bar
from spurmix.core.ranges import chunks
from spurmix.data.dataset.format import array_header, read_array_header
from spurmix.data.pack import job as jobs
from spurmix.data.pack.decode import (
    DEEP,
    FITS,
    TRANSPARENT,
    UNKNOWN_PROFILE,
    WHITE,
    ImageError,
    decode_image,
    import_pillow,
    parse_background,
    to_rgb_of_size,
)  # fmt: skip
from spurmix.data.pack.job import (
    DONE,
    PENDING,
    UNREADABLE,
    BrokenFiles,
    PackJob,
    PackReport,
    run_in_threads,
)
from spurmix.data.pack.manifest import Manifest, check_paths
from spurmix.data.pack.remote import root_name
from spurmix.data.pack.strays import occurring_provenance, select_readable
from spurmix.data.pack.writer import DirectWriter, WriteRange

if TYPE_CHECKING:
    from PIL.Image import Image

RANGE_ROWS = 16
"""Number of files that a worker takes at a time."""
BLOCK_BYTES, BLOCK_ROWS = 1 << 24, 256
"""Maximum size of a write, in bytes and in images. If the process is killed, only unwritten blocks are lost."""
DEFAULT_WORKERS = (os.cpu_count() or 1) + 1
"""One more than cores, because a worker sometimes waits for a file or for the interpreter lock."""
IMAGES_FILE, STATE_FILE, FINGERPRINTS_FILE = "images.npy", "state.npy", "stamps.npy"
DECODED_FILE = "decoded.npy"
"""`images.npy` with all rows, while rows that could not be read are dropped."""


def pack_images(
    manifest: Manifest,
    target: str | Path,
    *,
    size: int | tuple[int, int] = 224,
    fit: str = "crop",
    workers: int | None = None,
    limit: int | None = None,
    broken: str = "error",
    shard: tuple[int, int] = (0, 1),
    background: str | tuple[int, int, int] = "white",
    progress: bool | None = None,
) -> PackReport:
    """Decode the images of a manifest and write them as a packed dataset, sorted by split.

    If the process is interrupted, call the function again with the same arguments to resume. Files that have changed
    since are read again.

    Args:
        manifest: The images and their metadata.
        target: Folder to create. With a shard (i, n) the folder is `<target>.shard-i-of-n`. `merge` joins the shards.
        size: (height, width) in pixels, or one number for both.
        fit: "crop" or "exact", see `decode_image`.
        workers: Number of threads. Default: one more than cores.
        limit: Maximum number of examples of each split. Default: all.
        broken: "error" raises an error that lists all unreadable images. "skip" leaves them out and lists them in
            `broken.jsonl`. Either way the other images stay packed.
        shard: (i, n) packs the i-th of n parts.
        background: Color behind transparent pixels: a name, "#rrggbb" or (red, green, blue).
        progress: Whether to show a progress bar. Default: only on a terminal.

    Returns:
        What was packed.

    Raises:
        ValueError: If an argument is invalid, or the target exists or cannot be written.
        BrokenFiles: If images are unreadable and `broken` is "error", or all are unreadable.
        OSError: If the disk is full. Completed work is kept.
    """
    began = time.perf_counter()
    color = parse_background(background)
    extent = _check_arguments(manifest, size, fit, workers, limit, broken, shard)
    import_pillow()
    if manifest.samples is None:
        check_paths(manifest.metadata.sources, manifest.root)
    ordered = manifest.ordered(limit)
    part = ordered.select(jobs.shard_rows(len(ordered), shard))
    shape = (len(part), *extent, 3)
    workers = workers or DEFAULT_WORKERS
    plan = {"manifest": part.digest(), "shape": shape, "fit": fit, "background": color}
    with PackJob(jobs.shard_path(target, shard), "images", plan) as job:
        if job.finished is not None:
            return job.publish_finished(began)
        state, fingerprints = _open_state(job, part, shape, workers)
        resumed = int((state == DONE).sum())
        decoder = _Decoder(part, job.folder / IMAGES_FILE, state, fingerprints, extent, fit, color)
        known_checksums = decoder.run(workers, progress)
        unreadable = [(part.metadata.sources[n], decoder.reasons[n]) for n in sorted(decoder.reasons)]
        kept = np.flatnonzero(state == DONE)
        report = job.write_report(unreadable)
        if unreadable and (broken == "error" or (kept.size == 0 and shard[1] == 1)):
            raise BrokenFiles(unreadable, report)
        if unreadable:
            _drop_rows(job, shape, kept)
            known_checksums = {}
        metadata, emptied = select_readable(part.metadata, kept, shard)
        job.notes += (*emptied, *decoder.notes())
        provenance = {
            "spurmix": __version__,
            "root": root_name(manifest.root),
            "size": list(extent),
            "fit": fit,
            "background": list(color),
            "notes": [*manifest.notes, *emptied],
            **jobs.shard_provenance(shard),
            **occurring_provenance(ordered.metadata, shard),
            "broken": len(unreadable),
        }
        job.finish(metadata, provenance, known_checksums={IMAGES_FILE: known_checksums})
    return PackReport(job.target, kept.size, tuple(unreadable), resumed, time.perf_counter() - began, job.notes)


def _check_arguments(
    manifest: Manifest,
    size: int | tuple[int, int],
    fit: str,
    workers: int | None,
    limit: int | None,
    broken: str,
    shard: tuple[int, int],
) -> tuple[int, int]:
    """Check the arguments of `pack_images` and return (height, width)."""
    extent = (size, size) if isinstance(size, int) else size
    if len(extent) != 2 or not all(isinstance(v, int) and 0 < v <= 32767 for v in extent):
        raise ValueError(f"size must be one or two integers in [1, 32767], got {extent!r}")
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    jobs.check_positive(workers=workers, limit=limit)
    jobs.check_broken(broken)
    jobs.check_shard(shard)
    if manifest.kind != "images":
        raise ValueError(f"manifest must contain images, got {manifest.kind}; use pack_texts")
    return extent


def _open_state(
    job: PackJob, part: Manifest, shape: tuple[int, ...], workers: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Open the state of each row, and the fingerprint that its file had when it was read.

    Rows are set to PENDING if they could not be read, or if their file has changed since.
    """
    if job.resumes and (job.folder / DECODED_FILE).is_file():  # killed in `_drop_rows`
        (job.folder / DECODED_FILE).replace(job.folder / IMAGES_FILE)
    fingerprint = part.fingerprints()
    shapes: dict[str, tuple[tuple[int, ...], str]] = {IMAGES_FILE: (shape, "uint8"), STATE_FILE: (shape[:1], "uint8")}
    if fingerprint is not None:
        shapes[FINGERPRINTS_FILE] = (shape[:1], "int64")
    _, state, *rest = job.open_arrays(shapes, direct=(IMAGES_FILE,))
    state[state == UNREADABLE] = PENDING
    if fingerprint is None:
        return state, None
    (fingerprints,) = rest
    done = np.flatnonzero(state == DONE)

    def compare(rows: NDArray[np.int64]) -> None:
        for row in rows.tolist():
            if fingerprints[row] != fingerprint(row):
                state[row] = PENDING

    for _ in run_in_threads(compare, (done[r.start : r.stop] for r in chunks(done.size, 1024)), workers):
        pass
    changed = done.size - int((state == DONE).sum())
    if changed:
        job.notes += (f"{jobs.counted(changed, 'file')} changed since the interrupted job and will be read again",)
    return state, fingerprints


class _Decoder:
    """Decodes all rows in state PENDING into the array file. `reasons` contains the reason for each unreadable row."""

    def __init__(
        self,
        part: Manifest,
        file: Path,
        state: NDArray[np.uint8],
        fingerprints: NDArray[np.int64] | None,
        size: tuple[int, int],
        fit: str,
        background: tuple[int, int, int],
    ) -> None:
        self.file, self.state, self.fingerprints = file, state, fingerprints
        self.size, self.fit, self.background = size, fit, background
        self.reports: Counter[str] = Counter()
        self.read, self.read_with_fingerprint = part.reader(), part.fingerprint_reader()
        self.root = part.root.rstrip("/")
        self.from_array = import_pillow()[0].fromarray
        self.reasons: dict[int, str] = {}
        self._guard = threading.Lock()

    def run(self, workers: int, progress: bool | None) -> dict[int, str]:
        """Decode and write. Returns the checksums of completely written chunks of the file, by number."""
        offset, row_bytes = read_array_header(self.file)[2], 3 * self.size[0] * self.size[1]
        range_rows = max(1, min(RANGE_ROWS, BLOCK_BYTES // row_bytes))
        block_rows = max(1, min(BLOCK_BYTES // row_bytes, BLOCK_ROWS) // range_rows) * range_rows
        num_blocks = 3 + -(-workers * range_rows // block_rows)  # being filled, waiting, and being written
        writer = DirectWriter(self.file, offset, row_bytes, block_rows, num_blocks)
        todo = np.flatnonzero(self.state == PENDING)
        starts = np.flatnonzero(np.diff(todo, prepend=-2) != 1)  # of runs of consecutive rows
        counts = np.diff(starts, append=todo.size)
        runs = zip(todo[starts].tolist(), counts.tolist(), strict=True)
        ranges = (rows for first, count in runs for rows in writer.ranges(first, count, range_rows))
        done = (self.state.size - todo.size) // range_rows
        total = done + int((-(-counts // range_rows)).sum())
        with writer, warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", module=r"PIL\."
            )  # the warnings name no file, and unreadable files are reported
            finished = run_in_threads(lambda rows: self._fill(rows, writer), ranges, workers)
            for _ in bar(finished, "packing", total=total, done=done, size=range_rows, unit="images", shown=progress):
                pass
        return writer.known_checksums

    def _report(self, what: str) -> None:
        with self._guard:
            self.reports[what] += 1

    def notes(self) -> list[str]:
        """Return notes on the images that were decoded."""
        color = "white" if self.background == WHITE else "#" + bytes(self.background).hex()
        texts = {
            TRANSPARENT: f"with transparency placed over {color} (the option background changes it)",
            DEEP: "with 16 bits per channel reduced to the upper 8 bits",
            UNKNOWN_PROFILE: "with an unusable color profile read as sRGB",
        }
        return [f"{jobs.counted(self.reports[k], 'image')} {text}" for k, text in texts.items() if self.reports[k]]

    def _fill(self, rows: WriteRange, writer: DirectWriter) -> None:
        """Decode the images of a range and hand it to the writer."""
        try:
            readable = []
            for k in range(rows.count):
                image = self._decode_row(rows.first + k)
                rows.set_row(k, image)
                if image is not None:
                    readable.append(rows.first + k)
        except BaseException as error:  # the writer must stop after Ctrl-C too
            writer.abort(error)
            raise

        def mark_done() -> None:
            self.state[readable] = DONE

        writer.submit(rows, mark_done)

    def _decode_row(self, row: int) -> Image | None:
        """Return the image of a row, or None with the reason in `reasons`."""
        try:
            item: object
            if self.fingerprints is not None and self.read_with_fingerprint is not None:
                item, self.fingerprints[row] = self.read_with_fingerprint(row)
            else:
                item = self.read(row)
            if item is None:
                raise ImageError("is missing")
            if isinstance(item, bytes):
                return decode_image(item, self.size, self.fit, self.background, self._report)
            return to_rgb_of_size(self.from_array(item), self.size, self.fit, self.background, self._report)
        except (FileError, OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
                raise
            reason = str(error)
            if isinstance(error, FileNotFoundError):
                reason = "there is no such file"
            elif isinstance(error, OSError) and error.strerror and error.filename is not None:
                reason = f"cannot be read: {error.strerror}"
            elif isinstance(error, MemoryError):
                reason = "needs more memory than is available"
            reason = reason.replace(f"{self.root}/", "")  # the report is part of the dataset
            self.state[row] = UNREADABLE
            with self._guard:
                self.reasons[row] = reason
            return None


def _drop_rows(job: PackJob, shape: tuple[int, ...], kept: NDArray[np.int64]) -> None:
    """Write `images.npy` again with the rows `kept` only.

    The complete array stays until the dataset is finished, so after a kill the copy is repeated from the start.
    """
    row_bytes = int(np.prod(shape[1:], dtype=np.int64))
    dropped = jobs.counted(shape[0] - kept.size, "unreadable image")
    job.require_space(kept.size * row_bytes, f"dropping {dropped} (a second copy of the array)")
    images, decoded = job.folder / IMAGES_FILE, job.folder / DECODED_FILE
    images.replace(decoded)
    rows = np.load(decoded, mmap_mode="r", allow_pickle=False)
    with images.open("wb") as file:
        file.write(array_header((kept.size, *shape[1:]), "uint8"))
        for block in chunks(kept.size, max(1, BLOCK_BYTES // row_bytes)):
            file.write(rows[kept[block.start : block.stop]].data)
