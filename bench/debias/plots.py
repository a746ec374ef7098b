"""Pictures of the comparison of debiasing methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.debias.protocol import audit_table
from spurmix.train.sweep.statistics import SweepRow, summarize_methods

GRAY, BLUE = "#9aa5b1", "#2563eb"


def plot_methods(rows: Sequence[SweepRow], path: Path) -> Path:
    """Draw the mean worst group of each method with the interval of the minimum, and every seed.

    Args:
        rows: Results.
        path: PNG file to write.

    Returns:
        The file.
    """
    summaries = summarize_methods(rows)[::-1]
    figure = Figure(figsize=(7, 1 + 0.3 * len(summaries)), layout="constrained")
    axes = figure.subplots()
    for k, summary in enumerate(summaries):
        worst = [row["worst"] for row in rows if row["method"] == summary.method]
        axes.plot(worst, np.full(len(worst), k), ".", color=GRAY, markersize=4)
        if summary.minimum is not None:
            axes.plot(summary.minimum, [k, k], color=BLUE, linewidth=2)
        axes.plot(summary.worst, k, "o", color=BLUE)
    axes.set_yticks(range(len(summaries)), [summary.method for summary in summaries])
    axes.set_xlabel("worst-group accuracy (mean, 95% interval of the minimum over groups, single results)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    return path


def plot_attributed(rows: Sequence[SweepRow], path: Path) -> Path:
    """Draw the mean worst group of each method over the number of attributed examples per group.

    Args:
        rows: Results.
        path: PNG file to write.

    Returns:
        The file.
    """
    counts = sorted({row["known"] for row in rows}, key=lambda known: (known == "all", known if known != "all" else 0))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for k, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        found = [
            [row["worst"] for row in rows if row["method"] == method and row["known"] == known] for known in counts
        ]
        values = [float(np.mean(worst)) if worst else float("nan") for worst in found]
        axes.plot(range(len(counts)), values, ("o-", "s--", "^:")[k // 10 % 3], label=method)
    axes.set_xticks(range(len(counts)), [str(known) for known in counts])
    axes.set_xlabel("attributed examples per group")
    axes.set_ylabel("mean worst-group accuracy")
    axes.legend(fontsize=7, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    return path


def plot_audits(rows: Sequence[SweepRow], path: Path) -> Path:
    """Draw the mean worst group of each policy over the correlation that it leaves given lam.

    Args:
        rows: Results.
        path: PNG file to write.

    Returns:
        The file.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, _, given_lam, worst in audit_table(rows):
        axes.plot(given_lam, worst, "o", color=BLUE)
        axes.annotate(name, (given_lam, worst), textcoords="offset points", xytext=(4, 3), fontsize=7)
    axes.set_xlabel("residual correlation given lam (audit)")
    axes.set_ylabel("mean worst-group accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    return path
