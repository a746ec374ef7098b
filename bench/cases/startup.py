"""Import times of whole processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from bench.context import Context
from bench.registry import Case, Contender, case


def _process(code: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    return run


@case("import")
def import_time(context: Context) -> Case:
    """A process that imports spurmix, torch or both."""
    named = [
        ("import spurmix", "import spurmix", "ours"),
        ("an empty process", "pass", "peer"),
        ("import torch", "import torch", "peer"),
        ("import torch, spurmix", "import torch, spurmix", "variant"),
    ]
    return Case([Contender(name, _process(code), kind) for name, code, kind in named], repeats=7)
