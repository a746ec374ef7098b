"""Layout `folder`: one folder for each class."""

from __future__ import annotations

from pathlib import Path

from spurmix.data.dataset.format import Metadata
from spurmix.data.pack.decode import IMAGE_SUFFIXES
from spurmix.data.pack.job import counted
from spurmix.data.pack.manifest import Manifest, check_paths, encode_column
from spurmix.data.pack.remote import is_local, list_files, open_root
from spurmix.data.pack.strays import LinkTargets, is_stray, stray_note

SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


def from_folder(root: str | Path) -> Manifest:
    """Read class folders `root/<class>/**`, or `root/<split>/<class>/**`.

    Folders are splits if they are named train, val, valid, validation or test, in upper or lower case. Hidden files and
    files of operating systems are left out, see `is_stray`, and links to them, see `LinkTargets`. Other links are
    followed, also out of the root, except for links to a folder that contains them.

    Args:
        root: Folder or fsspec URL.

    Returns:
        The images, labeled by class folder. Without split folders all are in split "train".

    Raises:
        ValueError: If there are no images, or only some images are in split folders.
    """
    system, base = open_root(str(root))
    images: list[list[str]] = []
    without_class: list[str] = []
    not_images: list[str] = []
    strays: list[str] = []
    links = LinkTargets(base if is_local(system) else str(root))
    for name in list_files(system, base):
        parts = name.split("/")
        if is_stray(name) or links.is_stray(name):
            strays.append(name)
        elif not name.lower().endswith(IMAGE_SUFFIXES):
            not_images.append(name)
        elif len(parts) == 1:
            without_class.append(name)
        else:
            images.append(parts)
    if not images:
        raise ValueError(f"root: no images in class folders below {root}")
    notes = [
        f"skipped {counted(len(names), 'file')} {what}, such as {names[0]}"
        for what, names in (("outside class folders", without_class), ("without an image suffix", not_images))
        if names
    ]
    if strays:
        notes.append(stray_note(strays))
    in_split = [parts[0].lower() in SPLIT_FOLDERS for parts in images]
    below_class = [inside and len(parts) > 2 for parts, inside in zip(images, in_split, strict=True)]
    has_splits = all(in_split) or any(below_class)
    if has_splits and not all(below_class):
        misplaced = [parts for parts, valid in zip(images, below_class, strict=True) if not valid]
        raise ValueError(
            f"root: {root} has split folders, but {counted(len(misplaced), 'image')} outside <split>/<class>, such as "
            f"{'/'.join(misplaced[0])}; move or remove these files"
        )
    labels, names, _ = encode_column([p[1] if has_splits else p[0] for p in images], str(root), "class")
    splits = [p[0].lower() if has_splits else "train" for p in images]
    sources = ["/".join(p) for p in images]
    check_paths(sources, str(root))
    return Manifest(str(root), Metadata(labels, splits, sources, {}, names, {}), tuple(notes))
