"""Checksums of the files of a run, damaged values, and paths that are relative to the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_commands import FEATURES, train
from safetensors import safe_open
from safetensors.torch import save_file

from spurmix.data.dataset.packed import PackedDataset
from spurmix.train.runs import files
from spurmix.train.runs.config import DEFAULT, portable, read_run_config, resolve
from spurmix.train.runs.finished import open_run


@pytest.fixture(scope="module")
def small_run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run beside its data, in a folder of its own."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(features, folder / "data")
    train(folder / "data", folder / "run", FEATURES | {"steps": 12})
    return folder


def with_header(path: Path, change: Any, sealed: bool) -> None:
    """Change the header of weights, and optionally store the new checksum."""
    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()["spurmix"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    change(header)
    if not sealed:
        for key in ("checksum", "attribute_names"):  # not in files of version 0.1.0
            header.pop(key, None)
    save_file(state, str(path), metadata={"spurmix": json.dumps(header)})


def test_a_changed_header_is_refused(small_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small_run / "run", tmp_path / "run")
    data = str(small_run / "data")
    for change in (lambda h: h.update(step=h["step"] + 1), lambda h: h["groups"][0].__setitem__(2, 1)):
        with_header(run / files.MODEL, change, sealed=True)
        with pytest.raises(ValueError, match=r"model\.safetensors .*the entries do not match their checksum"):
            open_run(run, data)
        shutil.copy(small_run / "run" / files.MODEL, run)


def put(*path: Any) -> Any:
    """A change of a nested value: keys, then the value."""

    def change(header: Any) -> None:
        *keys, last, value = path
        for key in keys:
            header = header[key]
        header[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("step"), "has no checksum"),
        (lambda h: h.pop("groups"), "has no checksum"),
        (lambda h: h.pop("classes"), "has no checksum"),
        (put("more", 1), "unknown key 'more'"),
        (put("classes", []), "has no classes"),
        (put("shape", []), "the shape is empty"),
        (lambda h: h.pop("digest"), "has no 'digest'"),
        (lambda h: h.pop("architecture"), "has no 'architecture'"),
        (put("architecture", "shape", [2**40, 2**40]), "cannot read .* as weights"),
        (put("architecture", "shape", [2**63, 2]), "cannot read .* as weights"),
        (put("architecture", "model", 3), "must be a string"),
        (put("architecture", {}), "has no 'model'"),
        (put("groups", 0, 2, 2**40), "training examples, more than fit into memory"),
        (put("groups", 0, 2, 2**63), r"in \[-1, 2\^63\)"),
        (put("groups", 0, 2, -4), "size 1 or more"),
        (put("groups", 0, [1]), "label, attribute, size"),
        (put("groups", []), "label, attribute, size"),
        (put("groups", "x"), "must be an array"),
        (put("step", 2**63), r"in \[-1, 2\^63\)"),
        (put("step", "3"), "must be an integer"),
        (put("classes", [1]), "must be a string"),
        (put("shape", None), "must be an array"),
    ],
)
def test_damaged_values_of_files_without_a_checksum(small_run: Path, tmp_path: Path, change: Any, message: str) -> None:
    run = shutil.copytree(small_run / "run", tmp_path / "run")
    with_header(run / files.MODEL, change, sealed=False)
    with pytest.raises(ValueError, match=message) as caught:
        open_run(run, str(small_run / "data"))
    assert "model.safetensors" in str(caught.value)


def test_files_of_version_0_1_0_open(small_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small_run / "run", tmp_path / "run")
    with_header(run / files.MODEL, lambda header: None, sealed=False)
    assert open_run(run, str(small_run / "data")).same_data
    rows = files.read_evaluations(run)
    (run / files.EVALUATIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert files.read_evaluations(run) == rows


def test_every_change_of_evaluations_is_found(small_run: Path, tmp_path: Path) -> None:
    rows = files.read_evaluations(small_run / "run")
    rows = [{**rows[0], "step": step} for step in (4, 8, 12)]  # type: ignore[list-item]
    files.write_evaluations(tmp_path, rows)
    assert files.read_evaluations(tmp_path) == rows
    path = tmp_path / files.EVALUATIONS
    first, second, third = path.read_text().splitlines()
    changed = second.replace('"step": 8', '"step": 9')
    plain = json.dumps(rows[1])
    for lines, number in (
        ([first, changed, third], 2),
        ([first, third], 2),
        ([second, third], 1),
        ([first, first, second], 2),
        ([first, plain, third], 2),
        ([first, "[" * 5000], 2),
        ([first, "{}"], 2),
        ([first, second.replace('"step": 8', '"step": "8"')], 2),
    ):
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(ValueError, match=rf"evaluations\.jsonl, line {number}, is damaged: .*remove this line"):
            files.read_evaluations(tmp_path)


def as_best(header: Any) -> None:
    """Change the header to that of best weights."""
    for key in ("dataset", "shape", "classes", "groups"):
        del header[key]
    header.update(worst_group=0.75, average=0.75, adjusted_average=0.75)


def flipped(path: Path, key: bytes) -> Iterator[bytes]:
    """Write a file with each bit of a key and of its quotes flipped. Yield what was written."""
    contents = path.read_bytes()
    begin = contents.index(key) - 1
    for position in range(begin, begin + len(key) + 2):
        for bit in range(8):
            damaged = bytearray(contents)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            yield bytes(damaged[begin : begin + len(key) + 2])
    path.write_bytes(contents)


@pytest.mark.parametrize("key", [b"checksum", b"digest", b"attribute_names", b"groups", b"spurmix"])
def test_no_flipped_bit_of_a_key_turns_the_checksum_off(key: bytes, small_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small_run / "run", tmp_path / "run")
    best = next(iter(files.bests(run).values()))
    row = files.read_evaluations(run)[0]
    files.write_evaluations(run, [row])
    readers: dict[Path, Any] = {
        run / files.MODEL: lambda: files.read_finished(run / files.MODEL),
        best: lambda: files.read_weights(best),
        run / files.ABOUT: lambda: files.read_about(run),
        run / files.EVALUATIONS: lambda: files.read_evaluations(run),
    }
    tried = 0
    for path, read in readers.items():
        for _ in flipped(path, key) if key in path.read_bytes() else ():
            tried += 1
            with pytest.raises(ValueError, match=path.name):
                read()
        read()
    assert tried


def test_removed_evaluations_do_not_replace_the_best_weights(small_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small_run / "run", tmp_path / "run")
    with_header(run / files.MODEL, as_best, sealed=False)
    for path in files.bests(run).values():
        path.unlink()
    for step in (4, 8):
        shutil.copy(run / files.MODEL, files.best_path(run, step))
    low = [{**files.read_evaluations(run)[0], "step": 4, "worst_group": 0.5}]
    assert files.highest_before(run, low, 12) == 0.75  # type: ignore[arg-type]
    assert files.highest_before(run, low, 4) == 0.5  # type: ignore[arg-type]
    assert files.highest_before(tmp_path, [], 12) == -1
    files.best_path(run, 8).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot read .*best-00000008\.safetensors: .*; remove it"):
        files.highest_before(run, low, 12)  # type: ignore[arg-type]


def test_a_changed_description_is_refused(small_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small_run / "run", tmp_path / "run")
    about = json.loads((run / files.ABOUT).read_text())
    for entries, message in (
        ({**about, "classes": ["x", "y"]}, "do not match their checksum"),
        ({"dataset": 3}, r"run\.json"),
        ([], r"run\.json is damaged"),
    ):
        (run / files.ABOUT).write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=message):
            files.read_about(run)
    (run / files.ABOUT).write_text(
        json.dumps({k: v for k, v in about.items() if k not in ("checksum", "attribute_names")})
    )
    assert files.read_about(run)["dataset"] == about["dataset"]


def test_a_run_has_no_absolute_paths_and_moves_with_its_data(small_run: Path, tmp_path: Path) -> None:
    for file in (small_run / "run").rglob("*"):
        if file.is_file():
            assert str(small_run).encode() not in file.read_bytes(), file
    moved = shutil.copytree(small_run, tmp_path / "moved")
    opened = open_run(moved / "run")
    assert opened.dataset.path == moved / "data"
    assert opened.same_data
    train(moved / "data", moved / "run", FEATURES | {"steps": 12}, resume=True)
    (tmp_path / "link").symlink_to(moved / "run")
    assert open_run(tmp_path / "link").dataset.path == moved.resolve() / "data"
    alone = shutil.copytree(moved / "run", tmp_path / "alone" / "run")
    with pytest.raises(ValueError, match="is not a folder; give the folder of the packed dataset"):
        open_run(alone)
    assert isinstance(open_run(alone, str(moved / "data")).dataset, PackedDataset)


def test_paths_of_settings_are_relative_to_the_run(tmp_path: Path) -> None:
    settings = resolve({"dataset": str(tmp_path / "a" / "data"), "weights": str(tmp_path / "w.pth")})
    short = portable(settings, tmp_path / "a" / "run")
    assert (short.dataset, short.weights) == ("../data", "../../w.pth")
    assert portable(DEFAULT, tmp_path) == DEFAULT
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "a" / "run" / "config.toml").write_text('dataset = "../data"\nweights = "../../w.pth"\n')
    assert read_run_config(tmp_path / "a" / "run" / "config.toml") == settings
