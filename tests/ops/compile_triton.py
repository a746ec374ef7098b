"""Compiles every Triton kernel for GPU generations and prints registers, stack and wide accesses; needs no GPU.

`--all` compiles every configuration that tuning may choose, otherwise the defaults.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton

from spurmix.cli.warmup_kernels import Shapes, calls
from spurmix.kernels import tuned

CUOBJDUMP = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
WIDE = r"\.global\S*\.(?:v4\.b32|v2\.b64|v8\.b32|v4\.b64)"  # 128 bits and more
SMALL = dict(batch=8, columns=768)
SHAPES = [
    Shapes(**SMALL, classes=1000, dtype=torch.float32),
    Shapes(**SMALL, classes=128256, flip=True),
    Shapes(**SMALL, crop=True, flip=True),
    Shapes(**SMALL, flip=True, channels_last=False, dtype=torch.float16),
    Shapes(**SMALL, crop=True, flip=True, channels_last=False),
    Shapes(batch=3, size=29, channels=5, columns=17, classes=7),  # nothing is a multiple of anything
]


def resources(compiled: tuned.Compiled) -> str:
    """Registers, stack and the number of wide loads and stores of one compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.result.asm["cubin"])
        cubin.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", cubin.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", shown)[0]
    code = compiled.result.asm["ptx"]
    loads, stores = (len(re.findall(access + WIDE, code)) for access in ("ld", "st"))
    return f"loads={loads} stores={stores} registers={registers} stack={stack}"


def lines(task: tuple[int, int, bool]) -> list[str]:
    """One line for each kernel of shapes number `task[1]`, compiled for a capability."""
    capability, which, every = task
    shapes = SHAPES[which]
    with tuned.offline(capability, every) as made:
        for _, call in calls(shapes, "meta"):
            call()
    return list(_described(made, f"sm_{capability} size={shapes.size} classes={shapes.classes}"))


def _described(made: list[tuned.Compiled], where: str) -> Iterator[str]:
    seen: set[str] = set()
    for compiled in made:
        settings: dict[str, Any] = {**compiled.constants, **compiled.options}
        text = " ".join(f"{k}={v}" for k, v in settings.items() if k not in ("num_ctas", "num_stages"))
        line = f"{compiled.kernel} {where} {text} {resources(compiled)}"
        if line not in seen:
            seen.add(line)
            yield line


def main() -> None:
    every = "--all" in sys.argv
    few = range(0, len(SHAPES), 2)  # every kernel, with and without a crop
    chosen = {80: few, 90: range(len(SHAPES)), 100: few}
    tasks = [(c, w, every) for c in chosen for w in (range(len(SHAPES)) if every else chosen[c])]
    with ProcessPoolExecutor(2) as pool:
        for found in pool.map(lines, tasks):
            print("\n".join(found), flush=True)


if __name__ == "__main__":
    main()
