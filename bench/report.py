"""What a run leaves: a table on the terminal, rows as CSV and JSON (by rename, never half-written), and the plot."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.measure import Row

RESULTS = Path(__file__).resolve().parent / "results"
PLOT = Path(__file__).resolve().parent.parent / "docs" / "bench.png"


def header(threads: int, libraries: dict[str, str]) -> dict[str, Any]:
    """Date, device and versions of a run."""
    import spurmix
    from spurmix import _C

    return {
        "date": str(date.today()),
        "device": _cpu_name(),
        "cores": os.cpu_count(),
        "isa": _C.isa(),
        "threads": threads,
        "python": platform.python_version(),
        "spurmix": spurmix.__version__,
        "torch": torch.__version__,
        "peers": libraries,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def show(description: str, rows: list[Row]) -> None:
    """Print one case's rows."""
    print(f"\n{rows[0].case}: {description}", flush=True)
    for row in rows:
        if row.median_ms is None:
            print(f"  {row.contender:<46} {row.note}")
            continue
        note = f"  ({row.note})" if row.note else ""
        print(
            f"  {row.contender:<46} {row.median_ms:10.3f} ms [{row.q1_ms:.3f}, {row.q3_ms:.3f}]"
            f" {row.per_second:14,.0f} /s {row.ratio:8.2f} x ours{note}"
        )


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all, making its folder."""
    write_together((path, text))


def write_together(*files: tuple[Path, str]) -> None:
    """Write files that belong together, each whole or not at all, making their folder. One that is read beside the first
    is never another run's: should this be killed, it is there as it was, missing, or new."""
    partials = [path.with_name(f".{path.name}.{os.getpid()}") for path, _ in files]
    try:
        for (path, text), partial in zip(files, partials, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text)
        for path, _ in files[1:]:
            path.unlink(missing_ok=True)
        for (path, _), partial in zip(files, partials, strict=True):
            partial.replace(path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise OSError where `write` could not write, before minutes are spent on what to write; makes the folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    write(probe, "")
    probe.unlink()


def save(head: dict[str, Any], rows: list[Row], path: Path) -> None:
    """Rows and header as JSON at `path`, and the rows as CSV beside it."""
    text = json.dumps({**head, "rows": [row.as_dict() for row in rows]}, indent=1) + "\n"
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=[*rows[0].as_dict(), "device", "threads", "torch", "date"])
    writer.writeheader()
    for row in rows:
        writer.writerow({**row.as_dict(), **{k: head[k] for k in ("device", "threads", "torch", "date")}})
    write_together((path, text), (path.with_suffix(".csv"), table.getvalue()))


SHOWN = {
    "images_256": "mix 256 images",
    "crops_256": "crop, flip, mix 256 images",
    "loader_256": "loader, 24 batches",
    "rows_256": "mix 256 rows of 2048",
    "loss_256_1000": "loss, 256 x 1000",
    "loss_8192_1000": "loss, 8192 x 1000",
    "draw_1e6": "draw 256 of 10^6",
}


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def plot(folder: Path = RESULTS, target: Path = PLOT) -> Path:
    """Draw the newest results: each contender's time over ours, one panel a case.

    Raises:
        FileNotFoundError: when there are no results.
    """
    files = sorted(folder.glob("*.json"), key=lambda p: (json.loads(p.read_text())["date"], p.name))
    if not files:
        raise FileNotFoundError(f"no results in {folder}; run `python -m bench` first")
    run = json.loads(files[-1].read_text())
    cases = [name for name in SHOWN if any(row["case"] == name for row in run["rows"])]
    if not cases:
        raise FileNotFoundError(f"{files[-1].name} holds none of the cases that are drawn: {', '.join(SHOWN)}")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    listed = {
        name: sorted((r for r in run["rows"] if r["case"] == name and r["ratio"]), key=lambda r: -r["ratio"])
        for name in cases
    }
    heights = [len(rows) + 1.2 for rows in listed.values()]
    figure, axes = plt.subplots(
        len(cases), 1, figsize=(8.5, 0.26 * sum(heights) + 0.8), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    colours = {"ours": "#1b7f5c", "own": "#7cbfa5", "limit": "#555555", "peer": "#c9a227"}
    most = max(row["ratio"] for rows in listed.values() for row in rows)
    for axis, (name, rows) in zip(axes[:, 0], listed.items(), strict=True):
        bars = axis.barh(
            [r["contender"] for r in rows], [r["ratio"] for r in rows], color=[colours[r["kind"]] for r in rows]
        )
        axis.bar_label(
            bars, [f"{_short(r['ratio'])}  ({_short(r['median_ms'])} ms)" for r in rows], padding=3, fontsize=7
        )
        axis.set_xscale("log")
        axis.set_xlim(0.3, most * 6)
        axis.axvline(1, color="#1b7f5c", linewidth=0.8)
        axis.set_title(SHOWN[name], fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("time, as a multiple of spurmix's (median)", fontsize=8)
    figure.suptitle(
        "dark green: spurmix; light green: part of it, or with more to do; grey: the limit; yellow: peers\n"
        f"{run['device']}, {run['isa']}, {run['threads']} threads, torch {run['torch']}, {run['date']}",
        fontsize=9,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}")
    figure.savefig(partial, dpi=130, format="png")
    partial.replace(target)
    return target
