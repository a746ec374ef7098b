"""Memory use over many batches."""

from __future__ import annotations

import json

import forked_python
import pytest


def test_memory_does_not_grow_over_a_thousand_batches() -> None:
    """All kinds in one process. The long run is a slow test."""
    assert max(growth(["map", "window", "direct", "tokens"], 1000)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "window", "direct", "tokens"])
def test_memory_does_not_grow_over_a_hundred_thousand_batches(kind: str) -> None:
    assert max(growth([kind], 100_000)) < 0.01


def growth(kinds: list[str], steps: int) -> list[float]:
    """Growth of the process after the first tenth of each run, as a share."""
    done = forked_python.run(forked_python.MODULE, "bench.soak", *kinds, steps)
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(json.loads(line)[1]) for line in done.stdout.splitlines()]
