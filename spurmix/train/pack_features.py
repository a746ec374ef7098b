"""`pack_features`: computes the features of a frozen encoder once, as a packed dataset that many runs read."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spurmix._version import __version__
from spurmix.core.progress import bar
from spurmix.core.ranges import chunks
from spurmix.data.dataset.format import Provenance
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack import job as jobs
from spurmix.data.pack.job import DONE, PackJob, PackReport
from spurmix.data.pack.remote import root_name
from spurmix.data.sources.arrays import ImageSource, Source
from spurmix.data.sources.tokens import TokenSource
from spurmix.train.head import extract_features
from spurmix.train.models import head_layer

BATCHES = 16
"""Number of batches after which results are saved. An interruption loses at most these."""
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
    """Write the input of the last linear layer for every example, with the metadata of the dataset.

    If the process is interrupted, call the function again with the same arguments to resume.

    Args:
        model: As for `extract_features`. If the model's configuration has `image_mean` and `image_std`, images are
            normalized with them.
        dataset: A packed dataset of images or texts.
        target: Folder to create, as for `pack_images`.
        name: Name of the model, stored in the dataset.
        batch_size: Examples of a batch.
        device: Device of the model. Default: its current device.
        dtype: "float32" or "float16".
        shard: (i, n) computes the i-th of n parts.
        progress: Whether to show a progress bar. Default: only on a terminal.

    Returns:
        What was packed.

    Raises:
        ValueError: If an argument is invalid, the model does not accept the dataset, or features are not finite or too
            large for float16.
        DatasetError: If the dataset is damaged.
        OSError: If the disk is full. Completed work is kept.
    """
    began = time.perf_counter()
    jobs.check_positive(batch_size=batch_size)
    jobs.check_shard(shard)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dataset.kind == "features":
        raise ValueError(f"dataset must hold images or texts, {dataset.path} holds features")
    width = head_layer(model).in_features
    whole = _open_source(model, dataset)
    if isinstance(whole, TokenSource):
        whole.check_model(model)
    if device is not None:
        model.to(device)
    rows = jobs.shard_rows(len(dataset), shard)
    described = {"name": root_name(name), "weights": _weights_digest(model)}
    plan = {"dataset": dataset.digest(), "rows": [int(rows[0]), int(rows[-1])], "model": described}
    part = dataset.part(int(rows[0]), int(rows[-1]) + 1)
    with PackJob(jobs.shard_path(target, shard), "features", plan) as job:
        if job.finished is not None:
            return job.publish_finished(began)
        part.check(progress)
        shape = (rows.size, width)
        features, state = job.open_arrays({"features.npy": (shape, dtype), "state.npy": (shape[:1], "uint8")})
        resumed = int((state == DONE).sum())
        size = BATCHES * batch_size
        todo = [r for r in chunks(rows.size, size) if (state[r.start : r.stop] != DONE).any()]
        total = -(-rows.size // size)
        for block in bar(todo, "features", total=total, done=total - len(todo), size=size, shown=progress):
            source = _open_source(model, part.part(block.start, block.stop))
            found = extract_features(model, source, batch_size=batch_size, device=device, progress=False).numpy()
            with np.errstate(over="ignore"):
                features[block.start : block.stop] = found
            _check_finite(found, features[block.start : block.stop], block.start, part)
            state[block.start : block.stop] = DONE
        job.finish(part.metadata, {**_provenance(dataset, described), **jobs.shard_provenance(shard)})
    return PackReport(job.target, rows.size, (), resumed, time.perf_counter() - began, job.notes)


def _check_finite(
    computed: NDArray[np.floating], stored: NDArray[np.floating], first: int, part: PackedDataset
) -> None:
    """Check that the features of rows from `first` of `part` are finite, as computed and as stored."""
    invalid = ~np.isfinite(stored).all(axis=1)
    if invalid.any():
        row = first + int(invalid.argmax())
        reason = f"are too large for {stored.dtype}" if np.isfinite(computed).all() else "are not finite"
        raise ValueError(f"model: the features of example {part.begin + row} ({part.metadata.sources[row]}) {reason}")


def _provenance(dataset: PackedDataset, model: dict[str, str]) -> Provenance:
    return {
        "spurmix": __version__,
        "root": root_name(dataset.path),
        "model": model,
        "cells": dataset.provenance.get("cells", []),
        "notes": dataset.provenance.get("notes", []),
    }


def _open_source(model: nn.Module, dataset: PackedDataset) -> Source:
    if dataset.kind != "images":
        return dataset.source()
    config: object = getattr(model, "config", None)
    mean, std = (getattr(config, f"image_{statistic}", None) for statistic in ("mean", "std"))
    return ImageSource(dataset.array, mean=mean, std=std)


def _weights_digest(model: nn.Module) -> str:
    """Return a hex digest of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
