"""Putting packed datasets behind one another: what several processes packed, and anything else that fits together."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spurmix.data import store
from spurmix.data.job import Job, PackReport
from spurmix.data.pack_texts import HEADER, write_tokens
from spurmix.data.store import ARRAYS, Metadata, PackedDataset

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
    """Put datasets of one kind and shape, such as shards, behind one another.

    Raises:
        ValueError: where they do not fit together, naming the one that differs. OSError: without space.
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
    with Job(target, first.kind, {"merge": [str(p.path) for p in opened]}) as job:
        job.clear()
        (_merge_tokens if first.kind == "tokens" else _merge_rows)(job, opened, len(metadata))
        for name in first.others:
            shutil.copyfile(first.path / name, job.folder / name)
        made = {**first.made, "broken": sum(p.made.get("broken", 0) for p in opened), "parts": len(opened)}
        made["notes"] = list(dict.fromkeys(note for p in opened for note in p.made.get("notes", [])))
        failed = [pair for part in opened for pair in _broken(part.path / "broken.jsonl")]
        job.report(failed)
        job.finish(metadata, made, first.others)
    return PackReport(Path(target), len(metadata), tuple(failed), 0, time.perf_counter() - began)


def _broken(report: Path) -> list[tuple[str, str]]:
    if not report.is_file():
        return []
    return [(row["source"], row["reason"]) for row in map(json.loads, report.read_text().splitlines())]


def _row_of(data: PackedDataset) -> Any:
    return None if data.kind == "tokens" else (data.array.shape[1:], data.array.dtype)


def _merge_rows(job: Job, opened: list[PackedDataset], count: int) -> None:
    example = opened[0].array
    whole = job.allocate(ARRAYS[job.kind][0], (count, *example.shape[1:]), example.dtype.str)
    at, step = 0, max(1, BLOCK // example[0].nbytes)
    for part in opened:
        for rows in store.chunks(len(part), step):
            whole[at + rows.start : at + rows.stop] = part.array[rows.start : rows.stop]
        at += len(part)


def _merge_tokens(job: Job, opened: list[PackedDataset], _count: int) -> None:
    lengths = []
    with (job.folder / "tokens.npy").open("wb") as file:
        file.write(bytes(HEADER))
        for part in opened:
            source: Any = part.source()
            lengths.append(np.diff(source.offsets))
            for begin in range(0, source.ids.size, BLOCK // 4):
                file.write(source.ids[begin : begin + BLOCK // 4].astype("<i4", copy=False).tobytes())
    write_tokens(job, np.concatenate(lengths))
