"""Step `sanitize`: small calls of every op under compute-sanitizer's memcheck and racecheck, where it is found."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import torch

from bench.gpu import data
from bench.gpu.record import Row, device, dry, emit, gpu_backends
from bench.gpu.together import run_together
from spurmix.ops import functional as F

STEP = "sanitize"
ROOT = Path(__file__).resolve().parents[2]


def calls() -> None:
    """Every op on odd shapes, with indices that are in range and that are not."""
    for backend in gpu_backends():
        pictures = data.Pictures(40, 13, 5)
        for augment in (None, F.Augment(size=11), F.Augment(crop=False)):
            for last in (False, True):
                F.mix_image_batch(
                    pictures.images, pictures.labels, pictures.tables, seed=1, start=2**40, count=5, augment=augment,
                    dtype=torch.bfloat16, channels_last=last, backend=backend,
                )  # fmt: skip
        index, lam = torch.tensor([0, 39, 40, -1], device=device()), torch.rand(4, device=device())
        logits = torch.randn(4, 39, device=device()).requires_grad_()
        for chosen in (index[:2], index):
            weight = lam[: len(chosen)]
            try:
                F.mix_images(pictures.images, chosen, chosen, weight, channels_last=True, backend=backend)
                F.mix_rows(torch.randn(40, 33, device=device()), chosen, chosen, weight, backend=backend)
                F.mix_labels(chosen, chosen, weight, 40, backend=backend)
                own = chosen.clamp(0, 38) if len(chosen) == 2 else chosen
                loss = F.mixed_cross_entropy(logits[: len(own)], own, own, weight, backend=backend)
                loss.backward()  # type: ignore[no-untyped-call]
                F.group_counts(logits[: len(own)].detach(), own, own.clamp(-1, 3), 4, backend=backend)
                F.check(device())
            except IndexError as error:
                print(f"{backend}: told: {error}")
    if not dry():
        torch.cuda.synchronize()


def main() -> None:
    if "--calls" in sys.argv:
        calls()
        return
    tool = sanitizer()
    if dry() or tool is None:
        calls()
        emit(Row(STEP, "calls", "without compute-sanitizer", note="it is not here; the calls ran by themselves"))
        return
    # The caching allocator hides accesses beyond a tensor: each gets memory of its own here.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "SPURMIX_AUTOTUNE": "0"}
    commands = {}
    for check in ("memcheck", "racecheck"):
        # torch asks drivers for functions they may lack: such refusals are no errors of memory.
        quiet = ["--report-api-errors", "no"] if check == "memcheck" else []
        command = [tool, "--tool", check, *quiet, "--print-limit", "20", sys.executable, "-u", "-m"]
        commands[check] = [*command, "bench.gpu.sanitize", "--calls"], environment
    sys.exit(0 if run_together(commands, ROOT, told) else 1)


def sanitizer() -> str | None:
    """compute-sanitizer: on the PATH, beside nvcc, or where CUDA is usually installed."""
    beside = Path(os.path.realpath(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")).parent
    folders = (beside, beside.parent / "compute-sanitizer", Path("/usr/local/cuda/bin"))
    found = [str(f / "compute-sanitizer") for f in folders if (f / "compute-sanitizer").is_file()]
    return shutil.which("compute-sanitizer") or next(iter(found), None)


def told(check: str, code: int, text: str) -> bool:
    """A row of one tool; whether it found nothing."""
    found = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    errors = [int(a or b) for a, b in found]
    good = code == 0 and bool(errors) and not any(errors)
    late = "not done in time; " if code == -9 else ""
    note = f"{sum(errors)} errors" if errors else "no summary"
    reported = " ".join(re.findall(r"^=+ +([^\n]+)", text, re.MULTILINE)) or " ".join(text.split())[-900:]
    emit(Row(STEP, "calls", check, note=note, error="" if good else (late + reported)[:900]))
    return good


if __name__ == "__main__":
    main()
