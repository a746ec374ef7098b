"""Parallel processes within a step, with a report for each of them even if one hangs."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.gpu.record import time_left

SPARE_S = 4.0
"""Seconds before the end of the step at which running processes are killed, to leave time for their reports."""


def run_parallel(
    commands: Mapping[str, tuple[Sequence[str], dict[str, str]]], folder: Path, report: Callable[[str, int, str], bool]
) -> bool:
    """Run commands in parallel.

    Args:
        commands: Command line and environment of each process, by name.
        folder: Working folder.
        report: Function of the name, exit code and output of a process that ended. It returns whether the process
            succeeded. The exit code of a process that was killed at the time limit is -9.

    Returns:
        Whether all processes succeeded.
    """
    running = {}
    for name, (command, environment) in commands.items():
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (read after the process ends)
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        running[name] = process, output
    succeeded = True
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
            succeeded = report(name, process.returncode, text) and succeeded
        time.sleep(0.05)
    return succeeded
