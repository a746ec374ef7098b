"""Sorting examples into cells in parallel."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from spurmix import _host

values = np.random.default_rng(0).integers(0, 5, 1 << 19)
members = np.empty(values.size, dtype=np.int32)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[1]) << 20),) * 2)
keys, counts, identity = _host.group_cells([values], [0], [5], members, 16)
assert counts.tolist() == np.bincount(values).tolist() and not identity
assert np.array_equal(members, np.argsort(values, kind="stable"))
try:
    _host.group_cells([values], [0], [4], members, 16)
except IndexError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mebibytes", [6, 30])
def test_groups_are_sorted_if_not_all_threads_start(mebibytes: int) -> None:
    """The memory limit leaves room for the stacks of 0 or 3 further threads of 8 MiB. Errors are still raised."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(mebibytes)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "column 0, row 0: the value is outside the range of the column\n"
