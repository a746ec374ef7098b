"""Layout `waterbirds`: Waterbirds as published (Sagawa et al. 2020, arXiv 1911.08731)."""

from __future__ import annotations

from pathlib import Path

from spurmix.data.dataset.format import Metadata
from spurmix.data.pack.layouts.table import column_values, read_table
from spurmix.data.pack.manifest import Manifest, check_paths, encode_attributes, encode_column, numbered_splits
from spurmix.data.pack.remote import join_url
from spurmix.data.pack.strays import without_strays


def from_waterbirds(root: str | Path) -> Manifest:
    """Read Waterbirds: `metadata.csv` with img_filename, y, split (0, 1 or 2) and place.

    Args:
        root: Folder or fsspec URL of `metadata.csv` and the images.

    Returns:
        The images with attribute "place".

    Raises:
        ValueError: If the table cannot be read or has an invalid value. The message names row and column.
    """
    location = join_url(root, "metadata.csv")
    table = read_table(location, ["img_filename"])
    sources = [str(v) for v in column_values(table, "img_filename", location)]
    check_paths(sources, location)
    labels, _, _ = encode_column(column_values(table, "y", location), location, "y")
    codes, _, notes = encode_attributes({"place": column_values(table, "place", location)}, location)
    splits = numbered_splits(column_values(table, "split", location), location, "split")
    if not sources:
        raise ValueError(f"{location} has no rows")
    for name, values in (("y", labels), ("place", codes["place"])):
        if values.max() > 1:
            raise ValueError(f"{location}, row {int(values.argmax())}: {name} must be 0 or 1, got {values.max()}")
    metadata = Metadata(labels, splits, sources, codes, ("landbird", "waterbird"), {"place": ("land", "water")})
    return without_strays(Manifest(str(root), metadata, tuple(notes)))
