"""Kills while packing is being finished, what changes between them, damaged parts, and what listings refuse."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from spurmix.cli.data import contact_sheet, inspect
from spurmix.data.dataset import packed as store
from spurmix.data.dataset.packed import DatasetError, PackedDataset
from spurmix.data.pack import compaction as leave_out
from spurmix.data.pack import decode, job
from spurmix.data.pack import images as pack
from spurmix.data.pack import manifest as listing
from spurmix.data.pack.decode import ImageError
from spurmix.data.pack.layouts import published
from spurmix.data.pack.merge import merge


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def folder(root: Path, count: int = 12, broken: tuple[int, ...] = ()) -> listing.Listing:
    (root / "images/cat").mkdir(parents=True, exist_ok=True)
    for n in range(count):
        data = b"" if n in broken else png(Image.new("RGB", (6, 6), (n, n, n)))
        (root / f"images/cat/{n:02d}.png").write_bytes(data)
    return listing.from_folder(root / "images")


class Killed(BaseException):
    """As SIGKILL: nothing that handles errors sees it."""


def kill_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, after: bool = False) -> None:
    """End the process, so to speak, at that call, before or after it was done."""
    real, calls = getattr(owner, name), 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = real(*arguments, **options)
        if calls == call:
            raise Killed
        return result

    patch.setattr(owner, name, dying)


def only_broken(data: bytes, *_: Any) -> Any:
    assert data == b"", "decoded again"
    raise ImageError("the file is empty")


POINTS: list[tuple[Any, str, range]] = [
    (os, "pwrite", range(1, 12)),
    (os, "truncate", range(1, 2)),
    (Path, "replace", range(1, 3)),
    (job, "write_metadata", range(1, 2)),
    (job, "describe", range(1, 2)),
    (Path, "unlink", range(1, 6)),
    (Path, "rename", range(1, 2)),
]


@pytest.mark.parametrize(("owner", "name", "calls"), POINTS, ids=[name for _, name, _ in POINTS])
@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_while_finishing_it_goes_on_without_decoding(
    owner: Any, name: str, calls: range, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = folder(tmp_path, broken=(1, 2, 7))
    kept = [n for n in range(12) if n not in (1, 2, 7)]
    killed = 0
    for call in calls:
        target = tmp_path / f"t{call}"
        with pytest.raises(job.BrokenFiles):
            pack.pack_images(found, target, size=4)
        with monkeypatch.context() as patch:
            kill_at(patch, owner, name, call, after)
            try:
                pack.pack_images(found, target, size=4, broken="skip")
            except Killed:
                killed += 1
        if not target.exists():
            with pytest.raises(DatasetError, match="being packed, or packing was broken off"):
                PackedDataset(f"{target}.packing")
            with monkeypatch.context() as patch:
                patch.setattr(pack, "decoded", only_broken)
                report = pack.pack_images(found, target, size=4, broken="skip")
            assert report.resumed == 9 and len(report.broken) == 3
        data = PackedDataset(target)
        assert data.array[:, 0, 0, 0].tolist() == kept and data.verify() == [] and data.made["broken"] == 3
        names = {"dataset.json", "images.npy", "metadata.parquet", "broken.jsonl"}
        assert {p.name for p in target.iterdir()} == names and not Path(f"{target}.packing").exists()
    assert killed


@pytest.mark.parametrize("most", [1, 50, 1 << 20])
def test_rows_move_up_in_place_and_again_after_a_kill(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(leave_out, "BLOCK", most)
    for _ in range(20):
        count = int(rng.integers(2, 40))
        array = rng.integers(0, 256, (count, 2, 3, 3), dtype=np.uint8)
        state = np.where(rng.random(count) < rng.random(), job.DONE, job.BROKEN).astype(np.uint8)
        kept = np.flatnonzero(state == job.DONE)
        np.save(tmp_path / "images.npy", array)
        np.save(tmp_path / "state.npy", state)
        for call in range(1, 5):
            moving = leave_out.Moving(tmp_path, array.shape)
            if call > 1:
                assert moving.began and moving.failed == [("x", "y")] and np.array_equal(moving.kept, kept)
            with monkeypatch.context() as patch, contextlib.suppress(Killed):
                kill_at(patch, os, "pwrite", int(rng.integers(1, 10)), call % 2 == 0)
                moving.move(kept, [("x", "y")])
        moving = leave_out.Moving(tmp_path, array.shape)
        moving.move(kept, [("x", "y")])
        assert np.array_equal(np.load(tmp_path / "images.npy"), array[kept])
        (tmp_path / leave_out.JOURNAL).unlink()


def test_a_job_that_leaves_files_out_says_so_to_one_that_would_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = folder(tmp_path, broken=(1,))
    kill_at(monkeypatch, job, "write_metadata", 1)
    with pytest.raises(Killed):
        pack.pack_images(found, tmp_path / "t", size=4, broken="skip")
    with pytest.raises(ValueError, match=r"is being finished without 1 broken file, listed in its broken\.jsonl"):
        pack.pack_images(found, tmp_path / "t", size=4)


def test_files_that_change_between_kill_and_resume_are_read_again(tmp_path: Path) -> None:
    found = folder(tmp_path, broken=(11,))
    with pytest.raises(job.BrokenFiles):
        pack.pack_images(found, tmp_path / "t", size=4)
    (tmp_path / "images/cat/03.png").write_bytes(png(Image.new("RGB", (6, 6), (99, 99, 99))))
    (tmp_path / "images/cat/11.png").write_bytes(png(Image.new("RGB", (6, 6), (11, 11, 11))))
    report = pack.pack_images(found, tmp_path / "t", size=4)
    assert report.notes == ("1 file changed since they were packed, and are read again",) and report.resumed == 10
    assert PackedDataset(report.path).array[:, 0, 0, 0].tolist() == [0, 1, 2, 99, *range(4, 12)]


def test_other_work_is_begun_anew_and_told(tmp_path: Path) -> None:
    found = folder(tmp_path, broken=(1,))
    with pytest.raises(job.BrokenFiles):
        pack.pack_images(found, tmp_path / "t", size=4)
    report = pack.pack_images(found, tmp_path / "t", size=5, broken="skip")
    assert "t.packing held other work, which is begun anew: shape differs" in str(report) and report.resumed == 0


@pytest.mark.parametrize("name", ["images.npy", "broken.jsonl"])
def test_damage_is_not_merged(name: str, tmp_path: Path) -> None:
    rows = folder(tmp_path, broken=(0, 11))
    parts = [pack.pack_images(rows, tmp_path / "p", size=4, broken="skip", shard=(k, 2)).path for k in range(2)]
    path = parts[1] / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 4
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"shard-1-of-2/{name}: bytes 0 to [\d,]+ are damaged; pack it again"):
        merge(parts, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_byte_of_the_description_that_flipped_is_found(tmp_path: Path) -> None:
    path = pack.pack_images(folder(tmp_path), tmp_path / "t", size=4).path / "dataset.json"
    text = path.read_text()
    for old, new in (('"cat"', '"cau"'), ('"crop"', '"drop"'), ('"checksum"', '"bhecksum"'), ('"exact"', '"exact"')):
        path.write_text(text.replace(old, new))
        if old in text and old != new:
            with pytest.raises(DatasetError, match=r"dataset\.json is damaged"):
                PackedDataset(tmp_path / "t")
    for wrong in (b"\xff\xfe", b"[]", b"{}", b'{"format": []}'):
        path.write_bytes(wrong)
        with pytest.raises(DatasetError, match=r"dataset\.json is damaged"):
            PackedDataset(tmp_path / "t")


@pytest.mark.parametrize("name", ["images.npy", "metadata.parquet"])
def test_damaged_files_end_in_one_kind_of_error(name: str, tmp_path: Path) -> None:
    path = pack.pack_images(folder(tmp_path), tmp_path / "t", size=4).path / name
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        wrong = bytearray(data)
        for at in rng.integers(0, 128 if name == "images.npy" else len(data), 3):
            wrong[at] = rng.integers(0, 256)
        path.write_bytes(wrong)
        with contextlib.suppress(DatasetError):  # of these, none may end in anything else
            PackedDataset(tmp_path / "t")


def test_a_shard_of_broken_files_alone(tmp_path: Path) -> None:
    rows = folder(tmp_path, 6, broken=(0, 1))
    parts = [pack.pack_images(rows, tmp_path / "p", size=4, broken="skip", shard=(k, 3)).path for k in range(3)]
    report = merge(parts, tmp_path / "t")
    assert PackedDataset(report.path).array[:, 0, 0, 0].tolist() == [2, 3, 4, 5] and len(report.broken) == 2
    with pytest.raises(ValueError, match="none has any examples"):
        merge(parts[:1], tmp_path / "u")


def test_targets(tmp_path: Path) -> None:
    found = folder(tmp_path)
    assert len(PackedDataset(pack.pack_images(found, tmp_path / "we:ird", size=4).path)) == 12
    for target, message in (
        ("s3://b/t", "must be a folder of this machine, got the URL"),
        (".", "must name a folder that is made"),
        (tmp_path / "x.packing", "in the making"),
    ):
        with pytest.raises(ValueError, match=message):
            pack.pack_images(found, target, size=4)


def test_folders_of_splits_and_what_does_not_fit_them(tmp_path: Path) -> None:
    for name in ("Train/cat/1.png", "Train/dog/2.png", "VAL/dog/3.png", "loose.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = listing.from_folder(tmp_path)
    assert found.metadata.splits == ["train", "train", "val"] and found.metadata.class_names == ("cat", "dog")
    assert found.notes == ("1 file in no class folder left out, such as loose.png",)
    for stray in ("extra/cat/4.png", "Train/5.png"):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).touch()
        with pytest.raises(ValueError, match=rf"1 image in no class folder of a split, such as {stray}"):
            listing.from_folder(tmp_path)
        (tmp_path / stray).unlink()
    (tmp_path / "flat/train").mkdir(parents=True)
    (tmp_path / "flat/train/1.png").touch()
    with pytest.raises(ValueError, match="folders of splits, but 1 image in no class folder"):
        listing.from_folder(tmp_path / "flat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,split\na,0,train\nb,1,\n", r"row 1: split is missing \(column 'split'\)"),
        ("path,label,split\na,0,1\nb,1,\n", "row 1: split is missing"),
        ("path,label,split\na,0,1\nb,30000000,1\n", "row 1: label must be a number of one of at most 1,000 classes"),
        ("path,label,split,label\na,0,1,1\n", "there are two columns 'label'"),
    ],
)
def test_tables_with_gaps_twins_and_numbers_that_are_no_classes(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        listing.from_table(tmp_path / "t.csv", split="split")


def test_columns_of_numbers_with_gaps(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,place\na,1.0,1.0\nb,0.0,\nc,2.0,0.0\n")
    table = pyarrow.table({"path": ["a", "b", "c"], "label": [1.0, 0.0, 2.0], "place": [1.0, float("nan"), 0.0]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        found = listing.from_table(tmp_path / name, attributes=["place"])
        assert found.metadata.labels.tolist() == [1, 0, 2] and found.metadata.class_names == ("0", "1", "2")
        assert found.metadata.attributes["place"].tolist() == [1, -1, 0]
        assert found.notes == ("place is unknown in 1 of 3 rows",)
    twice = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"]), pyarrow.array([0]), pyarrow.array([1])], ["path", "label", "label"]
    )
    pyarrow.parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="there are two columns 'label'"):
        listing.from_table(tmp_path / "t.parquet")


def test_deep_images_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (np.float32, np.int32):
        with pytest.raises(ImageError, match="32-bit and signed images are not supported"):
            decode.decode(png(Image.fromarray(np.full((4, 4), 70_000, dtype=kind)), "TIFF"), (4, 4))
    deep = Image.fromarray(np.full((4, 4), 0x8123, dtype=np.uint16))
    for form in ("TIFF", "PNG", "PPM"):
        assert (decode.decode(png(deep, form), (4, 4)) == 0x81).all()
    found = folder(tmp_path)
    with (tmp_path / "images/cat/00.png").open("wb") as file:
        os.truncate(file.fileno(), 60 << 30)
    report = pack.pack_images(found, tmp_path / "t", size=4, broken="skip")
    assert report.broken == (("cat/00.png", "64,424,509,440 bytes are more than 1,073,741,824"),)
    with monkeypatch.context() as patch:
        patch.setattr(pack, "decoded", lambda *_: bytearray(1 << 62))
        with pytest.raises(job.BrokenFiles, match="takes more memory than there is"):
            pack.pack_images(found, tmp_path / "u", size=4)


def test_places_and_names(tmp_path: Path) -> None:
    listing.check_inside(["..dots/x.png", "...png"], "here")
    for wrong in ("..", "../x", "a/../../x"):
        with pytest.raises(ValueError, match="leaves the root"):
            listing.check_inside([wrong], "here")
    with pytest.raises(ImportError, match=r"root: s3://bucket/x needs another package: .*s3fs"):
        listing.from_folder("s3://bucket/x")
    with pytest.raises(ValueError, match="only files of this machine"):
        published.civilcomments("s3://bucket/x")
    with pytest.raises(FileNotFoundError):
        published.civilcomments(f"file://{tmp_path}")


def test_windows_are_whole_numbers_that_fit(tmp_path: Path) -> None:
    data = PackedDataset(pack.pack_images(folder(tmp_path), tmp_path / "t", size=4).path)
    for wrong in (1.5, True):
        with pytest.raises(TypeError, match="window must be an integer"):
            data.source(wrong)  # type: ignore[arg-type]
    source: Any = data.source(2, memory=100)
    with pytest.raises(ValueError, match=r"window: two of 2 batches of 4 images take [\d,]+ bytes, 100 may be used"):
        source.batches(4, 10)
    assert data.source(2).batches(4, 10) == 2  # type: ignore[union-attr]


def test_names_that_look_like_markup_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("[red]cat", "[/bold]"):
        (tmp_path / "f" / name.replace("/", "")).mkdir(parents=True)
        (tmp_path / "f" / name.replace("/", "") / "1.png").write_bytes(png(Image.new("RGB", (6, 6))))
    inspect(pack.pack_images(listing.from_folder(tmp_path / "f"), tmp_path / "t", size=4).path)
    told = capsys.readouterr().out
    assert "[red]cat" in told and "[bold]" in told


def test_sheets_that_cannot_be_written(tmp_path: Path) -> None:
    data = PackedDataset(pack.pack_images(folder(tmp_path), tmp_path / "t", size=4).path)
    for place, message in ((tmp_path, "is a folder"), (tmp_path / "nowhere/x.png", "No such file")):
        with pytest.raises(ValueError, match=message):
            contact_sheet(data, data.groups(), place)
    assert not list(tmp_path.parent.glob(".*.part"))
    assert json.loads((data.path / "dataset.json").read_text()) == store.sealed(data._description)
