"""Putting packed datasets behind one another: what several processes packed, and anything else that fits together."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spurmix.core.ranges import chunks, contiguous
from spurmix.data.dataset import packed as store
from spurmix.data.dataset.packed import ARRAYS, Metadata, PackedDataset
from spurmix.data.pack.job import Job, PackReport, broken_of
from spurmix.data.pack.texts import HEADER, write_tokens

BLOCK = 1 << 24
"""Bytes that are copied at a time."""


def shards_of(target: str | Path) -> list[Path]:
    """The shards of `target` in order, all of them.

    Raises:
        ValueError: for none, or where some are missing or of several numberings.
    """
    place = Path(target)
    pattern = re.compile(re.escape(place.name) + r"\.shard-(\d+)-of-(\d+)")
    there = place.parent.iterdir() if place.parent.is_dir() else []
    found = {(int(m[1]), int(m[2])): p for p in there if (m := pattern.fullmatch(p.name)) and p.is_dir()}
    counts = {count for _, count in found}
    if not found:
        raise ValueError(f"parts: there are no shards {place}.shard-i-of-n")
    if len(counts) > 1:
        raise ValueError(
            f"parts: shards of {place} of {' and '.join(map(str, sorted(counts)))} parts; name those to merge"
        )
    (count,) = counts
    missing = [str(k) for k in range(count) if (k, count) not in found]
    if missing:
        raise ValueError(f"parts: of {count} shards of {place} these are not packed: {', '.join(missing)}")
    return [found[k, count] for k in range(count)]


def merge(parts: Sequence[str | Path], target: str | Path) -> PackReport:
    """Put datasets of one kind and shape, such as shards, behind one another; every byte of them is checked first.

    Raises:
        ValueError: where they do not fit together, naming the one that differs, or one comes twice or in a wrong place.
        DatasetError: for one that is damaged, naming file and bytes. OSError: without space.
    """
    began = time.perf_counter()
    opened = [PackedDataset(path) for path in parts]
    if not opened:
        raise ValueError("parts: need at least one dataset")
    first = opened[0]
    for other in opened[1:]:
        for what, of in (
            ("kind", lambda d: d.kind),
            (f"shape or dtype of its {first.kind}", _row_of),
            ("class names", lambda d: d.metadata.class_names),
            ("attributes", lambda d: d.metadata.attribute_names),
            ("tokenizer or max_length", lambda d: d.made.get("tokens")),
            ("cells", lambda d: d.made.get("cells")),
            ("model", lambda d: d.made.get("model")),
        ):
            if of(other) != of(first):
                raise ValueError(f"{other.path}: its {what} differ from those of {first.path}")
    notes = [*(note for part in opened for note in part.made.get("notes", [])), *_check_order(opened)]
    splits = [name for part in opened for name in part.metadata.splits]
    if not splits:
        raise ValueError("parts: none has any examples")
    if not contiguous(splits):
        raise ValueError("parts: the examples of a split do not lie together; name the parts in their order")
    metadata = Metadata(
        np.concatenate([p.metadata.labels for p in opened]),
        splits,
        [s for p in opened for s in p.metadata.sources],
        {k: np.concatenate([p.metadata.attributes[k] for p in opened]) for k in first.metadata.attributes},
        first.metadata.class_names,
        first.metadata.attribute_names,
    )
    for part in opened:
        part.check()
    failed = [pair for part in opened for pair in broken_of(part)]
    plan = {"merge": [str(p.path) for p in opened], "digests": [p.digest() for p in opened]}
    with Job(target, first.kind, plan) as job:
        if job.finished is not None:
            return job.found(began)
        job.clear()
        (_merge_tokens if first.kind == "tokens" else _merge_rows)(job, opened, len(metadata))
        for name in first.others:
            shutil.copyfile(first.path / name, job.folder / name)
        made = {**first.made, "broken": sum(p.made.get("broken", 0) for p in opened), "parts": len(opened)}
        made.pop("shard", None)
        made["notes"] = list(dict.fromkeys(notes))
        job.report(failed)
        job.finish(metadata, made, first.others)
    return PackReport(Path(target), len(metadata), tuple(failed), 0, time.perf_counter() - began, job.notes)


def _check_order(opened: list[PackedDataset]) -> list[str]:
    """Check that no part comes twice and shards come in order; a note on shards that are not among them."""
    places = [part.path.resolve() for part in opened]
    for n, place in enumerate(places):
        if place in places[:n]:
            raise ValueError(f"parts: {opened[n].path} comes twice")
    shards: list[Any] = [part.made.get("shard") for part in opened]
    known = [shard for shard in shards if shard is not None]
    if not known:
        return []
    for n, (part, shard) in enumerate(zip(opened, shards, strict=True)):
        if shard is None or shard[1] != known[0][1]:
            raise ValueError(f"parts: {part.path} is no shard of {known[0][1]}, as others are")
        if n and shards[n - 1] is not None and shard[0] <= shards[n - 1][0]:
            what = "come twice" if shard[0] == shards[n - 1][0] else "are in the wrong order"
            raise ValueError(
                f"parts: {opened[n - 1].path} (shard {shards[n - 1][0]}) and {part.path} (shard {shard[0]}) {what}"
            )
    missing = sorted(set(range(known[0][1])) - {shard[0] for shard in known})
    return [f"of {known[0][1]} shards these were not merged: {', '.join(map(str, missing))}"] if missing else []


def _row_of(data: PackedDataset) -> Any:
    if data.kind == "tokens":
        return None
    shape, dtype, _ = store.array_header(data.path / ARRAYS[data.kind][0])
    return shape[1:], dtype


def _merge_rows(job: Job, opened: list[PackedDataset], count: int) -> None:
    shape, dtype = _row_of(opened[0])
    whole = job.allocate(ARRAYS[job.kind][0], (count, *shape), dtype.str)
    at, step = 0, max(1, BLOCK // whole[0].nbytes)
    for part in opened:
        for rows in chunks(len(part), step):
            whole[at + rows.start : at + rows.stop] = part.array[rows.start : rows.stop]
        at += len(part)


def _merge_tokens(job: Job, opened: list[PackedDataset], _count: int) -> None:
    lengths = []
    with (job.folder / "tokens.npy").open("wb") as file:
        file.write(bytes(HEADER))
        for part in filter(len, opened):
            source: Any = part.source()
            lengths.append(np.diff(source.offsets))
            for begin in range(0, source.ids.size, BLOCK // 4):
                file.write(source.ids[begin : begin + BLOCK // 4].astype("<i4", copy=False).tobytes())
    write_tokens(job, np.concatenate(lengths))
