"""Compiles all Triton kernels for several GPU generations, without a GPU, and prints registers, stack and vectorized accesses.

`--all` compiles every configuration that tuning may choose. The default is the first configuration of each kernel.
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
WIDE = r"\.global\S*\.(?:v4\.b32|v2\.b64|v8\.b32|v4\.b64)"  # at least 128 bits
SMALL = dict(batch=8, columns=768)
SHAPES = [
    Shapes(**SMALL, classes=1000, dtype=torch.float32),
    Shapes(**SMALL, classes=128256, flip=True),
    Shapes(**SMALL, crop=True, flip=True),
    Shapes(**SMALL, flip=True, channels_last=False, dtype=torch.float16),
    Shapes(**SMALL, crop=True, flip=True, channels_last=False),
    Shapes(batch=3, size=29, channels=5, columns=17, classes=7),  # no size is a multiple of a vector
]


def resources(compiled: tuned.Compiled) -> str:
    """Registers, stack and number of vectorized loads and stores of a compiled kernel."""
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
    """One line per kernel. `task` is a capability, a position in SHAPES, and whether to compile all configurations."""
    capability, position, all_configs = task
    shapes = SHAPES[position]
    with tuned.offline(capability, all_configs) as compiled:
        for _, call in calls(shapes, "meta"):
            call()
    return list(_described(compiled, f"sm_{capability} size={shapes.size} classes={shapes.classes}"))


def _described(kernels: list[tuned.Compiled], shape: str) -> Iterator[str]:
    seen: set[str] = set()
    for compiled in kernels:
        settings: dict[str, Any] = {**compiled.constants, **compiled.options}
        text = " ".join(f"{k}={v}" for k, v in settings.items() if k not in ("num_ctas", "num_stages"))
        line = f"{compiled.kernel} {shape} {text} {resources(compiled)}"
        if line not in seen:
            seen.add(line)
            yield line


def main() -> None:
    all_configs = "--all" in sys.argv
    every_second = range(0, len(SHAPES), 2)  # these use every kernel, with and without a crop
    positions = {80: every_second, 90: range(len(SHAPES)), 100: every_second}
    tasks = [(c, p, all_configs) for c in positions for p in (range(len(SHAPES)) if all_configs else positions[c])]
    with ProcessPoolExecutor(2) as pool:
        for printed in pool.map(lines, tasks):
            print("\n".join(printed), flush=True)


if __name__ == "__main__":
    main()
