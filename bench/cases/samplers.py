"""Sampling: the draw of a batch, an epoch of draws, and building a `GroupIndex`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler

from bench.context import Context
from bench.registry import Case, Contender, case
from spurmix import GroupIndex, MixPolicy, functional, policies

BATCH = 256
SHARES = [0.73, 0.04, 0.01, 0.22]


def _groups(count: int) -> tuple[GroupIndex, np.ndarray]:
    """Return four groups of unequal size. They are built in pieces to keep memory at one byte per label."""
    rng = np.random.default_rng(0)
    edges = np.cumsum(SHARES)[:-1] * 256
    cells = np.empty(count, dtype=np.uint8)
    for start in range(0, count, 1 << 24):
        random = rng.integers(0, 256, min(1 << 24, count - start), dtype=np.uint8)
        cells[start : start + len(random)] = np.searchsorted(edges, random, side="right").astype(np.uint8)
    return GroupIndex(cells), cells


def _draw(count: int) -> Case:
    groups, cells = _groups(count)
    tables = functional.draw_tables(groups, policies.group_balanced())
    position = [0]

    def ours() -> None:
        functional.draw(tables, seed=1, start=position[0], count=BATCH)
        position[0] += BATCH

    out = [torch.empty(BATCH, dtype=torch.int64) for _ in range(3)]
    index, partner, group = out
    lam = torch.empty(BATCH)

    def kernel() -> None:
        torch.ops.spurmix.draw_out.default(
            tables.packed, tables.members, 1, position[0], None, index, partner, lam, group
        )
        position[0] += BATCH

    contenders = [Contender("spurmix", ours, "ours"), Contender("spurmix, operator into buffers", kernel, "variant")]
    rng = np.random.default_rng(0)
    order = groups.members
    assert order is not None

    # The peers use their own random numbers, so their results are not compared.
    def two_stages() -> None:
        chosen = rng.integers(0, 4, BATCH)
        order[groups.offsets[chosen] + (rng.random(BATCH) * groups.sizes[chosen]).astype(np.int64)]

    def multinomial() -> None:
        torch.multinomial(weights, BATCH, replacement=True)

    contenders.append(Contender("NumPy, two stages", two_stages, note="with replacement, no partner"))
    if count <= 10**7:
        weights = torch.from_numpy((1 / np.bincount(cells, minlength=4))[cells])
        contenders.append(Contender("torch.multinomial a batch", multinomial, note="with replacement, no partner"))
    return Case(contenders, items=BATCH, repeats=61)


def _register(name: str, count: int, quick: bool) -> None:
    def build(context: Context) -> Case:
        return _draw(count)

    build.__doc__ = f"Draw 256 group-balanced examples of {count:,}."
    case(name, quick=quick)(build)


_register("draw_1e6", 10**6, True)
_register("draw_1e7", 10**7, True)
_register("draw_2e7", 2 * 10**7, False)
_register("draw_1e9", 10**9, False)


def _epoch(count: int) -> Case:
    groups, cells = _groups(count)
    weights = torch.from_numpy((1 / np.bincount(cells, minlength=4))[cells])
    index, partner, group = (torch.empty(1 << 16, dtype=torch.int64) for _ in range(3))
    out = (index, partner, torch.empty(1 << 16), group)

    def drawing(replacement: bool) -> Callable[[], None]:
        tables = functional.draw_tables(groups, MixPolicy(replacement=replacement))

        def ours() -> None:
            for start in range(0, count, 1 << 16):
                here = min(1 << 16, count - start)
                functional.draw(tables, seed=1, start=start, count=here, out=[o[:here] for o in out])

        return ours

    def weighted() -> None:
        for _ in WeightedRandomSampler(weights, count):  # type: ignore[arg-type]
            pass

    contenders = [
        Contender("spurmix, with replacement", drawing(True), "ours", note="65,536 per call"),
        Contender("spurmix, without replacement", drawing(False), "variant", note="65,536 per call"),
        Contender("WeightedRandomSampler", weighted, note="with replacement"),
    ]
    return Case(contenders, items=count, repeats=5)


@case("epoch_1e6")
def epoch_1e6(context: Context) -> Case:
    """One epoch of 1,000,000 group-balanced indices."""
    return _epoch(10**6)


@case("epoch_1e7", quick=False)
def epoch_1e7(context: Context) -> Case:
    """One epoch of 10,000,000 group-balanced indices."""
    return _epoch(10**7)


@case("epoch_2e7", quick=False)
def epoch_2e7(context: Context) -> Case:
    """One epoch of 20,000,000 group-balanced indices, above the limit of 2^24 categories of torch.multinomial."""
    return _epoch(2 * 10**7)


_BUILD = """
import json, re, sys, time
import numpy as np
from spurmix import GroupIndex
count = int(sys.argv[1])
rng = np.random.default_rng(0)
labels = np.empty(count, dtype=np.uint8)
for start in range(0, count, 1 << 24):
    labels[start : start + (1 << 24)] = rng.integers(0, 4, min(1 << 24, count - start), dtype=np.uint8)
began = time.perf_counter()
groups = GroupIndex(labels)
seconds = time.perf_counter() - began
with open("/proc/self/status") as status:  # ru_maxrss includes the memory of the parent
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) * 1024
print(json.dumps([seconds, peak]))
"""


def _build(count: int) -> Case:
    """Build an index in its own process, to measure its peak memory."""
    contender = Contender("spurmix", lambda: None, "ours")

    def seconds() -> float:
        done = subprocess.run([sys.executable, "-c", _BUILD, str(count)], capture_output=True, text=True, check=True)
        taken, peak = json.loads(done.stdout)
        contender.note = f"peak {peak / 1e9:.2f} GB, including {count / 1e9:.2f} GB of labels"
        return float(taken)

    contender.seconds = seconds
    return Case([contender], items=count, repeats=1)


@case("index_1e8")
def index_1e8(context: Context) -> Case:
    """GroupIndex of 100,000,000 uint8 labels."""
    return _build(10**8)


@case("index_1e9", quick=False)
def index_1e9(context: Context) -> Case:
    """GroupIndex of 1,000,000,000 uint8 labels."""
    return _build(10**9)
