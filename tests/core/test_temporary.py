"""Temporary files: removed at the end and after a kill, kept while another process uses them."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from spurmix.core.temporary import temporary_file, temporary_name


def test_file_is_removed_unless_it_is_renamed(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with pytest.raises(KeyError), temporary_file(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with temporary_file(target) as temporary:
        assert temporary.name.startswith(".a-")
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        temporary.replace(target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_leftovers_are_removed_and_files_in_use_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    left, used, unrelated = (temporary_name(target, k) for k in (1, 2, 3))
    unrelated = unrelated.with_suffix(".bin")
    outside = tmp_path / "outside"
    outside.touch()
    link = temporary_name(target, 4)
    link.symlink_to(outside)
    for path in (left, used, unrelated):
        path.touch()
    with used.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with temporary_file(target):
            assert not left.exists()
            assert used.exists()
            assert unrelated.exists()
            assert outside.exists()
    with temporary_file(target):
        assert not used.exists()


def test_a_read_only_disk_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(RuntimeError, match="the first error"), temporary_file(tmp_path / "a.txt"):
        monkeypatch.setattr(Path, "unlink", refuse)
        raise RuntimeError("the first error")
