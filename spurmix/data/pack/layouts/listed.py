"""Attributes of images from a second table, such as a list of the images that show a spurious feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spurmix.core import checks
from spurmix.core.names import shown
from spurmix.data.pack.layouts.table import column_values, read_table
from spurmix.data.pack.manifest import Manifest, encode_attributes

Unlisted = Literal["unknown", "absent"]
FEATURE = "feature"
"""Name of the attribute of a list of images without attribute columns."""


def with_listed_attributes(
    manifest: Manifest,
    table: str | Path,
    *,
    path: str = "path",
    attributes: Sequence[str] = (),
    unlisted: Unlisted = "unknown",
) -> Manifest:
    """Add attributes from a table with a row for some of the images.

    Without `attributes`, the table is a list of the images that show a spurious feature, such as the images of the masks of
    Salient ImageNet. The attribute "feature" of these images is "present". That of the others is unknown or "absent".

    Args:
        manifest: Images without attributes.
        table: CSV or Parquet file, or its fsspec URL.
        path: Column of the images' paths, relative to the root of the manifest. A file name is enough if it is unique.
        attributes: Columns of the attributes, the spurious one first.
        unlisted: Attribute "feature" of images that a list does not contain: "unknown" or "absent". With attribute columns,
            it is always unknown.

    Returns:
        The images with attributes.

    Raises:
        ValueError: If the table cannot be read, an image is missing, ambiguous or listed twice, or a value is invalid. The
            message names the row.
    """
    checks.choice(unlisted, "unlisted", ("unknown", "absent"))
    if attributes and unlisted == "absent":
        raise ValueError("unlisted: absent is for a list without attribute columns")
    location = str(table)
    rows = read_table(table, [path], [path, *attributes])
    listed = _positions(manifest.metadata.sources, [str(v) for v in column_values(rows, path, location)], location)
    if not listed.size:
        raise ValueError(f"{location} has no rows")
    count = len(manifest.metadata.sources)
    if attributes:
        found, names, notes = encode_attributes({a: column_values(rows, a, location) for a in attributes}, location)
    else:
        found, names, notes = {FEATURE: np.ones(listed.size, dtype=np.int64)}, {FEATURE: ("absent", "present")}, []
    codes: dict[str, NDArray[np.int64]] = {}
    for name, values in found.items():
        codes[name] = np.full(count, 0 if unlisted == "absent" else -1, dtype=np.int64)
        codes[name][listed] = values
    notes.append(f"{location} has {listed.size:,} of {count:,} images")
    metadata = replace(manifest.metadata, attributes=codes, attribute_names=names)
    return replace(manifest, metadata=metadata, notes=(*manifest.notes, *notes))


def _positions(sources: Sequence[str], paths: Sequence[str], location: str) -> NDArray[np.int64]:
    """Number of the image of each row."""
    by_path = {source: n for n, source in enumerate(sources)}
    by_name: dict[str, int] = {}
    for n, source in enumerate(sources):
        name = source.rpartition("/")[2]
        by_name[name] = -1 if name in by_name else n  # -1: ambiguous
    found = np.empty(len(paths), dtype=np.int64)
    first: dict[int, int] = {}
    for row, path in enumerate(paths):
        position = by_path.get(path, by_name.get(path))
        if position is None:
            raise ValueError(f"{location}, row {row}: the dataset has no image {shown(path)}")
        if position < 0:
            raise ValueError(
                f"{location}, row {row}: several images are named {shown(path)}; give the path from the root"
            )
        if position in first:
            raise ValueError(f"{location}, row {row}: {shown(path)} is also in row {first[position]}")
        first[position] = row
        found[row] = position
    return found
