"""Features of a frozen encoder as a packed dataset: computed once, by any number of processes, then read by many runs."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spurmix._version import __version__
from spurmix.core.progress import bar
from spurmix.core.ranges import chunks
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack import job as jobs
from spurmix.data.pack.job import DONE, Job, PackReport
from spurmix.data.sources.arrays import ImageSource, Source
from spurmix.data.sources.tokens import TokenSource
from spurmix.train.head import extract_features
from spurmix.train.models import head_layer

BATCHES = 16
"""Batches after which what was computed is kept, whatever happens then."""
DTYPES = ("float32", "float16")


def pack_features(
    model: nn.Module,
    dataset: PackedDataset,
    target: str | Path,
    *,
    name: str = "",
    batch_size: int = 256,
    device: torch.device | str | None = None,
    dtype: str = "float32",
    shard: tuple[int, int] = (0, 1),
    progress: bool | None = None,
) -> PackReport:
    """What the last linear layer of the head takes, for every example of all splits, with the metadata of the dataset.

    Args:
        model, batch_size, device: as for `extract_features`. Images are normalised as `model.config.image_mean` and
            `image_std` say, where they do. name: of the model, for the record.
        target, shard, progress: as for `pack_images`. A job that was killed goes on.
        dtype: "float32" or "float16".

    Raises:
        ValueError: for bad arguments, a dataset of features or one that is damaged, a model that does not take it, features
            that are not finite or too large for float16. OSError: without space; what is done is kept.
    """
    began = time.perf_counter()
    jobs.check_counts(batch_size=batch_size)
    jobs.check_shard(shard)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dataset.kind == "features":
        raise ValueError(f"dataset: {dataset.path} holds features already")
    width = head_layer(model).in_features
    whole = _source(model, dataset)
    if isinstance(whole, TokenSource):
        whole.check_model(model)
    if device is not None:
        model.to(device)
    rows = jobs.shard_rows(len(dataset), shard)
    final = jobs.shard_path(target, shard)
    described = {"name": name, "weights": _digest(model)}
    plan = {"dataset": dataset.digest(), "rows": [int(rows[0]), int(rows[-1])], "model": described}
    with Job(final, "features", plan) as job:
        if job.finished is not None:
            return job.found(began)
        dataset.part(int(rows[0]), int(rows[-1]) + 1).check(progress)
        shape = (rows.size, width)
        features, state = job.arrays({"features.npy": (shape, dtype), "state.npy": (shape[:1], "uint8")})
        resumed = int((state == DONE).sum())
        size = BATCHES * batch_size
        todo = [r for r in chunks(rows.size, size) if (state[r.start : r.stop] != DONE).any()]
        total = -(-rows.size // size)
        for part in bar(todo, "features", total=total, done=total - len(todo), size=size, shown=progress):
            begin, end = int(rows[0]) + part.start, int(rows[0]) + part.stop
            source = _source(model, dataset.part(begin, end))
            found = extract_features(model, source, batch_size=batch_size, device=device, progress=False).numpy()
            with np.errstate(over="ignore"):
                features[part.start : part.stop] = found
            bad = ~np.isfinite(features[part.start : part.stop]).all(axis=1)
            if bad.any():
                row = begin + int(bad.argmax())
                reason = f"do not fit {dtype}" if np.isfinite(found).all() else "are not finite"
                raise ValueError(f"the features of example {row} ({dataset.metadata.sources[row]}) {reason}")
            state[part.start : part.stop] = DONE
        made = {
            "spurmix": __version__,
            "root": str(dataset.path),
            "model": described,
            "cells": dataset.made.get("cells", []),
            "notes": dataset.made.get("notes", []),
            **jobs.made_by(shard),
        }
        job.finish(dataset.metadata.take(rows), made)
    return PackReport(final, int(rows.size), (), resumed, time.perf_counter() - began, job.notes)


def _source(model: nn.Module, dataset: PackedDataset) -> Source:
    if dataset.kind != "images":
        return dataset.source()
    config: Any = getattr(model, "config", None)
    mean, std = (getattr(config, f"image_{what}", None) for what in ("mean", "std"))
    return ImageSource(dataset.array, mean=mean, std=std)


def _digest(model: nn.Module) -> str:
    """A hex digest of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
