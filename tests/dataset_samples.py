"""Packed datasets of arrays, and a loader of a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spurmix import GroupIndex, MixLoader, PackedDataset, policies
from spurmix.data.dataset import format as store
from spurmix.data.dataset.format import Metadata


def write_dataset(folder: Path, array: np.ndarray[Any, Any], kind: str = "images") -> PackedDataset:
    """Write a dataset of an array without attributes. Two thirds are the training split."""
    folder.mkdir()
    np.save(folder / store.ARRAY_FILES[kind][0], array)
    count = len(array)
    metadata = Metadata(
        np.arange(count) % 2, ["train"] * (2 * count // 3) + ["test"] * (count - 2 * count // 3),
        [str(n) for n in range(count)], {}, ("a", "b"), {},
    )  # fmt: skip
    store.write_metadata(folder, metadata)
    store.write_description(folder, kind, metadata, {})
    return PackedDataset(folder)


def loader(source: Any, count: int = 60, size: int = 8, steps: int = 9, **options: Any) -> MixLoader:
    """A loader of `count` examples in four groups."""
    groups = GroupIndex(np.arange(count) % 2, np.arange(count) // 2 % 2)
    return MixLoader(source, groups, policies.lisa(), size, seed=3, steps=steps, **options)
