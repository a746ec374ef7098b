"""Readers of damaged, hostile and large files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NotRequired, TypedDict

import pytest

from spurmix.core.files import FileError, discard, parse_json, read_json, read_json_lines, read_toml
from spurmix.core.limits import MAX_JSON_DEPTH


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 5_000, 200_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_deeply_nested_json(depth: int, begin: str, end: str) -> None:
    with pytest.raises(FileError, match=r"^x is damaged: more than 100 nested arrays and objects"):
        parse_json(begin * depth + "1" + end * depth, "x", object)


def test_nested_json_within_the_limit() -> None:
    text = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH
    assert parse_json(text, "x", object) is not None


class Record(TypedDict):
    size: int
    names: list[str]


class Described(TypedDict):
    scale: float
    title: str | None
    records: dict[str, Record]
    more: NotRequired[Record]


VALID = {"scale": 1, "title": None, "records": {"a": {"size": 2, "names": ["x"]}}, "further": [[]]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"scale": True}, "['scale'] must be a number, got True"),
        ({"scale": "1"}, "['scale'] must be a number, got '1'"),
        ({"title": 3}, "['title'] must be a string, got 3"),
        ({"records": []}, "['records'] must be an object, got []"),
        ({"records": {"b": {"names": []}}}, "['records']['b'] has no 'size'"),
        ({"records": {"b": {"size": 1.0, "names": []}}}, "['records']['b']['size'] must be an integer, got 1.0"),
        ({"records": {"b": {"size": 1, "names": ["x", 2]}}}, "['records']['b']['names'][1] must be a string, got 2"),
        ({"more": None}, "['more'] must be an object, got None"),
        ({"title": ["x" * 100]}, "['title'] must be a string, got ['" + "x" * 77 + "…"),
    ],
)
def test_values_of_another_form_are_named(change: dict[str, object], problem: str) -> None:
    assert parse_json(json.dumps(VALID), "f", Described) == VALID
    with pytest.raises(FileError) as caught:
        parse_json(json.dumps(VALID | change), "f.json", Described)
    assert str(caught.value) == f"f.json is damaged: {problem}"


def test_missing_keys_and_other_content_are_named() -> None:
    with pytest.raises(FileError, match=r"^f is damaged: the content has no 'scale'"):
        parse_json("{}", "f", Described)
    with pytest.raises(FileError, match=r"^f is damaged: the content must be an object, got \[\]"):
        parse_json("[]", "f", Described)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged: Expecting property name"),
        (b'{"a": "\xff"}', "is damaged: byte 7 is not UTF-8"),
        (b"9" * 10_000, "is damaged: Exceeds the limit of 4,300 digits for an integer$"),
        (b"", "is damaged: Expecting value"),
    ],
)
def test_damaged_json_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"^{path} {message}"):
        read_json(path, object)


def test_json_lines_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"a": 1}\n{"a": "x"}\n')
    rows = read_json_lines(path, dict[str, int])
    assert next(rows) == {"a": 1}
    with pytest.raises(FileError, match=r"f\.jsonl, line 2, is damaged: \['a'\] must be an integer, got 'x'"):
        next(rows)


def test_deeply_nested_and_invalid_toml(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    for text, message in (
        ("a = " + "[" * 5_000 + "]" * 5_000, "more than 100 nested arrays and tables"),
        ("a = " + "[" * 150 + "]" * 150, "more than 100 nested arrays"),
        ("a = ", "is not valid TOML"),
        ("a = " + "9" * 5_000, "is not valid TOML: Exceeds the limit of 4,300 digits for an integer$"),
    ):
        path.write_text(text)
        with pytest.raises(FileError, match=f"{path} .*{message}"):
            read_toml(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    loop, pipe = tmp_path / "loop", tmp_path / "pipe"
    os.symlink(loop, loop)
    os.mkfifo(pipe)
    for path, message in (
        (loop, f"cannot read {loop}: Too many levels of symbolic links"),
        (pipe, f"{pipe} is not a regular file"),
        (tmp_path, f"{tmp_path} is not a regular file"),
        (tmp_path / "none", f"cannot read {tmp_path}/none: No such file"),
        (tmp_path / ("x" * 300), "cannot read .*: File name too long"),
        (Path("a\0b"), r"'a\\x00b' has a path with a NUL character"),
    ):
        with pytest.raises(FileError, match=message):
            read_json(path, object)
    with (tmp_path / "huge.json").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(FileError, match=r"huge\.json has 1,099,511,627,776 bytes, the maximum is 268,435,456"):
        read_json(tmp_path / "huge.json", object)


def test_discard_ignores_errors(tmp_path: Path) -> None:
    discard(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    discard(tmp_path / "folder")
    (tmp_path / "file").touch()
    discard(tmp_path / "file")
    assert not (tmp_path / "file").exists()
