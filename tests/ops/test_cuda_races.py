"""The search for races in emulated CUDA kernels (tests/cuda/races.cpp): what it finds in kernels that are broken."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import emulated

FOUND = {
    "sound": "^sound$",
    "no_barrier": "^shared memory: thread 1 of block 0 reads .*thread 0 of block 0 writes .*: a race$",
    "warp_barrier_for_a_block": "^shared memory: thread 32 .*thread 16 .*: a race$",
    "shuffle_for_a_barrier": "^shared memory: .*: a race$",
    "written_while_read": "^shared memory: .*: a race$",
    "never_written": "^shared memory: thread 0 .*: nothing was written there$",
    "blocks_write_one_place": "^global memory: thread 0 of block 1 writes .*thread 0 of block 0 writes .*: a race$",
    "counts_without_atomics": "^global memory: .*: a race$",
    "reads_a_counter": "^global memory: .*atomically.*: a race$",
    "old_values": "^global memory: .*__ldg may see an old value$",
    "dynamic_without_barrier": "^shared memory: .*: nothing was written there$",
    "barrier_of_some": "^threads of the emulated kernel wait",
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on the PATH")
def test_each_mistake_is_found_and_nothing_else(tmp_path: Path) -> None:
    sources = emulated.ROOT / "tests" / "cuda"
    for name, options in (("broken.cu", ["-fsanitize=thread"]), ("emulation.cpp", []), ("races.cpp", [])):
        command = [
            "g++",
            "-std=c++17",
            "-O1",
            *options,
            "-x",
            "c++",
            "-c",
            sources / name,
            "-o",
            tmp_path / f"{name}.o",
        ]
        subprocess.run(command, check=True)
    subprocess.run(["g++", *tmp_path.glob("*.o"), "-o", tmp_path / "broken"], check=True)
    lines = subprocess.run([tmp_path / "broken"], check=True, capture_output=True, text=True).stdout.splitlines()
    said = dict(line.split(": ", 1) for line in lines)
    assert said.keys() == FOUND.keys()
    for name, expected in FOUND.items():
        assert re.search(expected, said[name]), (name, said[name])
