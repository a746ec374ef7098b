"""tests/cuda/races.cpp finds the error of each broken CUDA kernel, and none in a valid kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import emulated
import pytest

ERRORS = {
    "valid": "^valid$",
    "no_barrier": "^shared memory: thread 1 of block 0 reads .*thread 0 of block 0 writes .*: data race$",
    "warp_barrier_instead_of_block_barrier": "^shared memory: thread 32 .*thread 16 .*: data race$",
    "shuffle_instead_of_barrier": "^shared memory: .*: data race$",
    "overwritten_while_read": "^shared memory: .*: data race$",
    "uninitialized": "^shared memory: thread 0 .*: reads uninitialized shared memory$",
    "blocks_write_one_address": "^global memory: thread 0 of block 1 writes .*thread 0 of block 0 writes .*: data race$",
    "counts_without_atomics": "^global memory: .*: data race$",
    "reads_a_counter": "^global memory: .*atomically.*: data race$",
    "ldg_of_written_memory": "^global memory: .*__ldg of memory that the launch writes$",
    "dynamic_without_barrier": "^shared memory: .*: reads uninitialized shared memory$",
    "divergent_barrier": "^deadlock: threads wait at a barrier",
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on the PATH")
def test_each_error_is_found_and_no_other(tmp_path: Path) -> None:
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
    found = dict(line.split(": ", 1) for line in lines)
    assert found.keys() == ERRORS.keys()
    for name, expected in ERRORS.items():
        assert re.search(expected, found[name]), (name, found[name])
