"""A process that torchrun started ends when torchrun is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

CHILD = "import time; from spurmix.core import launcher; launcher.INTERVAL = 0.02; launcher.end_with_launcher(); print('on', flush=True); time.sleep(60)"
LAUNCHER = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); print(p.pid, flush=True); time.sleep(60)"


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("under_torchrun", [True, False])
def test_orphans_of_a_killed_launcher_end(under_torchrun: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    if under_torchrun:
        environment["TORCHELASTIC_RUN_ID"] = "none"
    parent = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, CHILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert parent.stdout is not None
    lines = [parent.stdout.readline() for _ in range(2)]
    child = int(next(line for line in lines if line != "on\n"))
    try:
        assert alive(child)
        parent.kill()
        parent.wait()
        end = time.monotonic() + (10 if under_torchrun else 0.3)
        while alive(child) and time.monotonic() < end:
            time.sleep(0.02)
        assert alive(child) != under_torchrun
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)
