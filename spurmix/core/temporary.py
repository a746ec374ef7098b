"""Temporary files next to the files that they replace. Those of killed processes are removed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spurmix.core.files import discard


def temporary_name(path: Path, process: int | None = None) -> Path:
    """Return the name of the temporary file of a process that replaces `path`. It is hidden and keeps the suffix."""
    number = os.getpid() if process is None else process
    return path.with_name(f".{path.stem}-{number}{path.suffix}")


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Create an empty temporary file that may replace `path`. It is removed at the end, unless it was renamed.

    A lock on the file shows other processes that it is in use. Files of killed processes have no lock and are removed.

    Args:
        path: The file to replace.

    Yields:
        Name of the temporary file.

    Raises:
        OSError: If the folder is not writable.
    """
    temporary = temporary_name(path)
    remove_leftovers(path)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _try_lock(handle)
        yield temporary
    finally:
        discard(temporary)
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` that killed processes have left. A file that cannot be removed is kept."""
    remove_unlocked(path.parent, re.compile(rf"\.{re.escape(path.stem)}-\d+{re.escape(path.suffix)}"))


def remove_unlocked(folder: Path, pattern: re.Pattern[str]) -> None:
    """Remove the files of a folder with matching names that no process has locked. Others are kept."""
    try:
        found = [file for file in folder.iterdir() if pattern.fullmatch(file.name)]
    except OSError:
        return
    for file in found:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _try_lock(handle):
                file.unlink(missing_ok=True)
        except OSError:
            continue
        finally:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove all temporary files in a folder that killed processes have left, also those of earlier versions."""
    remove_unlocked(folder, re.compile(r"\..+-\d+(\.\w+)?|metrics\.\d+"))


def _try_lock(handle: int) -> bool:
    """Lock an open file. Return whether no other process has locked it."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return False
    return True
