"""Packing texts: strings through a tokenizer into a PackedDataset, whose folder the tokenizer's files travel in.

Ids are appended chunk by chunk to `tokens.npy`, whose header is written at the end, then their counts to a journal: a job
that was killed cuts off what the journal does not know and goes on. 0 in the journal is a text that cannot be packed.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spurmix._version import __version__
from spurmix.data.dataset import tokenize as tokenise
from spurmix.data.dataset import tokenizer_files as tokenizers
from spurmix.data.pack import job as jobs
from spurmix.data.pack.job import BrokenFiles, Job, PackReport
from spurmix.data.pack.manifest import Listing

JOURNAL = "lengths.bin"
HEADER = 128
"""Bytes of the header of an `.npy` file of one dimension."""


def pack_texts(
    listing: Listing,
    target: str | Path,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    limit: int | None = None,
    broken: str = "error",
    shard: tuple[int, int] = (0, 1),
    progress: bool | None = None,
) -> PackReport:
    """Tokenise the texts of `listing` and write them as a packed dataset, examples of a split together.

    The ids are those of `TokenSource.from_texts`.

    Args:
        target, limit, broken, shard, progress: as for `pack_images`. Broken is a text that is missing, holds a lone
            surrogate, or has no tokens.
        tokenizer: a fast one of transformers, a `tokenizers.Tokenizer`, or the folder of one.
        max_length: tokens that are kept of a longer text; default: what the tokenizer says its model takes, if it does.

    Raises:
        TypeError, ValueError: for bad arguments, a target that exists or cannot be written, broken texts, by their source.
        OSError: without space; what is done is kept.
    """
    began = time.perf_counter()
    jobs.check_counts(max_length=max_length, limit=limit)
    jobs.check_broken(broken)
    jobs.check_shard(shard)
    if listing.kind != "texts" or listing.content is None:
        raise ValueError(f"listing holds {listing.kind}; see pack_images")
    if isinstance(tokenizer, (str, Path)):
        tokenizer = tokenizers.load_tokenizer(tokenizer)
    tokenizers.backend_of(tokenizer)
    longest = max_length if max_length is not None else tokenise.model_max_length(tokenizer)
    files = tokenizers.files(tokenizer, longest)
    pad, sep = tokenise.special_ids(tokenizer)
    settings = {
        "vocab_size": tokenise.vocabulary_size(tokenizer),
        "pad_id": pad,
        "sep_id": sep,
        "max_length": longest,
        "tokenizer": tokenise.tokenizer_fingerprint(tokenizer),
    }
    ordered = listing.ordered(limit)
    part = ordered.take(jobs.shard_rows(len(ordered), shard))
    final = jobs.shard_path(target, shard)
    plan = {
        "listing": jobs.digest_of(part.root, part.metadata, listing.content.digest()),
        "tokens": settings,
        "direction": str(getattr(tokenizer, "truncation_side", "right")),
    }
    with Job(final, "tokens", plan) as job:
        if job.finished is not None:
            return job.found(began)
        texts = _Texts(part.reader(), len(part))
        lengths, resumed = _tokenise(job, texts, tokenizer, longest, progress)
        failed = [(part.metadata.sources[n], texts.reason(n)) for n in np.flatnonzero(lengths == 0).tolist()]
        report = job.report(failed)
        if failed and (broken == "error" or (len(failed) == len(part) and shard[1] == 1)):
            raise BrokenFiles(failed, report, "text")
        kept = np.flatnonzero(lengths > 0)
        write_tokens(job, lengths[kept])
        for name, text in files.items():
            (job.folder / name).write_text(text, encoding="utf-8")
        made = {
            "spurmix": __version__,
            "root": listing.root,
            "tokens": settings,
            "cells": list(listing.cells),
            "broken": len(failed),
            "notes": list(listing.notes),
            **jobs.made_by(shard),
        }
        job.finish(part.metadata.take(kept), made, files)
    return PackReport(final, int(kept.size), tuple(failed), resumed, time.perf_counter() - began, job.notes)


class _Texts:
    """The texts of a listing by chunks; those that no tokenizer can read are empty."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self.read, self.count = read, count

    def broken(self, text: Any) -> str | None:
        if text is None:
            return "is missing"
        if not isinstance(text, str):
            return f"must be a string, got {type(text).__name__}"
        return tokenise.unreadable(text)

    def chunk(self, start: int) -> list[str]:
        texts = [self.read(n) for n in range(start, min(start + tokenise.CHUNK, self.count))]
        self.unreadable = [self.broken(text) is not None for text in texts]
        return ["" if bad else text for text, bad in zip(texts, self.unreadable, strict=True)]

    def reason(self, n: int) -> str:
        """Why text n has no place."""
        return self.broken(self.read(n)) or tokenise.NO_TOKENS


def _tokenise(
    job: Job, texts: _Texts, tokenizer: Any, max_length: int | None, progress: bool | None
) -> tuple[NDArray[np.int64], int]:
    """Tokens of each text, int64 `[N]`, 0 of those that are broken, and how many were made before."""
    lengths = _resumed(job, texts.count)
    begin = lengths.size
    result = np.zeros(texts.count, dtype=np.int64)
    result[:begin] = lengths
    unreadable: dict[int, list[bool]] = {}

    def chunk(start: int) -> list[str]:
        found = texts.chunk(start)
        unreadable[start] = texts.unreadable
        return found

    with (job.folder / "tokens.npy").open("ab") as tokens, (job.folder / JOURNAL).open("ab") as journal:
        for start, sizes, ids in tokenise.encode_chunks(chunk, texts.count, tokenizer, max_length, progress, begin):
            bad = np.array(unreadable.pop(start))
            if bad.any():
                ids, sizes = ids[np.repeat(~bad, sizes)], np.where(bad, 0, sizes)
            tokens.write(ids.tobytes())
            tokens.flush()  # before the journal knows of them
            journal.write(sizes.astype("<i4").tobytes())
            journal.flush()
            result[start : start + sizes.size] = sizes
    return result, begin


def _resumed(job: Job, count: int) -> NDArray[np.int32]:
    """Tokens of each text that is done, whole chunks of them; both files are cut there, or begun."""
    tokens, journal = job.folder / "tokens.npy", job.folder / JOURNAL
    if job.resumes and tokens.is_file() and journal.is_file():
        lengths = np.fromfile(journal, dtype="<i4", count=journal.stat().st_size // 4)[:count]
        if lengths.size < count:
            lengths = lengths[: lengths.size // tokenise.CHUNK * tokenise.CHUNK]
        end = HEADER + 4 * int(lengths.sum(dtype=np.int64))
        if lengths.size and lengths.min() >= 0 and tokens.stat().st_size >= end:
            os.truncate(tokens, end)
            os.truncate(journal, 4 * lengths.size)
            return lengths
    job.clear()
    tokens.write_bytes(bytes(HEADER))
    journal.touch()
    job.begin()
    return np.empty(0, dtype=np.int32)


def write_tokens(job: Job, lengths: NDArray[np.int64]) -> None:
    """Finish `tokens.npy`, behind whose header the ids lie, and write `token_offsets.npy`; lengths int64 `[N]`."""
    offsets = job.allocate("token_offsets.npy", (lengths.size + 1,), "int64")
    np.cumsum(lengths, out=offsets[1:])
    head = io.BytesIO()
    description = {"descr": "<i4", "fortran_order": False, "shape": (int(offsets[-1]),)}
    np.lib.format.write_array_header_1_0(head, description)
    assert head.tell() == HEADER  # NumPy leaves room for any count
    with (job.folder / "tokens.npy").open("r+b") as file:
        file.write(head.getvalue())
