"""`pack_images`: results, reports, arguments and targets."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_samples import birds, class_folder, encoded, save_image
from PIL import Image

from spurmix import MixLoader, policies
from spurmix.cli.inspect import inspect, write_contact_sheet
from spurmix.data.dataset import checksums
from spurmix.data.dataset.format import DatasetError, with_checksum
from spurmix.data.dataset.packed import PackedDataset
from spurmix.data.pack import images
from spurmix.data.pack import writer as writer_module
from spurmix.data.pack.decode import decode_image
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.job import BrokenFiles
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.pack.layouts.waterbirds import from_waterbirds


def test_waterbirds_end_to_end(tmp_path: Path) -> None:
    root, target = birds(tmp_path / "birds"), tmp_path / "packed"
    report = pack_images(from_waterbirds(root), target, size=16)
    assert report.count == 24 and not report.broken and "24 examples" in str(report)
    data = PackedDataset(target)
    assert data.splits == {"train": 8, "val": 8, "test": 8}
    assert sorted(p.name for p in target.iterdir()) == ["dataset.json", "images.npy", "metadata.parquet"]
    for name, k in (("train", 0), ("val", 1), ("test", 2)):
        part = data.split(name)
        rows = np.arange(k, 24, 3)
        assert part.array.shape == (8, 16, 16, 3)
        assert part.array[:, 3, 3, 0].tolist() == (7 * rows % 256).tolist()
        assert part.metadata.labels.tolist() == (rows % 2).tolist()
        assert part.metadata.attributes["place"].tolist() == (rows // 2 % 2).tolist()
        assert all(f"{n:04d}" in s for n, s in zip(rows, part.metadata.sources, strict=True))
    groups = data.split("train").groups()
    assert groups.class_names == ("landbird", "waterbird") and groups.attribute_names == ("land", "water")
    batch = next(iter(MixLoader(data.split("train").source(), groups, policies.group_balanced(), 8)))
    assert batch.input.shape == (8, 3, 16, 16)
    assert data.verify() == []


def test_unreadable_files_are_listed_skipped_or_repaired(tmp_path: Path) -> None:
    root, target = birds(tmp_path / "birds", 12), tmp_path / "packed"
    (root / "000.Bird/Bird_0003.png").write_bytes(b"")
    (root / "001.Bird/Bird_0004.png").unlink()
    rows = from_waterbirds(root)
    with pytest.raises(
        BrokenFiles, match=r"2 files cannot be packed: .*Bird_0003.png: the file is empty; .*no such file"
    ) as error:
        pack_images(rows, target, size=8)
    assert not target.exists() and "broken.jsonl" in str(error.value)
    with pytest.raises(DatasetError, match="packing is incomplete"):
        PackedDataset(tmp_path / "packed.packing")
    save_image(root / "001.Bird/Bird_0004.png", 28)
    report = pack_images(rows, target, size=8, broken="skip")
    assert report.resumed == 10 and report.count == 11 and [s for s, _ in report.broken] == ["000.Bird/Bird_0003.png"]
    data = PackedDataset(target)
    expected = [7 * n % 256 for k in range(3) for n in range(k, 12, 3) if n != 3]
    assert data.array[:, 0, 0, 0].tolist() == expected and data.provenance["broken"] == 1 and data.verify() == []
    assert json.loads((target / "broken.jsonl").read_text())["reason"] == "the file is empty"


def test_packing_without_compiled_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = from_waterbirds(birds(tmp_path / "birds"))
    pack_images(found, tmp_path / "a", size=5)
    monkeypatch.setattr(writer_module, "host_module", lambda: None)
    pack_images(found, tmp_path / "b", size=5)
    assert (tmp_path / "a/images.npy").read_bytes() == (tmp_path / "b/images.npy").read_bytes()


@pytest.mark.parametrize(("part", "kept"), [(1, 1), (3, 7), (5, 100)])
def test_result_does_not_depend_on_workers_and_blocks(
    part: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the same for all settings, and its checksums are known without reading it again. After a disk error the
    written rows are kept, and the next call resumes."""
    found = from_waterbirds(birds(tmp_path / "birds", 30))
    pack_images(found, tmp_path / "a", size=40, workers=1)
    expected = (tmp_path / "a/images.npy").read_bytes()
    for name, value in (("RANGE_ROWS", part), ("BLOCK_ROWS", kept)):
        monkeypatch.setattr(images, name, value)
    monkeypatch.setattr(writer_module, "MIN_DIRECT_BYTES", 1)
    monkeypatch.setattr(checksums, "CHUNK", 9000)
    with monkeypatch.context() as patch:
        whole = checksums.file_checksums
        patch.setattr(
            checksums,
            "file_checksums",
            lambda path, known=None: list(known.values()) if path.name == "images.npy" else whole(path, known),
        )
        pack_images(found, tmp_path / "b", size=40, workers=5)
    assert (tmp_path / "b/images.npy").read_bytes() == expected and PackedDataset(tmp_path / "b").verify() == []
    with monkeypatch.context() as patch:
        reads = iter(range(100))

        def dying(data: bytes, *options: Any) -> Any:
            if next(reads) == 20:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return decode_image(data, *options)

        patch.setattr(images, "decode_image", dying)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            pack_images(found, tmp_path / "c", size=40, workers=4)
    report = pack_images(found, tmp_path / "c", size=40, workers=4)
    assert (tmp_path / "c/images.npy").read_bytes() == expected and PackedDataset(tmp_path / "c").verify() == []
    assert report.resumed <= 29 and (report.resumed > 0 or part != 1)


def test_bad_arguments(tmp_path: Path) -> None:
    rows = from_waterbirds(birds(tmp_path / "birds", 6))
    for arguments, message in (
        (dict(size=0), "size must be"), (dict(fit="stretch"), "fit must be"), (dict(workers=0), "workers must be 1 or more"),
        (dict(limit=0), "limit must be"), (dict(broken="hide"), "broken must be"), (dict(shard=(2, 2)), "shard must be"),
        (dict(shard=(0, 9)), "shard 0 of 9 has no examples"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pack_images(rows, tmp_path / "t", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "t").exists()


def test_invalid_targets(tmp_path: Path) -> None:
    found = class_folder(tmp_path)
    assert len(PackedDataset(pack_images(found, tmp_path / "we:ird", size=4).path)) == 12
    for target, message in (
        ("s3://b/t", "must be a local folder, got the URL"),
        (".", "must name a new folder"),
        (tmp_path / "x.packing", "must not end in .packing"),
    ):
        with pytest.raises(ValueError, match=message):
            pack_images(found, target, size=4)


PLAIN_USER = """
import os, sys
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.folder import from_folder
found = from_folder(sys.argv[1] + "/images")
pack_images(found, sys.argv[1] + "/first", size=4)  # imports modules that only root may be able to read
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for target in ("locked/t", "open/t", "open/t/deeper"):
    try:
        pack_images(found, f"{sys.argv[1]}/{target}", size=4)
        os.chmod(f"{sys.argv[1]}/{target}", 0o555)
    except ValueError as error:
        print(error)
"""


def test_target_without_write_permission() -> None:
    """Run as a user that is not root, because root may write anywhere."""
    root = Path(tempfile.mkdtemp())
    try:
        class_folder(root)
        (root / "locked").mkdir(mode=0o555)
        (root / "open").mkdir()
        root.chmod(0o755), (root / "open").chmod(0o777)
        done = subprocess.run([sys.executable, "-c", PLAIN_USER, str(root)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"target: cannot write into {root}/locked (Permission denied)",
            f"target: cannot write into {root}/open/t (Permission denied)",
        ]
        assert not any((root / "locked").iterdir())
        assert PackedDataset(root / "open/t").verify() == []
    finally:
        for path in (root / "locked", root / "open/t"):
            if path.exists():
                path.chmod(0o755)
        shutil.rmtree(root)


def test_inspect_escapes_markup_in_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("[red]cat", "[/bold]"):
        (tmp_path / "f" / name.replace("/", "")).mkdir(parents=True)
        (tmp_path / "f" / name.replace("/", "") / "1.png").write_bytes(encoded(Image.new("RGB", (6, 6))))
    inspect(pack_images(from_folder(tmp_path / "f"), tmp_path / "t", size=4).path)
    output = capsys.readouterr().out
    assert "[red]cat" in output and "[bold]" in output


def test_contact_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    data = PackedDataset(pack_images(class_folder(tmp_path), tmp_path / "t", size=4).path)
    for place, message in ((tmp_path, "got the folder"), (tmp_path / "nowhere/x.png", "No such file")):
        with pytest.raises(ValueError, match=message):
            write_contact_sheet(data, data.groups(), place)
    assert not list(tmp_path.parent.glob(".*.part"))
    assert json.loads((data.path / "dataset.json").read_text()) == with_checksum(data._description)
