"""`merge`: joins packed datasets, such as shards."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import cast

import numpy as np

from spurmix.core.names import similarity_notes
from spurmix.core.ranges import chunks, contiguous
from spurmix.data.dataset.format import ARRAY_FILES, Metadata, read_array_header
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack.job import PackJob, PackReport, read_report
from spurmix.data.pack.remote import root_name
from spurmix.data.pack.strays import drop_absent
from spurmix.data.pack.texts import HEADER_BYTES, complete_tokens

BLOCK_BYTES = 1 << 24
"""Bytes that are copied at a time."""


def shards_of(target: str | Path) -> list[Path]:
    """Return the folders of all shards of `target`, in order.

    Args:
        target: The folder that was given when the shards were packed.

    Returns:
        `<target>.shard-0-of-n` to `<target>.shard-(n - 1)-of-n`.

    Raises:
        ValueError: If there are none, some are missing, or there are shards of different numbers n.
    """
    path = Path(target)
    pattern = re.compile(re.escape(path.name) + r"\.shard-(\d+)-of-(\d+)")
    siblings = path.parent.iterdir() if path.parent.is_dir() else []
    found = {(int(m[1]), int(m[2])): p for p in siblings if (m := pattern.fullmatch(p.name)) and p.is_dir()}
    counts = {count for _, count in found}
    if not found:
        raise ValueError(f"parts: there are no shards {path}.shard-i-of-n")
    if len(counts) > 1:
        numbers = " and ".join(map(str, sorted(counts)))
        raise ValueError(f"parts: there are shards of {path} with n = {numbers}; name the folders to merge")
    (count,) = counts
    missing = [str(k) for k in range(count) if (k, count) not in found]
    if missing:
        raise ValueError(f"parts: shards {', '.join(missing)} of {count} of {path} are not packed; pack them first")
    return [found[k, count] for k in range(count)]


def merge(parts: Sequence[str | Path], target: str | Path) -> PackReport:
    """Join packed datasets of the same kind and shape, such as shards. All bytes are verified first.

    Args:
        parts: Folders of the datasets, in order.
        target: Folder to create.

    Returns:
        What was packed.

    Raises:
        ValueError: If the datasets do not fit together, one is given twice, or shards are in the wrong order.
        DatasetError: If one is damaged. The message names the file and the bytes.
        OSError: If the disk is full.
    """
    began = time.perf_counter()
    opened = [PackedDataset(path) for path in parts]
    if not opened:
        raise ValueError("parts must contain at least one dataset, got none")
    first = opened[0]
    for other in opened[1:]:
        _check_same(first, other)
    incomplete = _check_shards(opened)
    metadata, emptied = drop_absent(_join_metadata(opened), _expected(opened))
    splits = [name for part in opened for name in part.splits]
    new_notes = (*incomplete, *emptied, *similarity_notes(splits, "splits"))
    notes = [*(note for part in opened for note in part.provenance.get("notes", [])), *new_notes]
    for part in opened:
        part.check()
    unreadable = [entry for part in opened for entry in read_report(part)]
    plan = {"merge": [p.path.name for p in opened], "digests": [p.digest() for p in opened]}
    with PackJob(target, first.kind, plan) as job:
        if job.finished is not None:
            return job.publish_finished(began)
        job.clear()
        job.notes += new_notes
        (_merge_tokens if first.kind == "tokens" else _merge_rows)(job, opened, len(metadata))
        for name in first.extra_files:
            shutil.copyfile(first.path / name, job.folder / name)
        broken = sum(p.provenance.get("broken", 0) for p in opened)
        provenance = {**first.provenance, "broken": broken, "parts": len(opened)}
        if "root" in provenance:  # earlier versions wrote the path
            provenance["root"] = root_name(provenance["root"])
        for key in ("shard", "occurring"):
            provenance.pop(key, None)
        provenance["notes"] = list(dict.fromkeys(notes))
        job.write_report(unreadable)
        job.finish(metadata, provenance, first.extra_files)
    return PackReport(Path(target), len(metadata), tuple(unreadable), 0, time.perf_counter() - began, job.notes)


def _check_same(first: PackedDataset, other: PackedDataset) -> None:
    """Check that two datasets can be joined."""
    properties: list[tuple[str, Callable[[PackedDataset], object]]] = [
        ("kind", lambda d: d.kind),
        (f"shape or dtype of the {first.kind}", _row_layout),
        ("tokenizer or max_length", lambda d: d.provenance.get("tokens")),
        ("cells", lambda d: d.provenance.get("cells")),
        ("model", lambda d: d.provenance.get("model")),
    ]
    for name, value_of in properties:
        if value_of(other) != value_of(first):
            raise ValueError(f"parts: {name} of {other.path} must be the same as of {first.path}")
    known, found = first.metadata, other.metadata
    _check_names("class names", found.class_names, known.class_names, first, other)
    _check_names("attributes", sorted(found.attribute_names), sorted(known.attribute_names), first, other)
    for name, values in known.attribute_names.items():
        _check_names(f"names of attribute {name!r}", found.attribute_names[name], values, first, other)


def _check_names(
    what: str, found: Sequence[str], expected: Sequence[str], first: PackedDataset, other: PackedDataset
) -> None:
    """Check that names and their numbers are the same. The message shows the first difference."""
    for k, (name, known) in enumerate(zip_longest(found, expected)):
        if name != known:
            shown = ["missing" if value is None else ascii(value) for value in (name, known)]
            raise ValueError(
                f"parts: {what} of {other.path} must be the same as of {first.path}, in the same order: number {k} is "
                f"{shown[0]} and {shown[1]}; pack both with the same names"
            )


def _join_metadata(opened: list[PackedDataset]) -> Metadata:
    first = opened[0].metadata
    splits = [name for part in opened for name in part.metadata.splits]
    if not splits:
        raise ValueError("parts: the datasets have no examples")
    if not contiguous(splits):
        raise ValueError("parts: the examples of a split are not contiguous; give the parts in order")
    return Metadata(
        np.concatenate([p.metadata.labels for p in opened]),
        splits,
        [s for p in opened for s in p.metadata.sources],
        {k: np.concatenate([p.metadata.attributes[k] for p in opened]) for k in first.attributes},
        first.class_names,
        first.attribute_names,
    )


def _check_shards(opened: list[PackedDataset]) -> list[str]:
    """Check that no part is given twice and shards are in order. Returns a note on missing shards."""
    paths = [part.path.resolve() for part in opened]
    for n, path in enumerate(paths):
        if path in paths[:n]:
            raise ValueError(f"parts: {opened[n].path} is given twice")
    shards: list[list[int] | None] = [part.provenance.get("shard") for part in opened]
    count = next((shard[1] for shard in shards if shard is not None), None)
    if count is None:
        return []
    numbers: list[int] = []
    for part, shard in zip(opened, shards, strict=True):
        if shard is None or shard[1] != count:
            raise ValueError(f"parts: {part.path} is not one of {count} shards, as other parts are")
        if numbers and shard[0] <= numbers[-1]:
            before = opened[len(numbers) - 1].path
            problem = "are the same shard" if shard[0] == numbers[-1] else "are in the wrong order"
            raise ValueError(f"parts: {before} (shard {numbers[-1]}) and {part.path} (shard {shard[0]}) {problem}")
        numbers.append(shard[0])
    missing = sorted(set(range(count)) - set(numbers))
    return [f"shards {', '.join(map(str, missing))} of {count} were not merged"] if missing else []


def _expected(opened: list[PackedDataset]) -> dict[str, list[int]]:
    """Return the codes that occur in all shards together, before unreadable examples were skipped."""
    numbers = {part.provenance["shard"][0] for part in opened if "shard" in part.provenance}
    occurring = opened[0].provenance.get("occurring")
    if occurring is None or len(numbers) != opened[0].provenance["shard"][1]:
        return {}
    return cast(dict[str, list[int]], occurring)


def _row_layout(data: PackedDataset) -> tuple[tuple[int, ...], np.dtype[np.generic]] | None:
    """Return shape and dtype of a row, or None for tokens."""
    if data.kind == "tokens":
        return None
    shape, dtype, _ = read_array_header(data.path / ARRAY_FILES[data.kind][0])
    return shape[1:], dtype


def _merge_rows(job: PackJob, opened: list[PackedDataset], count: int) -> None:
    name = ARRAY_FILES[job.kind][0]
    shape, dtype, _ = read_array_header(opened[0].path / name)
    whole = job.create_array(name, (count, *shape[1:]), dtype.str)
    begin, step = 0, max(1, BLOCK_BYTES // whole[0].nbytes)
    for part in opened:
        for rows in chunks(len(part), step):
            whole[begin + rows.start : begin + rows.stop] = part.array[rows.start : rows.stop]
        begin += len(part)


def _merge_tokens(job: PackJob, opened: list[PackedDataset], _count: int) -> None:
    lengths = []
    with (job.folder / "tokens.npy").open("wb") as file:
        file.write(bytes(HEADER_BYTES))
        for part in opened:
            ids, offsets = part.memory_map(0), part.memory_map(1)
            lengths.append(np.diff(offsets))
            for begin in range(0, ids.size, BLOCK_BYTES // 4):
                file.write(ids[begin : begin + BLOCK_BYTES // 4].astype("<i4", copy=False).tobytes())
    complete_tokens(job, np.concatenate(lengths))
