"""Output of a run: a table on the terminal, rows as JSON and CSV, and a plot."""

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

from bench.row import Row, table

RESULTS = Path(__file__).resolve().parent / "results"
PLOT = Path(__file__).resolve().parent.parent / "docs" / "bench.png"


def header(threads: int, libraries: dict[str, str]) -> dict[str, Any]:
    """Return the date, device and versions of a run."""
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
    """Print the rows of one case."""
    print(f"\n{rows[0].case}: {description}", flush=True)
    for row in rows:
        if row.median_ms is None:
            print(f"  {row.contender:<46} {row.error}")
            continue
        share = f" {row.share:6.3f} of limit" if row.share is not None else ""
        remarks = "; ".join(filter(None, [row.note, row.error]))
        print(
            f"  {row.contender:<46} {row.median_ms:10.3f} ms [{row.q1_ms:.3f}, {row.q3_ms:.3f}]"
            f" {row.per_second:14,.0f} /s {row.ratio:8.2f} x ours{share}{f'  ({remarks})' if remarks else ''}"
        )


def write(path: Path, text: str) -> None:
    """Write a file atomically and create its folder."""
    write_together((path, text))


def write_together(*files: tuple[Path, str]) -> None:
    """Write files of one run, each atomically, and create their folder.

    If the process is killed meanwhile, the first file is the old or the new one, and each other file is missing or
    belongs to the same run as the first.
    """
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
    """Check that `write` can write a file, before a long run. Creates the folder.

    Args:
        path: File.

    Raises:
        OSError: If the file cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    write(probe, "")
    probe.unlink()


def save(head: dict[str, Any], rows: list[Row], path: Path, repeated: tuple[str, ...] = ()) -> None:
    """Write header and rows as JSON, and the rows as CSV beside it.

    Args:
        head: Header of the run.
        rows: Rows of all cases.
        path: JSON file.
        repeated: Keys of the header that every line of the CSV file repeats.
    """
    values = table(rows)
    text = json.dumps({**head, "rows": values}, indent=1) + "\n"
    lines = io.StringIO()
    writer = csv.DictWriter(lines, fieldnames=[*values[0], *repeated])
    writer.writeheader()
    writer.writerows({**row, **{key: head[key] for key in repeated}} for row in values)
    write_together((path, text), (path.with_suffix(".csv"), lines.getvalue()))


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


COLORS = {"ours": "#1b7f5c", "variant": "#7cbfa5", "limit": "#555555", "baseline": "#aaaaaa", "peer": "#c9a227"}


def results_to_draw(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Read the results with the most cases of `SHOWN`, and the newest of these.

    Args:
        folder: Folder of result files.

    Returns:
        The run, and the measured rows of each case of `SHOWN`, slowest first.

    Raises:
        FileNotFoundError: If no results contain such a case.
    """
    found = []
    for path in folder.glob("*.json"):
        run = json.loads(path.read_text())
        measured = [row for row in run["rows"] if row.get("ratio") and "threads" in run]
        cases = {
            name: sorted((r for r in measured if r["case"] == name), key=lambda r: -float(r["ratio"])) for name in SHOWN
        }
        cases = {name: rows for name, rows in cases.items() if rows}
        if cases:
            found.append((len(cases), run["date"], path.name, run, cases))
    if not found:
        raise FileNotFoundError(f"no results of {', '.join(SHOWN)} in {folder}; run `python -m bench` first")
    *_, run, cases = max(found, key=lambda entry: entry[:3])
    return run, cases


def plot(folder: Path = RESULTS, target: Path = PLOT) -> Path:
    """Draw results: the time of each contender relative to spurmix, one panel per case.

    Args:
        folder: Folder of result files.
        target: PNG file to write.

    Returns:
        `target`.

    Raises:
        FileNotFoundError: If there are no results.
    """
    run, cases = results_to_draw(folder)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [len(rows) + 1.2 for rows in cases.values()]
    figure, axes = plt.subplots(
        len(cases), 1, figsize=(8.5, 0.26 * sum(heights) + 0.8), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    slowest = max(row["ratio"] for rows in cases.values() for row in rows)
    for axis, (name, rows) in zip(axes[:, 0], cases.items(), strict=True):
        bars = axis.barh(
            [r["contender"] for r in rows], [r["ratio"] for r in rows], color=[COLORS[r["kind"]] for r in rows]
        )
        axis.bar_label(
            bars, [f"{_short(r['ratio'])}  ({_short(r['median_ms'])} ms)" for r in rows], padding=3, fontsize=7
        )
        axis.set_xscale("log")
        axis.set_xlim(0.3, slowest * 6)
        axis.axvline(1, color=COLORS["ours"], linewidth=0.8)
        axis.set_title(SHOWN[name], fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("median time relative to spurmix", fontsize=8)
    figure.suptitle(
        "dark green: spurmix; light green: another way to use spurmix; gray: limit; yellow: other code\n"
        f"{run['device']}, {run['isa']}, {run['threads']} threads, torch {run['torch']}, {run['date']}",
        fontsize=9,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}")
    figure.savefig(partial, dpi=130, format="png")
    partial.replace(target)
    return target
