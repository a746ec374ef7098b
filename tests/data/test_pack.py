"""Packing image files: decoding, listings, resuming after a kill, shards, bad files and tables; and what opens."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spurmix import ImageSource, MixLoader, policies
from spurmix.core.cells import host_module
from spurmix.data.dataset import checksums
from spurmix.data.dataset import packed as store
from spurmix.data.dataset.packed import DatasetError, PackedDataset
from spurmix.data.pack import images as pack
from spurmix.data.pack import manifest as listing
from spurmix.data.pack import writer as stripes
from spurmix.data.pack.decode import ImageError, decode, decoded
from spurmix.data.pack.job import Job
from spurmix.data.pack.merge import merge
from spurmix.ops.augment import Augment

RNG = np.random.default_rng(5)


def jpeg(path: Path, value: int = 0, size: tuple[int, int] = (20, 30), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), value % 256, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def birds(root: Path, count: int = 24) -> Path:
    """Waterbirds' layout: the pixel value of row n is 7 n."""
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    for n in range(count):
        name = f"{n % 3:03d}.Bird/Bird_{n:04d}.png"
        jpeg(root / name, 7 * n)
        rows.append(f"{n},{name},{n % 2},{n % 3},{n // 2 % 2},x")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def test_waterbirds_end_to_end(tmp_path: Path) -> None:
    root, target = birds(tmp_path / "birds"), tmp_path / "packed"
    report = pack.pack_images(listing.waterbirds(root), target, size=16)
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


def test_celeba_folders_tables_and_limits(tmp_path: Path) -> None:
    root = tmp_path / "celeba"
    for n in range(6):
        jpeg(root / f"img_align_celeba/{n:06d}.jpg", n)
    (root / "list_attr_celeba.csv").write_text(
        "image_id,Blond_Hair,Male,Young\n"
        + "".join(f"{n:06d}.jpg,{1 if n % 2 else -1},{1 if n > 2 else -1},1\n" for n in range(6))
    )
    (root / "list_eval_partition.csv").write_text(
        "image_id,partition\n" + "".join(f"{n:06d}.jpg,{n // 2}\n" for n in range(6))
    )
    found = listing.celeba(root, attributes=("Male", "Young"))
    assert found.metadata.labels.tolist() == [0, 1] * 3 and found.metadata.splits[-1] == "test"
    pack.pack_images(found, tmp_path / "c", size=(8, 12), fit="exact", limit=1)
    data = PackedDataset(tmp_path / "c")
    assert data.array.shape == (3, 8, 12, 3) and data.groups("Young").num_groups == 1
    with pytest.raises(ValueError, match="attribute must be one of Male, Young"):
        data.groups("Hat")

    for split, name, n in (("train", "cat", 0), ("train", "dog", 1), ("val", "dog", 2)):
        jpeg(tmp_path / "tree" / split / name / f"{n}.jpg", n)
    tree = listing.from_folder(tmp_path / "tree")
    assert tree.metadata.class_names == ("cat", "dog") and tree.metadata.splits == ["train", "train", "val"]
    assert tree.metadata.labels.tolist() == [0, 1, 1]
    flat = listing.from_folder(tmp_path / "tree" / "train")
    assert flat.metadata.class_names == ("cat", "dog") and set(flat.metadata.splits) == {"train"}

    table = tmp_path / "tree" / "list.csv"
    table.write_text("file,kind,place\ntrain/cat/0.jpg,cat,indoors\ntrain/dog/1.jpg,dog,\nval/dog/2.jpg,dog,outdoors\n")
    rows = listing.from_table(table, path="file", label="kind", attributes=("place",))
    assert rows.metadata.attributes["place"].tolist() == [0, -1, 1] and rows.notes == (
        "place is unknown in 1 of 3 rows",
    )
    assert rows.metadata.attribute_names == {"place": ("indoors", "outdoors")}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_kind_of_image_becomes_upright_rgb() -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, :3] = (200, 30, 60)
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise
    assert decode(encoded(image, "PNG"), (4, 6)).tolist() == pixels.tolist()
    assert decode(encoded(image, "PNG", exif=turned), (6, 4)).tolist() == np.rot90(pixels, -1).tolist()
    assert decode(encoded(image.convert("P"), "GIF"), (4, 6)).shape == (4, 6, 3)
    assert abs(decode(encoded(image.convert("CMYK"), "TIFF"), (4, 6)).astype(int) - pixels).max() <= 2
    assert decode(encoded(image.convert("RGBA"), "PNG"), (4, 6)).tolist() == pixels.tolist()
    assert decode(encoded(image.convert("LA"), "PNG"), (4, 6)).shape == (4, 6, 3)
    deep = Image.fromarray(np.full((4, 6), 0x8123, dtype=np.uint16))
    assert (decode(encoded(deep, "PNG"), (4, 6)) == 0x81).all()
    wide = decode(
        encoded(
            Image.fromarray(np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2)), "PNG"
        ),
        (10, 10),
    )
    assert 95 < wide.mean() < 145 and wide.shape == (10, 10, 3)  # the centre of a picture 6 times as wide as high


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "no image of a known format"),
        (
            encoded(Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")[:700],
            "cannot be read: .*truncated",
        ),
    ],
)
def test_what_is_no_image_says_why(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data, (4, 4))


@pytest.mark.filterwarnings("ignore:Image size")
def test_images_that_claim_any_size_are_refused() -> None:
    header = encoded(Image.new("RGB", (8, 8)), "PNG")
    claim = header[12:16] + (12_000).to_bytes(4, "big") + (12_000).to_bytes(4, "big") + header[24:29]
    huge = header[:12] + claim + zlib.crc32(claim).to_bytes(4, "big") + header[33:]
    with pytest.raises(ImageError, match="12000 x 12000 pixels are more than"):
        decode(huge, (4, 4))


def test_broken_files_are_listed_then_skipped_or_mended(tmp_path: Path) -> None:
    root, target = birds(tmp_path / "birds", 12), tmp_path / "packed"
    (root / "000.Bird/Bird_0003.png").write_bytes(b"")
    (root / "001.Bird/Bird_0004.png").unlink()
    rows = listing.waterbirds(root)
    with pytest.raises(
        pack.BrokenFiles, match=r"2 files cannot be packed: .*Bird_0003.png: the file is empty; .*no such file"
    ) as error:
        pack.pack_images(rows, target, size=8)
    assert not target.exists() and "broken.jsonl" in str(error.value)
    with pytest.raises(DatasetError, match="packing was broken off"):
        PackedDataset(tmp_path / "packed.packing")
    jpeg(root / "001.Bird/Bird_0004.png", 28)
    report = pack.pack_images(rows, target, size=8, broken="skip")
    assert report.resumed == 10 and report.count == 11 and [s for s, _ in report.broken] == ["000.Bird/Bird_0003.png"]
    data = PackedDataset(target)
    expected = [7 * n % 256 for k in range(3) for n in range(k, 12, 3) if n != 3]
    assert data.array[:, 0, 0, 0].tolist() == expected and data.made["broken"] == 1 and data.verify() == []
    assert json.loads((target / "broken.jsonl").read_text())["reason"] == "the file is empty"


def test_shards_merge_to_what_one_process_packs(tmp_path: Path) -> None:
    rows = listing.waterbirds(birds(tmp_path / "birds", 20))
    pack.pack_images(rows, tmp_path / "whole", size=8)
    parts = [pack.pack_images(rows, tmp_path / "p", size=8, shard=(k, 3)).path for k in range(3)]
    assert [p.name for p in parts] == [f"p.shard-{k}-of-3" for k in range(3)]
    merge(list(parts), tmp_path / "merged")
    whole, merged = PackedDataset(tmp_path / "whole"), PackedDataset(tmp_path / "merged")
    assert np.array_equal(whole.array, merged.array) and whole.metadata.sources == merged.metadata.sources
    assert whole.splits == merged.splits and merged.verify() == []
    for wrong, message in (
        ([1, 0, 2], r"shard-1-of-3 \(shard 1\) and .*shard-0-of-3 \(shard 0\) are in the wrong order"),
        ([0, 1, 1], "shard-1-of-3 comes twice"),
    ):
        with pytest.raises(ValueError, match=message):
            merge([parts[k] for k in wrong], tmp_path / "wrong")
    assert (
        "of 3 shards these were not merged: 1"
        in PackedDataset(merge([parts[0], parts[2]], tmp_path / "two").path).made["notes"]
    )
    whole_again = pack.pack_images(rows, tmp_path / "again", size=8).path
    with pytest.raises(ValueError, match="again is no shard of 3, as others are"):
        merge([parts[0], whole_again], tmp_path / "wrong")
    with pytest.raises(ValueError, match="do not lie together"):
        merge([tmp_path / "whole", whole_again], tmp_path / "wrong")
    pack.pack_images(rows, tmp_path / "other", size=6)
    with pytest.raises(ValueError, match="shape or dtype of its images differ"):
        merge([parts[0], tmp_path / "other"], tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


CHILD = """
import sys
from spurmix.data.pack import manifest as listing
from spurmix.data.pack import images as pack
pack.KEPT = 32
pack.pack_images(listing.waterbirds(sys.argv[1]), sys.argv[2], size=64, workers=2, broken="skip")
"""


def test_killed_at_random_it_goes_on_and_nothing_wrong_ever_opens(tmp_path: Path) -> None:
    root, target = birds(tmp_path / "birds", 600), tmp_path / "packed"
    for n in (4, 5, 301):
        (root / f"{n % 3:03d}.Bird/Bird_{n:04d}.png").write_bytes(b"")
    pack.pack_images(listing.waterbirds(root), tmp_path / "sound", size=64, broken="skip")
    sound = PackedDataset(tmp_path / "sound")
    moments, kills = random.Random(4), 0
    while not target.exists():
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(root), str(target)])
        time.sleep(moments.uniform(0.1, 0.9) if kills < 20 else 60)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
        if target.exists():
            assert np.array_equal(PackedDataset(target).array, sound.array)
    data = PackedDataset(target)
    assert kills and np.array_equal(data.array, sound.array) and data.verify() == []
    assert not (tmp_path / "packed.packing").exists()


def test_two_packers_on_one_target(tmp_path: Path) -> None:
    rows = listing.waterbirds(birds(tmp_path / "birds", 6))
    with Job(tmp_path / "t", "images", {}), pytest.raises(ValueError, match="another process is packing"):
        pack.pack_images(rows, tmp_path / "t", size=4)
    pack.pack_images(rows, tmp_path / "t", size=4)
    with pytest.raises(ValueError, match="exists already"):
        pack.pack_images(rows, tmp_path / "t", size=4)
    with pytest.raises(ValueError, match="cannot write into"):
        pack.pack_images(rows, "/dev/null/t", size=4)


def test_no_space_is_told_before_anything_is_decoded(tmp_path: Path) -> None:
    rows = listing.waterbirds(birds(tmp_path / "birds", 60))
    with pytest.raises(OSError, match=r"packing takes .* GiB, .* are free"):
        pack.pack_images(rows, tmp_path / "t", size=32767)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "images.npy").unlink(), "images.npy has gone"),
        (lambda d: (d / "images.npy").write_bytes((d / "images.npy").read_bytes()[:-1]), r"images.npy has [\d,]+ bytes, [\d,]+ bytes were"),
        (lambda d: (d / "dataset.json").unlink(), "it has no dataset.json"),
        (lambda d: (d / "dataset.json").write_text("{"), "dataset.json is damaged"),
        (lambda d: edit(d, format=2), "format 2, this version reads up to 1; update spurmix"),
        (lambda d: edit(d, kind="sounds"), "dataset.json is damaged: 'kind'"),
        (lambda d: edit(d, count=5), "has 6 rows, 5 were written"),
        (lambda d: edit(d, classes=["a"]), r"column label must lie in \[0, 1\)"),
        (lambda d: edit(d, attributes={"hat": ["no", "yes"]}), "has no column hat"),
    ],
)  # fmt: skip
def test_what_is_damaged_does_not_open(change: Any, message: str, tmp_path: Path) -> None:
    pack.pack_images(listing.waterbirds(birds(tmp_path / "birds", 6)), tmp_path / "t", size=4)
    change(tmp_path / "t")
    with pytest.raises(DatasetError, match=message):
        PackedDataset(tmp_path / "t")
    with pytest.raises(DatasetError, match="is no folder"):
        PackedDataset(tmp_path / "nowhere")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(store.sealed(json.loads(path.read_text()) | changes)))


def test_packing_without_compiled_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = listing.waterbirds(birds(tmp_path / "birds"))
    pack.pack_images(found, tmp_path / "a", size=5)
    monkeypatch.setattr(stripes, "host_module", lambda: None)
    pack.pack_images(found, tmp_path / "b", size=5)
    assert (tmp_path / "a/images.npy").read_bytes() == (tmp_path / "b/images.npy").read_bytes()


@pytest.mark.parametrize(("part", "kept"), [(1, 1), (3, 7), (5, 100)])
def test_workers_share_stripes(part: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rows are shared out, the file is the same; its checksums are known without a second look; an error of the disk
    under one worker ends the others, keeps what was written, and is made good by the next start."""
    found = listing.waterbirds(birds(tmp_path / "birds", 30))
    pack.pack_images(found, tmp_path / "a", size=40, workers=1)
    expected = (tmp_path / "a/images.npy").read_bytes()
    for name, value in (("PART", part), ("KEPT", kept)):
        monkeypatch.setattr(pack, name, value)
    monkeypatch.setattr(stripes, "DIRECT_FROM", 1)
    monkeypatch.setattr(checksums, "CHUNK", 9000)
    with monkeypatch.context() as patch:
        whole = checksums.of_file
        patch.setattr(
            checksums,
            "of_file",
            lambda path, known=None: list(known.values()) if path.name == "images.npy" else whole(path, known),
        )
        pack.pack_images(found, tmp_path / "b", size=40, workers=5)
    assert (tmp_path / "b/images.npy").read_bytes() == expected and PackedDataset(tmp_path / "b").verify() == []
    with monkeypatch.context() as patch:
        reads = iter(range(100))

        def dying(data: bytes, *options: Any) -> Any:
            if next(reads) == 20:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return decoded(data, *options)

        patch.setattr(pack, "decoded", dying)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            pack.pack_images(found, tmp_path / "c", size=40, workers=4)
    report = pack.pack_images(found, tmp_path / "c", size=40, workers=4)
    assert (tmp_path / "c/images.npy").read_bytes() == expected and PackedDataset(tmp_path / "c").verify() == []
    assert report.resumed <= 29 and (report.resumed > 0 or part != 1)


def test_verify_finds_a_flipped_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "CHUNK", 256)
    pack.pack_images(listing.waterbirds(birds(tmp_path / "birds", 12)), tmp_path / "t", size=8)
    path = tmp_path / "t" / "images.npy"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    (damage,) = PackedDataset(tmp_path / "t").verify()
    assert (damage.begin, damage.end) == (512, 768) and "bytes 512 to 768 are damaged" in str(damage)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n../x.jpg,0\n", "row 0: the path '../x.jpg' leaves the root"),
        ("path,label\n/etc/x.jpg,0\n", "leaves the root"),
        ("path,label\na.jpg,0\nb.jpg,1\n./a.jpg,1\n", "row 2: './a.jpg' stands in row 0 too"),
        ("path,label\na.jpg,0.5\n", "row 0: label must be an integer or a name, got 0.5"),
        ("path,label\na.jpg,0\nb.jpg,\n", "row 1: label is missing"),
        ("path,label\na.jpg,0\nb.jpg,-3\n", "row 1: label must be 0 or more, got -3"),
        ("file,label\na.jpg,0\n", "no column 'path'; there are file, label"),
        ("path,label\n", "has no rows"),
        ("", "cannot be read"),
    ],
)
def test_tables_that_cannot_be_packed(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        listing.from_table(table)
    with pytest.raises(ValueError, match="no images in class folders"):
        listing.from_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        listing.from_folder(tmp_path / "nowhere")


def test_bad_arguments(tmp_path: Path) -> None:
    rows = listing.waterbirds(birds(tmp_path / "birds", 6))
    for arguments, message in (
        (dict(size=0), "size must be"), (dict(fit="stretch"), "fit must be"), (dict(workers=0), "workers must be 1 or more"),
        (dict(limit=0), "limit must be"), (dict(broken="hide"), "broken must be"), (dict(shard=(2, 2)), "shard must be"),
        (dict(shard=(0, 9)), "shard 0 of 9 has no examples"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pack.pack_images(rows, tmp_path / "t", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "t").exists()


def loaders(data: PackedDataset, window: int, **options: Any) -> MixLoader:
    groups = data.groups()
    return MixLoader(data.source(window), groups, policies.lisa(), 6, seed=3, steps=11, **options)


@pytest.mark.parametrize("window", [1, 3, 4, 20])
@pytest.mark.parametrize(
    "options", [{}, dict(augment=Augment(size=5), dtype=torch.bfloat16), dict(prefetch=0, copy=True)]
)
def test_windows_read_what_a_map_holds(window: int, options: Any, packed: PackedDataset) -> None:
    data = packed.split("val")
    for rank in (0, 1):
        mapped, read = (loaders(data, w, rank=rank, world_size=2, **options) for w in (0, window))
        for a, b in zip(mapped, read, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
        expected = mapped.batch(7)
        read.set_step(7)
        assert torch.equal(next(iter(read)).input, expected.input) and torch.equal(
            read.batch(2).input, mapped.batch(2).input
        )


def test_windowed_images_are_a_source_like_any_other(packed: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed.split("test")
    mapped, read = data.source(), data.source(window=2)
    assert isinstance(mapped, ImageSource) and isinstance(read, ImageSource)
    index = torch.tensor([5, 0, 5, 3])
    for host in (True, False):
        if not host:
            monkeypatch.setattr("spurmix.data.sources.windowed.host_module", lambda: None)
        assert torch.equal(mapped.gather(index), read.gather(index)) and torch.equal(mapped.raw(index), read.raw(index))
    batch = next(iter(loaders(data, 2, augment=Augment(size=5))))
    assert torch.allclose(batch.input, loaders(data, 0, augment=Augment(size=5)).batch(0).input, atol=1e-2)
    assert "2 batches at a time" in repr(read) and torch.equal(read.images, mapped.images)
    with pytest.raises(IndexError, match="index must lie in"):
        read.raw(torch.tensor([99]))
    with pytest.raises(ValueError, match="window must be 1 or more"):
        data.source(window=-1)
    with pytest.raises(ValueError, match="read from their file"):
        loaders(data, 2).static_batch()


def test_a_file_that_shrinks_is_an_error_of_the_batch(tmp_path: Path) -> None:
    pack.pack_images(listing.waterbirds(birds(tmp_path / "birds", 24)), tmp_path / "t", size=8)
    data = PackedDataset(tmp_path / "t")
    loader, read = loaders(data, 2), data.source(window=1)
    os.truncate(tmp_path / "t" / "images.npy", 600)
    with pytest.raises(OSError, match=r"images\.npy: ends before row \d"):
        next(iter(loader))
    for host in (host_module(), None):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=r"images\.npy: ends before row 5"):
            patch.setattr("spurmix.data.sources.windowed.host_module", lambda host=host: host)
            read.raw(torch.tensor([0, 5]))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("packed")
    pack.pack_images(listing.waterbirds(birds(folder / "birds", 60)), folder / "t", size=8)
    return PackedDataset(folder / "t")


SCARCE = """
import resource, sys, torch, spurmix
from spurmix.data.dataset.packed import PackedDataset
from spurmix import MixLoader, policies
torch.set_num_threads(1)
data = PackedDataset(sys.argv[1])
loader = MixLoader(data.source(window=2), data.groups(), policies.group_balanced(), 32, steps=40, seed=1)
next(iter(loader))  # what is allocated once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
loader.set_step(0)
rows = set()
for batch in loader:
    rows.update(batch.index.tolist())
print(len(rows))
"""


def test_data_of_four_times_the_memory(tmp_path: Path, scarce: Any) -> None:
    """The limit is set by the child on itself: address space for a quarter of the images beyond what it uses at first."""
    root, target = birds(tmp_path / "birds", 8), tmp_path / "t"
    pack.pack_images(listing.waterbirds(root), tmp_path / "small", size=256)
    small = PackedDataset(tmp_path / "small")
    rows = np.arange(2000) % 8  # 400 MB, most of it the same eight images
    target.mkdir()
    images = np.lib.format.open_memmap(target / "images.npy", mode="w+", dtype=np.uint8, shape=(2000, 256, 256, 3))
    images[:] = small.array[rows]
    metadata = small.metadata.take(rows)
    store.write_metadata(target, metadata)
    store.describe(target, "images", metadata, small.made)
    done = scarce(SCARCE, target, images.nbytes // 4)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 700
