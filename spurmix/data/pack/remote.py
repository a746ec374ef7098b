"""Folders and URLs, by fsspec. Web servers have no folders, only pages of links, and URLs are quoted names."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

_MARKS = "%/:?#[]@!$&'()*+,;=~"
"""What stands for itself in a URL that somebody gave."""


def beside(place: str | Path, *names: str) -> str:
    """A path below a folder or URL; in a chain such as "zip://images::file:///x.zip" below its first part."""
    first, *rest = str(place).split("::")
    return "::".join([posixpath.join(first, *names), *rest])


def parent(place: str | Path) -> str:
    """The folder that a file or URL lies in."""
    first, *rest = str(place).split("::")
    scheme, separator, path = first.rpartition("://")
    return "::".join([scheme + separator + (posixpath.dirname(path) or ("" if separator else ".")), *rest])


def is_web(system: Any) -> bool:
    """Whether a file system is a web server, http:// or https://."""
    return "http" in system.protocol


def has_folder(system: Any, path: str) -> bool:
    """Whether there is a folder; of a web server that answers, whatever it answers, as many list none.

    Raises:
        OSError: where nothing answers.
    """
    try:
        return system.isdir(path) or is_web(system)
    except OSError:
        raise
    except Exception:  # aiohttp's errors are its own
        if is_web(system):
            return True
        raise


def quoted_root(url: str) -> str:
    """A URL as its server writes it in links: what needs quotes, and has none, gets them."""
    return quote(url, safe=_MARKS)


def reader(system: Any, base: str, sources: Sequence[str]) -> Callable[[int], bytes]:
    """A function that gives the bytes of file n below a folder; whatever the protocol raises is an OSError."""
    web = is_web(system)

    def read(n: int) -> bytes:
        try:
            return system.cat_file(f"{base}/{quote(sources[n]) if web else sources[n]}")
        except OSError as error:
            if str(error):
                raise
            raise OSError(f"cannot be read: {type(error).__name__}") from None
        except Exception as error:  # aiohttp's errors, for one, are its own
            raise OSError(f"cannot be read: {error}") from None

    return read


def files_below(system: Any, base: str) -> list[str]:
    """All files below a folder, relative to it, sorted.

    Raises:
        ValueError: where a server has no page that lists the folder.
    """
    if not is_web(system):
        return sorted(name[len(base) :].lstrip("/") for name in system.find(base))
    found, folders = set(), [f"{base}/"]
    for folder in folders:  # which grows on the way
        try:
            links = system.ls(folder, detail=True)
        except FileNotFoundError:
            raise ValueError(f"root: there is no folder {folder}") from None
        except Exception as error:  # aiohttp's errors are its own
            raise ValueError(f"root: {folder} cannot be listed: {error}") from None
        for link in links:
            name = link["name"]
            # Pages also link to the folder above, to themselves in another order, and to other places.
            if not name.startswith(folder) or name == folder or "?" in name or "#" in name:
                continue
            if not name.endswith("/"):
                found.add(unquote(name[len(base) + 1 :]))
            elif name not in folders:
                folders.append(name)
    return sorted(found)
