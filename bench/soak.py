"""`python -m bench.soak KIND... STEPS` measures the growth of memory while a loader makes many small batches."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from spurmix import GroupIndex, MixLoader, TokenSource, policies
from spurmix.data.sources.arrays import ImageSource, Source
from spurmix.data.sources.windowed import WindowedImages

EXAMPLES, BATCH = 500, 8
KINDS = ("map", "window", "direct", "tokens")
"""Memory-mapped file; file read by windows; the same with images large enough for O_DIRECT; texts."""


def _source(kind: str, folder: Path) -> Source:
    rng = np.random.default_rng(0)
    if kind == "tokens":
        return TokenSource.from_lists([rng.integers(1, 99, rng.integers(1, 40)).tolist() for _ in range(EXAMPLES)])
    side = 106 if kind == "direct" else 16
    path = folder / "images.npy"
    np.save(path, rng.integers(0, 256, (EXAMPLES, side, side, 3), dtype=np.uint8))
    if kind == "map":
        return ImageSource(np.load(path, mmap_mode="r", allow_pickle=False))
    return WindowedImages(path, 0, EXAMPLES, 4)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def soak(kind: str, steps: int) -> tuple[float, float]:
    """Load batches and measure resident memory after each hundredth of the run.

    Args:
        kind: One of `KINDS`.
        steps: Number of batches, at least 100.

    Returns:
        Seconds of the run, and the growth from the maximum in the second tenth to the maximum in the last tenth.
    """
    with tempfile.TemporaryDirectory() as folder:
        labels = np.arange(EXAMPLES) % 2
        groups = GroupIndex(labels, np.arange(EXAMPLES) // 2 % 2)
        loader = MixLoader(_source(kind, Path(folder)), groups, policies.lisa(), BATCH, steps=steps)
        seen = []
        began = time.perf_counter()
        for step, _ in enumerate(loader):
            if step % (steps // 100) == 0:
                seen.append(_resident())
        taken = time.perf_counter() - began
    return taken, max(seen[90:]) / max(seen[10:20]) - 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in sys.argv[1:-1]:
        print(json.dumps(soak(kind, int(sys.argv[-1]))))
