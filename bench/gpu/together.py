"""Processes that run at once within a step: what each said is told, also where another one hangs."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.gpu.record import time_left

SPARE_S = 4.0
"""Seconds before the step's end at which what still runs is killed, to tell what it said so far."""


def run_together(
    commands: Mapping[str, tuple[Sequence[str], dict[str, str]]], folder: Path, told: Callable[[str, int, str], bool]
) -> bool:
    """Run commands, each with its environment, in `folder`; whether `told(name, exit code, output)` was True of all.

    A command that has not ended shortly before the step must is killed; its code is -9.
    """
    running = {}
    for name, (command, environment) in commands.items():
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (read when the process has ended)
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        running[name] = process, output
    good = True
    while running:
        late = time_left() < SPARE_S
        for name, (process, output) in list(running.items()):
            if process.poll() is None and not late:
                continue
            if process.poll() is None:
                process.kill()
                process.wait()
            output.seek(0)
            text = output.read()
            output.close()
            del running[name]
            good = told(name, process.returncode, text) and good
        time.sleep(0.05)
    return good
