"""`pack_texts`: tokenizes texts into a packed dataset, which also contains the tokenizer's files.

Ids are appended to `tokens.npy` in chunks, then the lengths of the texts to `lengths.bin`. A resumed job truncates both
files to the last complete chunk. Length 0 marks a text that cannot be packed. The header of `tokens.npy` is written at
the end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spurmix._version import __version__
from spurmix.data.dataset import tokenize
from spurmix.data.dataset.format import array_header
from spurmix.data.dataset.tokenizer_files import load_tokenizer, require_fast, tokenizer_files
from spurmix.data.pack import job as jobs
from spurmix.data.pack.job import BrokenFiles, PackJob, PackReport
from spurmix.data.pack.manifest import Manifest
from spurmix.data.pack.remote import root_name
from spurmix.data.pack.strays import occurring_provenance, select_readable

if TYPE_CHECKING:
    from spurmix.data.dataset.tokenize import TokenizerLike

LENGTHS_FILE = "lengths.bin"
HEADER_BYTES = 128
"""Size of the header of a one-dimensional `.npy` file."""


def pack_texts(
    manifest: Manifest,
    target: str | Path,
    tokenizer: TokenizerLike | str | Path,
    *,
    max_length: int | None = None,
    limit: int | None = None,
    broken: str = "error",
    shard: tuple[int, int] = (0, 1),
    progress: bool | None = None,
) -> PackReport:
    """Tokenize the texts of a manifest and write them as a packed dataset, sorted by split.

    The ids equal those of `TokenSource.from_texts`. If the process is interrupted, call the function again with the same
    arguments to resume.

    Args:
        manifest: The texts and their metadata.
        target: Folder to create, as for `pack_images`.
        tokenizer: A fast tokenizer of transformers, a `tokenizers.Tokenizer`, or the folder of one.
        max_length: Maximum number of tokens of a text. Default: the tokenizer's limit, if it has one.
        limit: Maximum number of examples of each split. Default: all.
        broken: "error" or "skip", as for `pack_images`. A text is unreadable if it is missing, has a lone surrogate, or
            has no tokens.
        shard: (i, n) packs the i-th of n parts.
        progress: Whether to show a progress bar. Default: only on a terminal.

    Returns:
        What was packed.

    Raises:
        TypeError: If the tokenizer is not a fast one.
        ValueError: If an argument is invalid, or the target exists or cannot be written.
        BrokenFiles: If texts are unreadable and `broken` is "error", or all are unreadable.
        OSError: If the disk is full. Completed work is kept.
    """
    began = time.perf_counter()
    jobs.check_positive(max_length=max_length, limit=limit)
    jobs.check_broken(broken)
    jobs.check_shard(shard)
    if manifest.kind != "texts" or manifest.samples is None:
        raise ValueError(f"manifest must contain texts, got {manifest.kind}; use pack_images")
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer
    require_fast(loaded)
    if max_length is None:
        max_length = tokenize.model_max_length(loaded)
    files, settings = tokenizer_files(loaded, max_length), _token_settings(loaded, max_length)
    ordered = manifest.ordered(limit)
    part = ordered.select(jobs.shard_rows(len(ordered), shard))
    plan = {
        "manifest": part.digest(),
        "tokens": settings,
        "direction": str(getattr(loaded, "truncation_side", "right")),
    }
    with PackJob(jobs.shard_path(target, shard), "tokens", plan) as job:
        if job.finished is not None:
            return job.publish_finished(began)
        texts = _TextChunks(part.reader(), len(part))
        lengths, resumed = _tokenize(job, texts, loaded, max_length, progress)
        unreadable = [(part.metadata.sources[n], texts.reason(n)) for n in np.flatnonzero(lengths == 0).tolist()]
        report = job.write_report(unreadable)
        if unreadable and (broken == "error" or (len(unreadable) == len(part) and shard[1] == 1)):
            raise BrokenFiles(unreadable, report, "text")
        kept = np.flatnonzero(lengths > 0)
        complete_tokens(job, lengths[kept])
        for name, content in files.items():
            (job.folder / name).write_text(content, encoding="utf-8")
        metadata, emptied = select_readable(part.metadata, kept, shard)
        job.notes += tuple(emptied)
        provenance = {
            "spurmix": __version__,
            "root": root_name(manifest.root),
            "tokens": settings,
            "cells": list(manifest.cells),
            "broken": len(unreadable),
            "notes": [*manifest.notes, *emptied],
            **jobs.shard_provenance(shard),
            **occurring_provenance(ordered.metadata, shard),
        }
        job.finish(metadata, provenance, files)
    return PackReport(job.target, kept.size, tuple(unreadable), resumed, time.perf_counter() - began, job.notes)


def _token_settings(tokenizer: TokenizerLike, max_length: int | None) -> dict[str, int | str | None]:
    """Return the settings of a `TokenSource`, as the dataset stores them."""
    pad, sep = tokenize.special_ids(tokenizer)
    settings = {
        "vocab_size": tokenize.vocabulary_size(tokenizer),
        "pad_id": pad,
        "sep_id": sep,
        "max_length": max_length,
        "tokenizer": tokenize.tokenizer_fingerprint(tokenizer),
    }
    side = tokenize.padding_side(tokenizer)
    # Earlier versions read datasets that are padded on the right.
    return settings if side == "right" else {**settings, "padding_side": side}


class _TextChunks:
    """The texts of a manifest, in chunks. Texts that cannot be tokenized are replaced by empty ones."""

    def __init__(self, read: Callable[[int], object], count: int) -> None:
        self.read, self.count = read, count

    def _problem(self, text: object) -> str | None:
        """Return why a text cannot be tokenized, or None."""
        if text is None:
            return "is missing"
        if not isinstance(text, str):
            return f"must be a string, got {type(text).__name__}"
        return tokenize.encoding_error(text)

    def chunk(self, start: int) -> tuple[list[str], list[bool]]:
        """Return the texts of a chunk, and which of them cannot be tokenized."""
        texts = [self.read(n) for n in range(start, min(start + tokenize.CHUNK, self.count))]
        invalid = [self._problem(text) is not None for text in texts]
        return ["" if bad else str(text) for text, bad in zip(texts, invalid, strict=True)], invalid

    def reason(self, n: int) -> str:
        """Return why text n cannot be packed."""
        return self._problem(self.read(n)) or tokenize.NO_TOKENS


def _tokenize(
    job: PackJob, texts: _TextChunks, tokenizer: TokenizerLike, max_length: int | None, progress: bool | None
) -> tuple[NDArray[np.int64], int]:
    """Return the number of tokens of each text, int64 `[N]`, 0 if it is unreadable, and the number of resumed texts."""
    resumed = _resume(job, texts.count)
    begin = resumed.size
    lengths = np.zeros(texts.count, dtype=np.int64)
    lengths[:begin] = resumed
    invalid: dict[int, list[bool]] = {}

    def read_chunk(start: int) -> list[str]:
        found, invalid[start] = texts.chunk(start)
        return found

    with (job.folder / "tokens.npy").open("ab") as tokens, (job.folder / LENGTHS_FILE).open("ab") as journal:
        for start, sizes, ids in tokenize.encode_chunks(
            read_chunk, texts.count, tokenizer, max_length, progress, begin
        ):
            bad = np.array(invalid.pop(start))
            if bad.any():
                ids, sizes = ids[np.repeat(~bad, sizes)], np.where(bad, 0, sizes)
            tokens.write(ids.tobytes())
            tokens.flush()  # before the lengths, which must not count unwritten ids
            journal.write(sizes.astype("<i4").tobytes())
            journal.flush()
            lengths[start : start + sizes.size] = sizes
    return lengths, begin


def _resume(job: PackJob, count: int) -> NDArray[np.int32]:
    """Return the lengths of the texts in complete chunks, and truncate both files there. Otherwise start over."""
    tokens, journal = job.folder / "tokens.npy", job.folder / LENGTHS_FILE
    if job.resumes and tokens.is_file() and journal.is_file():
        lengths = np.fromfile(journal, dtype="<i4", count=journal.stat().st_size // 4)[:count]
        if lengths.size < count:
            lengths = lengths[: lengths.size // tokenize.CHUNK * tokenize.CHUNK]
        end = HEADER_BYTES + 4 * int(lengths.sum(dtype=np.int64))
        if lengths.size and lengths.min() >= 0 and tokens.stat().st_size >= end:
            os.truncate(tokens, end)
            os.truncate(journal, 4 * lengths.size)
            return lengths
    job.clear()
    tokens.write_bytes(bytes(HEADER_BYTES))
    journal.touch()
    job.write_plan()
    return np.empty(0, dtype=np.int32)


def complete_tokens(job: PackJob, lengths: NDArray[np.int64]) -> None:
    """Write `token_offsets.npy` and the header of `tokens.npy`. The ids are already written.

    Args:
        job: The job.
        lengths: Number of tokens of each text, int64 `[N]`.
    """
    offsets = job.create_array("token_offsets.npy", (lengths.size + 1,), "int64")
    np.cumsum(lengths, out=offsets[1:])
    header = array_header((int(offsets[-1]),), "<i4")
    assert len(header) == HEADER_BYTES  # NumPy pads the header, so its size does not depend on the count
    with (job.folder / "tokens.npy").open("r+b") as file:
        file.write(header)
