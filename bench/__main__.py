"""`python -m bench`: the fused image batch and the loss against eager PyTorch. Prints medians, quartiles and ratios."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spurmix import functional as F

Case = dict[str, Callable[[], Any]]


def image_batch(batch: int) -> Case:
    """Mix and normalise `batch` images of 224 x 224 x 3, uint8 NHWC to float32 NCHW; ours into a reused output."""
    images = torch.randint(0, 256, (512, 224, 224, 3), dtype=torch.uint8)
    index, partner = torch.randint(0, 512, (batch,)), torch.randint(0, 512, (batch,))
    lam, mean, std = torch.rand(batch), torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    out = torch.empty(batch, 3, 224, 224)

    def eager() -> torch.Tensor:
        weight = lam[:, None, None, None]
        mixed = weight * images[index] + (1 - weight) * images[partner]
        return ((mixed / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    return {"spurmix": lambda: F.mix_images(images, index, partner, lam, mean=mean, std=std, out=out), "eager": eager}


def loss(batch: int, classes: int) -> Case:
    """Mixed cross entropy, forward and backward, against dense targets built per batch."""
    logits = torch.randn(batch, classes, requires_grad=True)
    label, partner = torch.randint(0, classes, (batch,)), torch.randint(0, classes, (batch,))
    lam = torch.rand(batch)

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits)[0]

    def dense() -> torch.Tensor:
        one_hot, weight = torch.nn.functional.one_hot, lam[:, None]
        target = weight * one_hot(label, classes) + (1 - weight) * one_hot(partner, classes)
        return gradient(torch.nn.functional.cross_entropy(logits, target))

    return {"spurmix": lambda: gradient(F.mixed_cross_entropy(logits, label, partner, lam)), "eager": dense}


CASES: dict[str, Callable[[], Case]] = {
    "image_batch_32": lambda: image_batch(32),
    "image_batch_256": lambda: image_batch(256),
    "loss_256_1000": lambda: loss(256, 1000),
    "loss_8192_1000": lambda: loss(8192, 1000),
}


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of one case: interleaved repetitions, after all contenders were shown to agree."""
    case = CASES[name]()
    results = {who: run().clone() for who, run in case.items()}
    for who, value in results.items():
        torch.testing.assert_close(value, results["spurmix"], rtol=1e-4, atol=1e-5, msg=f"{name}: {who} disagrees")
    times: dict[str, list[float]] = {who: [] for who in case}
    for _ in range(repeats):
        for who, run in case.items():
            began = time.perf_counter()
            run()
            times[who].append((time.perf_counter() - began) * 1e3)
    ours = float(np.median(times["spurmix"]))
    rows = []
    for who, values in times.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        rows.append({"case": name, "who": who, "ms": middle, "q1": low, "q3": high, "ratio": middle / ours})
        print(f"{name:<18} {who:<8} {middle:9.3f} ms ({low:.3f} to {high:.3f})  {middle / ours:6.2f}x")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--case", choices=[*CASES], action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads must be 1 or more, got {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    header = {
        "date": str(date.today()),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(f"{header}, {arguments.threads} threads")
    rows = [row for name in arguments.case or CASES for row in measure(name, 7 if arguments.quick else 31)]
    if arguments.json is not None:
        temporary = arguments.json.with_suffix(".partial")
        temporary.write_text(json.dumps({**header, "threads": arguments.threads, "rows": rows}, indent=1))
        temporary.replace(arguments.json)


main()
