"""Process in `.venv-peers` that answers JSON requests from stdin, one per line. It does not import spurmix."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# Replies use a copy of stdout. Output of the libraries goes to stderr.
_replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def _handle(request: dict[str, Any], ready: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    import numpy as np

    from bench.peers import work

    command = request["command"]
    if command == "versions":
        names = ("torch", "torchvision", "timm", "kornia", "opencv-python-headless")
        found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
        return {"versions": {n: found[n] for n in names if n in found}}
    if command == "forget":
        ready.clear()
        return {}
    peer = request["peer"]
    if command == "setup":
        ready[peer] = work.PEERS[peer](request["folder"])
        return {}
    began = time.perf_counter()
    value = ready[peer]()
    seconds = time.perf_counter() - began
    if command == "save":
        np.save(request["folder"] + "/result.npy", value.numpy() if hasattr(value, "numpy") else value)
    if command == "check" and not bool(value.isfinite().all()):
        raise ValueError("values that are not finite")
    return {"seconds": seconds}


def main() -> None:
    """Answer requests until stdin ends."""
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    ready: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        try:
            answer = _handle(json.loads(line), ready)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
        _replies.write(json.dumps(answer) + "\n")
        _replies.flush()


if __name__ == "__main__":
    main()
