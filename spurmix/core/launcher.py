"""Ends a process when the launcher that started it has ended."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

INTERVAL = 0.5
"""Number of seconds between two checks."""
_watched = threading.Event()


def end_with_launcher() -> None:
    """End this process soon after torchrun or `accelerate launch`, which started it, was killed.

    Otherwise it would train on without control, and write into the folder of a run that is started again. All files are
    written by rename, so that the run can be resumed. Processes that no launcher started are unchanged.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or _watched.is_set():
        return
    _watched.set()
    threading.Thread(target=_watch, args=(os.getppid(),), name="spurmix-launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(INTERVAL)
    with contextlib.suppress(OSError, ValueError):  # nobody may read the output any more
        rank = os.environ.get("RANK", "0")
        print(f"spurmix (process {rank}): the launcher has ended, so this process ends", file=sys.stderr, flush=True)
    os._exit(1)
