"""An error that ends a job, told once: several processes mostly meet the same one."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

WAIT = 3.0
"""Seconds in which the first process is expected to meet an error that another one has met."""


def tell(error: BaseException) -> None:
    """Print an error: the first process does, the others only what it does not say within `WAIT` seconds."""
    text, rank = str(error), os.environ.get("RANK", "0")
    if rank == "0":
        print(f"spurmix: {text}", file=sys.stderr, flush=True)
        _share(text)
    elif text != _shared():
        print(f"spurmix (process {rank}): {text}", file=sys.stderr, flush=True)


def _store() -> Any:
    """What torchrun keeps for its processes as long as one of them is there; None without torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=WAIT))
    return PrefixStore(f"spurmix/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _share(text: str) -> None:
    try:
        store = _store()
        if store is not None:
            store.set("error", text)
    except (ImportError, KeyError, ValueError, RuntimeError):  # the others then say it as well
        return


def _shared() -> str | None:
    """The first process's error; None where it has none, or cannot be asked."""
    try:
        store = _store()
        return None if store is None else store.get("error").decode()
    except (ImportError, KeyError, ValueError, RuntimeError):
        return None
