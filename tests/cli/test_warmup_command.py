"""`spurmix warmup`: invalid options, and compiling without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 1, "no CUDA GPU is available; use --capability"),
        (("--capability", "90"), 1, "TRITON_INTERPRET=1"),
        (("--dtype", "int8"), 2, "--dtype must be float32 or float16 or bfloat16, got 'int8'"),
        (("--batch", "0"), 2, "Invalid value for '--batch'"),
    ],
)
def test_invalid_options_and_environments(
    arguments: tuple[str, ...], code: int, message: str, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not arguments:
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command("warmup", *arguments)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_compiling_for_another_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spurmix", "warmup", "--capability", "80", "--batch", "4", "--size", "20"]
    sizes = ["--classes", "5", "--columns", "9", "--dtype", "float32", "--no-channels-last"]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "mix_image_batch, float32, batch 4: " in done.stdout and " kernels for sm_80" in done.stdout
    assert len(list(tmp_path.rglob("*.cubin"))) > 10
