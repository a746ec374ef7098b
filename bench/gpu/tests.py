"""Step `tests`: tests/gpu in several processes at once, as most of their time goes into compiling kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.gpu.record import Row, dry, emit

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    shards = 1 if dry() else max(1, min(12, (os.cpu_count() or 2) - 2))
    options = ["-m", "gpu", "--confcutdir", "tests/gpu", "-p", "no:cacheprovider", "--maxfail", "25", "-rfE"]
    command = [sys.executable, "-m", "pytest", "tests/gpu", *options]
    running = []
    for shard in range(shards):
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (read when the process has ended)
        # The shards keep all cores busy; threads of their own would only wait for each other.
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        environment = {**os.environ, **threads, "SPURMIX_GPU_SHARD": f"{shard}/{shards}"}
        running.append((subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output), output))
    failed = False
    for shard, (process, output) in enumerate(running):
        code = process.wait()
        output.seek(0)
        text = output.read()
        summary = re.findall(r"\d+ (?:passed|failed|error|skipped|deselected)[^\n]*", text)[-1:]
        told = re.findall(r"^(?:FAILED|ERROR) [^\n]*", text, re.MULTILINE)
        good = code in (0, 5)  # 5: nothing fell to this shard
        error = "" if good else "; ".join(told)[:900] or " ".join(text.split())[-600:]
        emit(Row("tests", "tests/gpu", f"part {shard + 1} of {shards}", note="".join(summary), error=error))
        if not good:
            print(text[-6000:])
        failed = failed or not good
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
