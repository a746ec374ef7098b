"""Folders and URLs, read with fsspec."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from spurmix.core.files import FileError
from spurmix.core.limits import MAX_IMAGE_BYTES
from spurmix.data.dataset.tables import COPY_BYTES
from spurmix.data.pack.decode import read_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"
"""Characters of a URL that are not quoted."""


def join_url(base: str | Path, *names: str) -> str:
    """Join a folder or URL and names below it. In a chain such as "zip://a::file:///x.zip" the first part is extended."""
    first, *rest = str(base).split("::")
    return "::".join([posixpath.join(first, *names), *rest])


def parent_url(path: str | Path) -> str:
    """Return the folder of a file or URL."""
    first, *rest = str(path).split("::")
    scheme, separator, name = first.rpartition("://")
    return "::".join([scheme + separator + (posixpath.dirname(name) or ("" if separator else ".")), *rest])


def root_name(root: str | Path) -> str:
    """Return the name of a source for the provenance: that of a local folder, or a URL without user and query.

    A dataset that is passed on must not contain the paths of the machine or access keys.
    """
    return "::".join(_part_name(part) for part in str(root).split("::"))


def _part_name(root: str) -> str:
    scheme, separator, path = root.rpartition("://")
    if scheme in ("", "file", "local"):
        is_path = os.path.isabs(path) or os.path.exists(path)  # otherwise the name of a dataset on a hub
        return os.path.basename(os.path.abspath(path)) if is_path else path
    host, slash, rest = path.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + re.split("[?#]", rest)[0]


def local_path(path: str | Path) -> str | Path:
    """Return a local path, which may be given as a `file://` URL.

    Raises `ValueError` if `path` is another URL.
    """
    text = str(path)
    if text.startswith("file://"):
        return text.removeprefix("file://")
    if "://" in text:
        raise ValueError(f"{text}: this layout reads local files only; copy the files first")
    return path


def import_fsspec() -> ModuleType:
    """Import fsspec.

    Raises `ImportError` if it is missing. The message names the extra to install.
    """
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ImportError("packing needs the package 'fsspec': pip install 'spurmix[data]'") from error
    return cast(ModuleType, fsspec)


def open_root(root: str) -> tuple[AbstractFileSystem, str]:
    """Open a folder or URL.

    Web servers (http, https) have no folders, so their URLs are not checked.

    Args:
        root: Folder or fsspec URL.

    Returns:
        The file system and the path in it.

    Raises:
        ValueError: If the folder does not exist or cannot be opened.
        ImportError: If fsspec needs another package for the URL.
    """
    try:
        system, path = import_fsspec().core.url_to_fs(root)
        exists = is_web(system) or system.isdir(path)
    except ImportError as error:
        raise ImportError(f"root: {root} needs another package: {error}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"root: cannot open {root}: {error}") from None
    if not exists:
        raise ValueError(f"root: there is no folder {root}")
    return system, (quote(path, safe=_URL_CHARACTERS) if is_web(system) else path).rstrip("/")


def is_web(system: AbstractFileSystem) -> bool:
    """Return whether a file system is a web server."""
    return "http" in system.protocol


def is_local(system: AbstractFileSystem) -> bool:
    """Return whether a file system is that of this machine."""
    return "file" in system.protocol


def list_files(system: AbstractFileSystem, base: str) -> list[str]:
    """List all files below a folder, relative to it and sorted.

    Local links to folders are followed, also out of the folder, except for links to a folder that contains them. Markers
    of folders in object stores are left out.

    Raises `ValueError` if the file system is a web server.
    """
    if is_web(system):
        raise ValueError(
            f"root: a web server cannot list its files, got {base}; pack a table (CSV or Parquet) with the paths of the "
            "files, layout 'table', or copy the folder first"
        )
    if not is_local(system):
        return _list_objects(system, base)
    found: list[str] = []

    def is_folder(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link to itself: it is reported when it is read
            return False

    def walk(folder: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if real in above:  # a link to one of its parents
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_folder(entry):
                    walk(entry.path, (*above, real))
                else:
                    found.append(entry.path)

    try:
        walk(base, ())
    except OSError as error:
        raise ValueError(f"root: cannot list {error.filename!r}: {error.strerror}") from None
    return sorted(os.path.relpath(path, base) for path in found)


def _list_objects(system: AbstractFileSystem, base: str) -> list[str]:
    """List the objects below a folder, without empty objects that represent folders."""
    found = system.find(base, detail=True)
    if [*found] == [base]:  # the marker has the name of the folder, and hides its content
        found = system.find(posixpath.dirname(base), detail=True)
    sizes = {
        name[len(base) :].removeprefix("/"): info.get("size")
        for name, info in found.items()
        if (not base or name.startswith(f"{base}/")) and info.get("type") != "directory"
    }
    folders = {parent for name in sizes for parent in _folders_above(name)}
    return sorted(name for name, size in sizes.items() if size != 0 or not _is_marker(name, folders))


def _folders_above(name: str) -> list[str]:
    return [name[:n] for n, character in enumerate(name) if character == "/"]


def _is_marker(name: str, folders: Collection[str]) -> bool:
    """Whether an empty object represents a folder. Hadoop names it after the folder, with a suffix."""
    return not name or name.endswith(("/", "_$folder$")) or name in folders


def read_remote(system: AbstractFileSystem, base: str, name: str, limit: int) -> bytes:
    """Read a file below a folder.

    Raises `FileError` if it has more than `limit` bytes, and the errors of the file system.
    """
    if not is_web(system):
        data: bytes = system.cat_file(f"{base}/{name}", start=0, end=limit + 1)
        if len(data) > limit:
            raise FileError(f"has more than {limit:,} bytes, which is the maximum")
        return data
    parts: list[bytes] = []
    # A block size of 0 streams the response of one request. A size saves the request of the size.
    with system.open(f"{base}/{quote(name)}", "rb", block_size=0, size=1) as stream:
        while part := stream.read(min(COPY_BYTES, limit + 1)):
            parts.append(part)
            limit -= len(part)
            if limit < 0:
                raise FileError(f"has more than {limit + sum(map(len, parts)):,} bytes, which is the maximum")
    return b"".join(parts)


def file_reader(system: AbstractFileSystem, base: str, names: Sequence[str]) -> Callable[[int], bytes]:
    """Return a function that reads file n below a folder. Every failure is an `OSError` or `FileError`."""
    if is_local(system):
        return lambda n: read_file(f"{base}/{names[n]}")

    def read(n: int) -> bytes:
        try:
            return read_remote(system, base, names[n], MAX_IMAGE_BYTES)
        except FileError:
            raise
        except OSError as error:
            if str(error):
                raise
            raise OSError(f"cannot be read: {type(error).__name__}") from None
        except Exception as error:  # aiohttp's exceptions are not OSErrors
            raise OSError(f"cannot be read: {error}") from None

    return read
