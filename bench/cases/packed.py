"""Packed datasets: packing image files, reading from page cache and disk, and memory during a long run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import limits
from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import ImageSource, MixLoader, PackedDataset, policies
from spurmix.core.memory import pages
from spurmix.data.dataset import format as store
from spurmix.data.pack.images import pack_images
from spurmix.data.pack.layouts.folder import from_folder
from spurmix.data.sources.windowed import WindowedImages

IMAGES, SIDE, BATCH, BATCHES = 9900, 224, 256, 40
FILES, CHECKED = 8000, 64
SOAK, GROWTH = 100_000, 0.01


def _photo(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Return an image of smooth color fields, texture and a few discs. It compresses about as well as a photograph."""
    from PIL import Image

    def field(cells: int, strength: float) -> NDArray[np.float32]:
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        grown = small.resize((width, height), Image.Resampling.BICUBIC)
        return strength * (np.asarray(grown, dtype=np.float32) - 128)

    values = 128 + field(5, 0.9) + field(40, 0.35) + field(150, 0.2)
    y, x = np.mgrid[:height, :width]
    for _ in range(6):
        radius, top, left = rng.uniform(0.05, 0.25) * height, rng.uniform(0, height), rng.uniform(0, width)
        values[(y - top) ** 2 + (x - left) ** 2 < radius**2] += rng.uniform(-80, 80, 3).astype(np.float32)
    return values.clip(0, 255).astype(np.uint8)


def _photos(height: int, width: int) -> Path:
    """Return a folder of JPEGs in two classes, created on first use. Each image is saved in ten qualities around 90."""
    from PIL import Image

    folder = limits.FOLDER / f"photos-{height}x{width}"
    if not folder.is_dir():
        making = folder.with_name(f"{folder.name}.{os.getpid()}")
        rng = np.random.default_rng(0)
        for name in ("a", "b"):
            (making / name).mkdir(parents=True)
        for n in range(FILES // 10):
            picture = Image.fromarray(_photo(rng, height, width))
            for k in range(10):
                picture.save(making / "ab"[k % 2] / f"{n:04d}-{k}.jpg", quality=85 + k)
        making.replace(folder)
    return folder


def _packing(context: Context, height: int, width: int, repeats: int) -> Case:
    from PIL import Image

    root = _photos(height, width)
    found = from_folder(root)
    files = [root / source for source in found.metadata.sources]
    target, workers = limits.FOLDER / "packing", context.threads
    # Each turn starts new threads, and there are many turns. The alignment of Pillow's row buffer decides whether
    # libjpeg-turbo writes it past the caches, which makes Pillow up to a third slower.

    def ours(workers: int = workers) -> float:
        shutil.rmtree(target, ignore_errors=True)
        began = time.perf_counter()
        pack_images(found, target, size=SIDE, workers=workers, progress=False)
        return time.perf_counter() - began

    def packed(workers: int = workers) -> Tensor:
        ours(workers)
        return torch.from_numpy(PackedDataset(target).array[:CHECKED].copy())

    def decoded(path: Path) -> Any:
        """Decode and resize a file with Pillow alone."""
        with Image.open(path) as image:
            whole = image.convert("RGB")
            if whole.size == (SIDE, SIDE):
                return whole
            short = min(whole.size)
            left, top = ((extent - short) / 2 for extent in whole.size)
            box = (left, top, left + short, top + short)
            return whole.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)

    def pillow() -> float:
        def drop(part: list[Path]) -> None:
            for path in part:
                decoded(path)

        began = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(drop, [files[k : k + 32] for k in range(0, len(files), 32)]))
        return time.perf_counter() - began

    return Case(
        [
            Contender("spurmix pack", packed, "ours", seconds=ours),
            Contender(
                "spurmix pack, one more worker",
                lambda: packed(workers + 1),
                "variant",
                note="default of the command",
                seconds=lambda: ours(workers + 1),
            ),
            Contender(
                "Pillow decode and resize alone",
                lambda: torch.from_numpy(np.stack([np.asarray(decoded(path)) for path in files[:CHECKED]])),
                "baseline", "results are dropped, nothing is written", pillow,
            ),
        ],
        items=FILES, tolerance=1, repeats=repeats, least=repeats,
    )  # fmt: skip


@case("pack_224", quick=False)
def pack_224(context: Context) -> Case:
    """Pack 8,000 JPEGs of 224 x 224 pixels with checksums. Pillow's decoding alone uses as many threads."""
    return _packing(context, SIDE, SIDE, 25)


@case("pack_500x375", quick=False)
def pack_500x375(context: Context) -> Case:
    """Pack 8,000 JPEGs of 500 x 375 pixels to 224 x 224. Pillow's decode and resize alone uses as many threads."""
    return _packing(context, 375, 500, 7)


def _dataset() -> PackedDataset:
    """Return a packed dataset of 1.5 GB of noise, created on first use."""
    folder = limits.FOLDER / "noise"
    if not folder.is_dir():
        making = folder.with_name(f"noise.{os.getpid()}")
        making.mkdir(parents=True)
        rng = np.random.default_rng(0)
        images = np.lib.format.open_memmap(making / "images.npy", "w+", np.uint8, (IMAGES, SIDE, SIDE, 3))
        for n in range(0, IMAGES, 100):
            images[n : n + 100] = rng.integers(0, 256, images[n : n + 100].shape, dtype=np.uint8)
        images.flush()
        cells = rng.integers(0, 2, (2, IMAGES))
        metadata = store.Metadata(
            cells[0],
            ["train"] * IMAGES,
            [str(n) for n in range(IMAGES)],
            {"a": cells[1]},
            ("0", "1"),
            {"a": ("0", "1")},
        )
        store.write_metadata(making, metadata)
        store.write_description(making, "images", metadata, {})
        making.replace(folder)
    return PackedDataset(folder)


def _loader(source: Any, data: PackedDataset, steps: int = BATCHES) -> MixLoader:
    return MixLoader(source, data.groups(), policies.balance_attributes(), BATCH, seed=1, steps=steps)


@case("packed_cache", quick=False)
def packed_cache(context: Context) -> Case:
    """40 batches of 256 from a packed file of 1.5 GB in the page cache, compared with images in process memory.

    The batches draw about 90% of the images. Each loader runs continuously, as in training.
    """
    data = _dataset()
    mapped = data.source()
    held = ImageSource(torch.from_numpy(np.array(data.array)))  # also reads the file into the page cache

    def contender(name: str, source: Any, kind: str) -> Contender:
        loader = _loader(source, data, 10**6)
        stream: list[Iterator[Any]] = []

        def seconds() -> float:
            if not stream:
                stream.append(iter(loader))
            began = time.perf_counter()
            for _ in range(BATCHES):
                next(stream[0])
            return time.perf_counter() - began

        return Contender(name, lambda: loader.batch(3).input, kind, seconds=seconds)

    return Case(
        [contender("spurmix, mapped file", mapped, "ours"), contender("spurmix, images in memory", held, "baseline")],
        items=BATCH * BATCHES, repeats=7,
    )  # fmt: skip


@case("packed_disk", quick=False)
def packed_disk(context: Context) -> Case:
    """Rows per second read from a cold disk for mixed batches of 256: loader, limit of the disk, memory-mapped file.

    The pages of the file are dropped from the page cache before each turn, which mincore confirms. The loader reads each
    row of a window once with O_DIRECT. Its time covers ten windows of a running loader, after two windows of warm-up. The
    limit reads as many rows in random order with O_DIRECT into huge pages, with the fastest of three numbers of threads,
    and mixes nothing. The memory-mapped file is read by one thread, row by row in draw order, each row once. Its time is
    extrapolated from 2,000 rows.
    """
    data = _dataset()
    path = data.path / "images.npy"
    row, begin = SIDE * SIDE * 3, store.read_array_header(path)[2]
    window = data.source(tier="disk")
    assert isinstance(window, WindowedImages)
    size = window.batches(BATCH, 10**6)
    warm, timed = 2 * size, 10 * size
    drawn = [_draw(data, k) for k in range(warm, warm + timed)]
    rows = sum(np.unique(np.concatenate(drawn[k : k + size])).size for k in range(0, timed, size))
    ordered = np.concatenate(drawn)
    ordered = ordered[np.sort(np.unique(ordered, return_index=True)[1])]
    rng = np.random.default_rng(2)
    offsets = begin + row * np.concatenate([rng.permutation(IMAGES) for _ in range(-(-rows // IMAGES))])[:rows]
    memory = pages(1 << 29)
    memory[:] = 1  # touch the pages before timing

    def ours() -> float:
        limits.drop_from_cache(path)
        batches = iter(_loader(window, data, 10**6))
        for _ in range(warm):
            next(batches)
        began = time.perf_counter()
        for _ in range(timed):
            next(batches)
        return time.perf_counter() - began

    def limit(threads: int) -> float:
        limits.drop_from_cache(path)
        began = time.perf_counter()
        limits.disk_limit(path, offsets, row, memory, threads)
        return time.perf_counter() - began

    def one_by_one() -> float:
        limits.drop_from_cache(path)
        mapped, copy = np.load(path, mmap_mode="r", allow_pickle=False), np.empty((SIDE, SIDE, 3), np.uint8)
        began = time.perf_counter()
        for n in ordered[:2000].tolist():
            copy[:] = mapped[n]
        return (time.perf_counter() - began) / 2000 * rows

    def checked() -> Tensor:
        return _loader(window, data).batch(3).input

    contenders = [
        Contender(
            "spurmix, windows", checked, "ours", f"{size} batches per window", ours
        ),
        Contender(
            "memory-mapped file, row by row", lambda: None, note="one thread; no mixing; measured on 2,000 rows",
            seconds=one_by_one,
        ),
    ]  # fmt: skip
    absent = []
    if limits.library() is not None:
        best = min((8, 16, 32), key=limit)
        note = f"{best} threads; no mixing"
        contenders.append(Contender("disk limit", lambda: None, "limit", note, lambda: limit(best)))
    else:
        absent.append(limits.UNAVAILABLE.replace("memory", "disk"))
    return Case(contenders, items=rows, repeats=7, absent=absent)


def _draw(data: PackedDataset, step: int) -> NDArray[np.int64]:
    """Return the examples of batch number `step`."""
    from spurmix import functional

    tables = functional.draw_tables(data.groups(), policies.balance_attributes())
    index, partner, *_ = functional.draw(tables, seed=1, start=step * BATCH, count=BATCH)
    return torch.cat([index, partner]).numpy()


@case("soak", quick=False)
def soak(context: Context) -> Case:
    """100,000 batches of 8 from each kind of source in its own process. The notes show the growth of memory.

    Growth is measured from 10% of the run to its end. More than 1% is an error.
    """

    def contender(kind: str, name: str) -> Contender:
        def seconds() -> float:
            command = [sys.executable, "-m", "bench.soak", kind, str(SOAK)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
            taken, growth = json.loads(done.stdout)
            contender.note = f"memory grew by {growth:.2%}"
            if growth >= GROWTH:
                raise RuntimeError(f"soak, {name}: {contender.note}")
            return float(taken)

        contender = Contender(name, lambda: None, "ours" if kind == "map" else "variant", seconds=seconds)
        return contender

    names = {"map": "mapped file", "window": "windows", "direct": "windows of large images", "tokens": "texts"}
    return Case([contender(kind, name) for kind, name in names.items()], items=SOAK * 8, repeats=1)
