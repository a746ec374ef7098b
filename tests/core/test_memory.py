"""Available memory: the system, control groups and limits."""

from __future__ import annotations

import os
from pathlib import Path

from spurmix.core import memory


def test_available_memory_respects_control_groups(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    write("proc/self/cgroup", "4:cpu,memory:/a/b\n0::/user/job\n")
    assert memory.available(tmp_path) == 5000 << 10
    group = "sys/fs/cgroup/user"
    write(f"{group}/memory.max", "3000000")
    write(f"{group}/memory.current", "1500000")
    write(f"{group}/memory.stat", "active_file 100000\ninactive_file 200000\nanon 7\n")
    assert memory.available(tmp_path) == 1_800_000
    write(f"{group}/job/memory.max", "max")
    write(f"{group}/job/memory.current", "1")
    write(f"{group}/job/memory.stat", "")
    assert memory.available(tmp_path) == 1_800_000
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "990000")
    write("sys/fs/cgroup/memory/memory.stat", "active_file 999\ntotal_active_file 5\ntotal_inactive_file 6\n")
    assert memory.available(tmp_path) == 10_011
    write("proc/meminfo", "?")
    write("proc/self/cgroup", "")
    assert memory.available(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available() < 1 << 50
