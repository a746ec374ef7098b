"""Step `sanitize`: small calls of every operator under memcheck and racecheck of compute-sanitizer."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import torch

from bench.gpu import data
from bench.gpu.parallel import run_parallel
from bench.gpu.record import device, dry, emit, gpu_backends, wait
from bench.row import Row
from spurmix.ops import functional as F

STEP = "sanitize"
ROOT = Path(__file__).resolve().parents[2]


def calls() -> None:
    """Call every operator on odd shapes, with indices inside and outside the valid range."""
    for backend in gpu_backends():
        batches(backend)
        pictures = data.Pictures(40, 13, 5)
        index, lam = torch.tensor([0, 39, 40, -1], device=device()), torch.rand(4, device=device())
        logits = torch.randn(4, 39, device=device()).requires_grad_()
        many = torch.randn(2, 39 if dry() else 5003, device=device()).requires_grad_()  # each row takes a block
        label, weight = index[:2].clamp(max=38), lam[:2]
        F.mixed_cross_entropy(many, label, label.flip(0), weight, backend=backend).backward()
        F.group_counts(many.detach(), label, label * 0, 4, backend=backend)
        for chosen in (index[:2], index):
            weight = lam[: len(chosen)]
            try:
                F.mix_images(pictures.images, chosen, chosen, weight, channels_last=True, backend=backend)
                F.mix_rows(torch.randn(40, 33, device=device()), chosen, chosen, weight, backend=backend)
                F.mix_labels(chosen, chosen, weight, 40, backend=backend)
                labels = chosen.clamp(0, 38) if len(chosen) == 2 else chosen
                loss = F.mixed_cross_entropy(logits[: len(labels)], labels, labels, weight, backend=backend)
                loss.backward()
                F.group_counts(logits[: len(labels)].detach(), labels, labels.clamp(-1, 3), 4, backend=backend)
                F.check(device())
            except IndexError as error:
                print(f"{backend}: expected error: {error}")
    wait()


def batches(backend: str) -> None:
    """Mix batches of images on every path of the kernels: vectors, planes, rows of words, strips of crops, bytes."""
    augments = (None, F.Augment(size=11), F.Augment(size=72), F.Augment(crop=False))
    every = backend == "cuda"  # Triton compiles each path, which takes too long for all of them
    kinds = itertools.product((13, 16, 18), augments, (torch.bfloat16, torch.float32), (False, True))
    stores = {side: data.Pictures(40, side, 5) for side in (13, 16, 18)}
    for side, augment, dtype, last in kinds:
        if not every and (side == 18 or dtype == torch.float32 or augment is augments[2]):
            continue
        pictures = stores[side]
        F.mix_image_batch(
            pictures.images, pictures.labels, pictures.tables, seed=1, start=2**40, count=37 if every else 5,
            augment=augment, dtype=dtype, channels_last=last, backend=backend,
        )  # fmt: skip
    pair = torch.tensor([[0, 39, 3]] * 2, device=device())
    for channels in (1, 2, 4):
        store = torch.zeros(40, 16, 16, channels, dtype=torch.uint8, device=device())
        F.mix_images(store, *pair, torch.rand(3, device=device()), channels_last=True, backend=backend)
    F.draw(stores[16].tables, seed=1, start=2**40, count=300, backend=backend)
    ids, lam = torch.tensor([[0, 39], [3, 3]], device=device()), torch.rand(2, device=device())
    table = torch.randn(40, 33, device=device()).requires_grad_()
    F.mix_embeddings(table, ids, ids.flip(1), lam, backend="triton").sum().backward()


def main() -> None:
    """Run the step, or with --calls the calls themselves."""
    if "--calls" in sys.argv:
        calls()
        return
    tool = sanitizer()
    if dry() or tool is None:
        calls()
        emit(Row("calls", "without compute-sanitizer", step=STEP, note="not installed; the calls ran without it"))
        return
    # Without the caching allocator every tensor is a separate allocation, so that out-of-bounds accesses are found.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "SPURMIX_AUTOTUNE": "0"}
    commands = {}
    for check in ("memcheck", "racecheck"):
        # torch queries functions that a driver may not have. These API errors are harmless.
        quiet = ["--report-api-errors", "no"] if check == "memcheck" else []
        command = [tool, "--tool", check, *quiet, "--print-limit", "20", sys.executable, "-u", "-m"]
        commands[check] = [*command, "bench.gpu.sanitize", "--calls"], environment
    sys.exit(0 if run_parallel(commands, ROOT, report) else 1)


def sanitizer() -> str | None:
    """Return the path of compute-sanitizer: on the PATH, beside nvcc, or in the default folder of CUDA."""
    beside = Path(os.path.realpath(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")).parent
    folders = (beside, beside.parent / "compute-sanitizer", Path("/usr/local/cuda/bin"))
    found = [str(f / "compute-sanitizer") for f in folders if (f / "compute-sanitizer").is_file()]
    return shutil.which("compute-sanitizer") or next(iter(found), None)


def report(check: str, code: int, text: str) -> bool:
    """Emit a row for one tool. Returns whether it found no errors."""
    found = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    errors = [int(a or b) for a, b in found]
    good = code == 0 and bool(errors) and not any(errors)
    late = "killed at the time limit; " if code == -9 else ""
    note = f"{sum(errors)} errors" if errors else "no summary"
    reported = " ".join(re.findall(r"^=+ +([^\n]+)", text, re.MULTILINE)) or " ".join(text.split())[-900:]
    emit(Row("calls", check, step=STEP, note=note, error="" if good else (late + reported)[:900]))
    return good


if __name__ == "__main__":
    main()
