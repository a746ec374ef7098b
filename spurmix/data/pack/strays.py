"""Examples that are left out: hidden files and files of operating systems, and the names that are then unused."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spurmix.data.dataset.format import Metadata, Provenance
from spurmix.data.pack.job import counted
from spurmix.data.pack.manifest import Manifest

STRAY_NAMES = frozenset(
    {
        "__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
        "thumbs.db:encryptable", "network trash folder", "temporary items", "$recycle.bin", "system volume information",
        "lost+found", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "icon\r",
    }
)  # fmt: skip
"""Names of files and folders of macOS, Windows, Linux, and network storage, in lower case."""


CONTENT_STORES = (".git/annex/objects/", ".dvc/cache/")
"""Hidden folders in which git-annex and DVC keep the files of a dataset. Visible links to these files are no strays."""


def is_stray(path: str) -> bool:
    """Whether a file, or a folder above it, is hidden or belongs to an operating system.

    Args:
        path: Path relative to the root of the dataset.

    Returns:
        True if a part of the path has a leading dot or is one of `STRAY_NAMES`.
    """
    parts = path.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part.lower() in STRAY_NAMES for part in parts)


class LinkTargets:
    """Finds links to hidden files and folders. Packing treats a link like the file or folder that it leads to.

    Args:
        root: Folder of the dataset. Links in another file system than that of this machine are not resolved.
    """

    def __init__(self, root: str) -> None:
        local = root.removeprefix("file://")
        self._root = local if "://" not in local and os.path.isdir(local) else None
        self._real_root = os.path.realpath(local)
        self._folders: dict[str, _Folder] = {}

    def is_stray(self, path: str) -> bool:
        """Whether a path leads through a link to a hidden or system file.

        A target below the root is stray if a part of its path below the root is. For another target, only its name counts.

        Args:
            path: Path relative to the root.

        Returns:
            True if it does.
        """
        if self._root is None or not path:
            return False
        parent, name = posixpath.split(path)
        folder = self._folders.get(parent)
        if folder is None:
            folder = self._folders[parent] = _Folder(self.is_stray(parent), _links(posixpath.join(self._root, parent)))
        return folder.stray or (name in folder.links and self._leads_to_stray(posixpath.join(self._root, path)))

    def _leads_to_stray(self, link: str) -> bool:
        target = os.path.realpath(link)
        if not target.startswith(self._real_root + os.sep):
            return is_stray(os.path.basename(target))
        below = target[len(self._real_root) + 1 :]
        return is_stray(below) and not below.startswith(CONTENT_STORES)


class _Folder(NamedTuple):
    stray: bool
    links: frozenset[str]


def _links(folder: str) -> frozenset[str]:
    """Names of the links in a folder. Listing a folder is faster than a query for each file."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()


def stray_note(paths: Sequence[str]) -> str:
    """Return the note on files that are left out."""
    return f"left out {counted(len(paths), 'hidden or system file')}, such as {paths[0]}"


def without_strays(manifest: Manifest, paths: Sequence[str] | None = None) -> Manifest:
    """Leave out stray files, links to them, and classes and attribute values that occur only there.

    Args:
        manifest: The manifest.
        paths: Path of each example below the root, "" if it is unknown. Default: the sources, if the examples are files.

    Returns:
        The manifest with one note, or the same manifest if there are no stray files.

    Raises:
        ValueError: If all files are stray.
    """
    if paths is None:
        paths = manifest.metadata.sources if manifest.samples is None else []
    links = LinkTargets(manifest.root)
    stray = np.fromiter((is_stray(path) or links.is_stray(path) for path in paths), dtype=bool, count=len(paths))
    if not stray.any():
        return manifest
    left_out = [path for path, found in zip(paths, stray, strict=True) if found]
    if stray.all():
        raise ValueError(f"{manifest.root}: all files are hidden or system files, such as {left_out[0]}; rename them")
    kept = manifest.select(np.flatnonzero(~stray))
    metadata, _ = drop_absent(kept.metadata, occurring(manifest.metadata))
    return replace(kept, metadata=metadata, notes=(*manifest.notes, stray_note(left_out)))


def occurring(metadata: Metadata) -> dict[str, list[int]]:
    """Return the codes that occur in each column: "label", and the names of the attributes."""
    columns = {"label": metadata.labels, **metadata.attributes}
    return {name: np.unique(codes[codes >= 0]).tolist() for name, codes in columns.items()}


def drop_absent(metadata: Metadata, expected: Mapping[str, Sequence[int]]) -> tuple[Metadata, list[str]]:
    """Remove the names of classes and attribute values that no example has any more, and number the others again.

    Args:
        metadata: The examples that are left.
        expected: Codes of each column that occurred before examples were left out, see `occurring`. Names that no example
            had before are kept.

    Returns:
        The metadata, and a note for each column with removed names.
    """
    found = occurring(metadata)
    notes: list[str] = []

    def reduce(
        column: str, codes: NDArray[np.int64], names: tuple[str, ...]
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        gone = sorted(set(expected.get(column, ())).intersection(range(len(names))) - set(found[column]))
        if not gone or not found[column]:
            return codes, names
        what = "class" if column == "label" else f"value of {column}"
        shown = ", ".join(ascii(names[k]) for k in gone[:5]) + (", ..." if len(gone) > 5 else "")
        notes.append(f"left out {len(gone):,} {what} without readable examples: {shown}")
        kept = np.delete(np.arange(len(names)), gone)
        renumbered = np.full(len(names) + 1, -1)  # the last one is the code -1 of unknown values
        renumbered[kept] = np.arange(kept.size)
        return renumbered[codes], tuple(names[k] for k in kept)

    labels, class_names = reduce("label", metadata.labels, metadata.class_names)
    attributes, attribute_names = {}, {}
    for name, codes in metadata.attributes.items():
        attributes[name], attribute_names[name] = reduce(name, codes, metadata.attribute_names[name])
    if not notes:
        return metadata, []
    reduced = Metadata(labels, metadata.splits, metadata.sources, attributes, class_names, attribute_names)
    return reduced, notes


def select_readable(
    metadata: Metadata, readable: NDArray[np.int64], shard: tuple[int, int]
) -> tuple[Metadata, list[str]]:
    """Select the examples that could be read, and remove names that no example has any more.

    Args:
        metadata: The examples to pack.
        readable: Rows that could be read.
        shard: (i, n). With several shards all names are kept, because shards must agree. `merge` removes them.

    Returns:
        The metadata, and a note for each column with removed names.
    """
    selected = metadata.select(readable)
    return (selected, []) if shard[1] > 1 else drop_absent(selected, occurring(metadata))


def occurring_provenance(metadata: Metadata, shard: tuple[int, int]) -> Provenance:
    """Return the provenance from which `merge` finds names without readable examples in any shard of `metadata`."""
    return {"occurring": occurring(metadata)} if shard[1] > 1 else {}
