"""Layout `celeba`: CelebA as published (Liu et al. 2015, arXiv 1411.7766)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spurmix.core.names import shown
from spurmix.data.dataset.format import Metadata
from spurmix.data.pack.layouts.table import column_values, read_table
from spurmix.data.pack.manifest import Manifest, check_paths, numbered_splits
from spurmix.data.pack.remote import join_url
from spurmix.data.pack.strays import without_strays


def from_celeba(root: str | Path, *, target: str = "Blond_Hair", attributes: Sequence[str] = ("Male",)) -> Manifest:
    """Read CelebA: `list_attr_celeba.csv`, `list_eval_partition.csv` and the folder `img_align_celeba`.

    Args:
        root: Folder or fsspec URL.
        target: Column that is the label.
        attributes: Columns of the attributes, the spurious one first.

    Returns:
        The images.

    Raises:
        ValueError: If a table cannot be read or has an invalid value. The message names row and column.
    """
    location, partition_location = (
        join_url(root, name) for name in ("list_attr_celeba.csv", "list_eval_partition.csv")
    )
    table, partitions = (read_table(name, ["image_id"]) for name in (location, partition_location))
    files = [str(v) for v in column_values(table, "image_id", location)]
    partition_of = dict(
        zip(
            map(str, column_values(partitions, "image_id", partition_location)),
            column_values(partitions, "partition", partition_location),
            strict=True,
        )
    )
    for n, name in enumerate(files):
        if name not in partition_of:
            raise ValueError(f"{location}, row {n}: {shown(name)} has no partition in {partition_location}")

    def is_positive(column: str) -> NDArray[np.int64]:
        values = column_values(table, column, location)
        for n, value in enumerate(values):
            if value not in (-1, 0, 1):
                raise ValueError(f"{location}, row {n}: {column} must be -1 or 1, got {shown(value)}")
        return np.array([value == 1 for value in values], dtype=np.int64)

    sources = [f"img_align_celeba/{name}" for name in files]
    check_paths(sources, location)
    splits = numbered_splits([partition_of[name] for name in files], partition_location, "partition")
    metadata = Metadata(
        is_positive(target),
        splits,
        sources,
        {name: is_positive(name) for name in attributes},
        (f"not {target}", target),
        {name: (f"not {name}", name) for name in attributes},
    )
    return without_strays(Manifest(str(root), metadata))
