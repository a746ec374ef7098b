"""State of the compiled modules: missing, built from other sources, or up to date. Does not import torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
RECORD = PACKAGE / "_build.json"
SOURCES = ("csrc", "kernels/cuda")
SUFFIXES = {".h", ".inc", ".cpp", ".cu", ".cuh"}


def source_hash(root: Path) -> str:
    """Hash of all C++ and CUDA sources of the checkout `root`."""
    digest = hashlib.sha256()
    files = sorted(p for folder in SOURCES for p in (root / folder).rglob("*") if p.suffix in SUFFIXES)
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def status() -> dict[str, str]:
    """State of `_C`, `_host` and `_cuda`: "ok", or "missing" or "stale" with the command that builds them."""
    root = PACKAGE.parent
    checkout = (root / "csrc").is_dir() and (root / "setup.py").is_file()
    advice = "run `pip install -e . --no-build-isolation`" + (
        f" in {root}" if checkout else " in a checkout of spurmix"
    )
    try:
        record = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        record = {}
    current = source_hash(root) if checkout else None
    states = {}
    for name in ("_C", "_host", "_cuda"):
        if importlib.util.find_spec(f"spurmix.{name}") is None:
            cuda = " (requires nvcc and a torch built for CUDA)" if name == "_cuda" else ""
            states[name] = f"missing: {advice}{cuda}"
        elif current is not None and record.get(name) != current:
            states[name] = f"stale: built from other sources; {advice}"
        else:
            states[name] = "ok"
    return states
