"""Pictures of reports. Each is a PNG file that is written to a temporary file and renamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spurmix.cli.report.text import ImageSamples
from spurmix.core.audit import correlation_text
from spurmix.core.names import distinct_names, without_controls
from spurmix.core.temporary import temporary_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spurmix.train.comparison import Comparison
    from spurmix.train.evaluation import Evaluation
    from spurmix.train.runs.files import EvaluationRow

MARKERS = "os^Dvx"
"""Markers of the groups that are the worst in an evaluation."""
GRAY, BLUE, LIGHT_BLUE = "#9aa5b1", "#2563eb", "#93c5fd"


def _new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("pictures need the package 'matplotlib': pip install 'spurmix[demo]'") from error
    return Figure(figsize=(width, height), layout=layout)


def _save(figure: Figure, path: Path) -> Path:
    with temporary_file(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
        temporary.replace(path)
    return path


def draw_accuracy(out: Path, evaluations: Sequence[tuple[str, Evaluation, str]]) -> Path:
    """Draw a bar for every group and evaluation, or for every cell if there are overlapping cells.

    The bars are horizontal if the names of the groups do not fit below vertical bars.

    Args:
        out: Folder for accuracy.png.
        evaluations: Name, evaluation and color. Groups are joined by name. Some may lack a group.

    Returns:
        The file.
    """
    rows = [evaluation.cells or evaluation.groups for _, evaluation, _ in evaluations]
    names = list(dict.fromkeys(row.name for shown in rows for row in shown))
    horizontal = len(names) > 8 or max(len(part) for name in names for part in name.split(", ")) > 14
    if horizontal:
        figure = _new_figure(7.0, 1.2 + 0.2 * len(names) * (1 + len(evaluations)))
    else:
        figure = _new_figure(max(7.0, 0.9 * len(names)), 3.6)
    axes = figure.subplots()
    width = 0.8 / len(evaluations)
    bars, error = (axes.barh, "xerr") if horizontal else (axes.bar, "yerr")
    for k, ((label, _, color), groups) in enumerate(zip(evaluations, rows, strict=True)):
        by_name = {group.name: group for group in groups}
        position = np.array([n for n, name in enumerate(names) if name in by_name])
        shown = [by_name[names[n]] for n in position]
        value, low, high = (np.array([getattr(g, key) for g in shown]) for key in ("accuracy", "low", "high"))
        interval = np.maximum(0, [value - low, high - value])
        shift = (k - (len(evaluations) - 1) / 2) * width
        options: dict[str, Any] = {
            "color": color,
            "label": without_controls(label),
            error: interval,
            "capsize": 3,
            "ecolor": "#444444",
        }
        bars(position + shift, value, 0.95 * width, **options)
    _label_groups(axes, names, horizontal)
    legend = axes.legend(loc="lower center", ncols=2, frameon=False, bbox_to_anchor=(0.5, 1.0))
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, out / "accuracy.png")


def _label_groups(axes: Axes, names: list[str], horizontal: bool) -> None:
    """Label the axes of a bar chart of accuracies."""
    positions, label = np.arange(len(names)), "accuracy (95% interval)"
    names = [without_controls(name) for name in distinct_names(names)]
    if horizontal:
        shortened = [name if len(name) <= 50 else name[:49] + "…" for name in names]
        axes.set_yticks(positions, shortened, fontsize=8, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 1.05)
        axes.set_xlabel(label)
    else:
        axes.set_xticks(positions, [name.replace(", ", "\n") for name in names], fontsize=9, parse_math=False)
        axes.set_ylim(0, 1.05)
        axes.set_ylabel(label)


def draw_audit(out: Path, residuals: Mapping[str, tuple[float, float]], raw: float, attribute: str) -> Path:
    """Draw the correlation of class and attribute that each policy leaves.

    Args:
        out: Folder for audit.png.
        residuals: Correlation over all mixed samples and given lam, by policy. NaN if it cannot be determined.
        raw: Correlation in the data, or NaN.
        attribute: Name of the attribute.

    Returns:
        The file.
    """
    figure = _new_figure(7, 4.4)
    axes = figure.subplots()
    names = list(residuals)[::-1]
    bars = (
        ("over all samples", BLUE, 0.2, [residuals[name][0] for name in names]),
        ("given lam", LIGHT_BLUE, -0.2, [residuals[name][1] for name in names]),
    )
    for label, color, shift, values in bars:
        positions = np.arange(len(names)) + shift
        axes.barh(positions, values, 0.4, color=color, label=label)
        for position, value in zip(positions, values, strict=True):
            axes.text(np.nan_to_num(value) + 0.01, position, correlation_text(value, 3), va="center", fontsize=7)
    axes.set_ylim(-0.6, len(names) - 0.4)  # without bars, matplotlib would choose limits that exclude the texts
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.axvline(raw, color=GRAY, linestyle="--", label=f"data without mixing: {correlation_text(raw, 3)}")
    axes.set_xlim(0, 1.1)
    axes.set_xlabel(f"correlation of class and {without_controls(attribute)} after mixing", parse_math=False)
    axes.legend(loc="lower center", frameon=False, bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, out / "audit.png")


def draw_curves(out: Path, losses: Sequence[float], evaluations: Sequence[EvaluationRow], kept_step: int) -> Path:
    """Draw the training loss, and below it the accuracies on the validation split, over the batches.

    Args:
        out: Folder for curves.png.
        losses: Loss of every batch.
        evaluations: Evaluations on the validation split. If there are none, only the loss is drawn.
        kept_step: Number of batches after which the kept weights were saved.

    Returns:
        The file.
    """
    figure = _new_figure(7, 6.0 if evaluations else 3.0, layout="constrained")
    panels = figure.subplots(2 if evaluations else 1, sharex=True, squeeze=False)[:, 0]
    axes = panels[0]
    window = max(1, len(losses) // 100)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    label = "loss" if window == 1 else f"loss (mean of {window} batches)"
    axes.plot(np.arange(window, len(losses) + 1), smooth, color=GRAY, label=label)
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    if evaluations:
        _draw_learning_curves(panels[1], evaluations, kept_step)
    for panel in panels:
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
        for text in panel.get_legend().get_texts():
            text.set_parse_math(False)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("batches")
    return _save(figure, out / "curves.png")


def _draw_learning_curves(axes: Axes, evaluations: Sequence[EvaluationRow], kept_step: int) -> None:
    """Draw the worst group, the average and the adjusted average. The markers show which group is the worst."""
    steps = [row["step"] for row in evaluations]
    curves = (("average", "--", BLUE), ("adjusted_average", ":", LIGHT_BLUE), ("worst_group", "-", BLUE))
    for key, style, color in curves:
        values = np.array([row[key] for row in evaluations], dtype=np.float64)  # type: ignore[literal-required]
        axes.plot(steps, values, style, color=color, label=key.replace("_", " "))
    by_name = Counter(row["worst_name"] for row in evaluations)
    names = [name for name, _ in by_name.most_common(len(MARKERS))]
    for name, shown, marker in zip(names, distinct_names(names), MARKERS, strict=False):
        rows = [row for row in evaluations if row["worst_name"] == name]
        label = without_controls(shown if len(shown) <= 30 else f"{shown[:29]}…")
        axes.plot(
            [r["step"] for r in rows], [r["worst_group"] for r in rows], marker, color=BLUE, label=f"worst: {label}"
        )
    axes.axvline(kept_step, color="#444444", linewidth=0.8, linestyle=":", label="kept weights")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("accuracy on the validation split")


def draw_differences(out: Path, first: str, comparisons: Sequence[tuple[str, Comparison]]) -> Path:
    """Draw the difference of accuracy of each run from the first, in each group, with 95% intervals.

    Args:
        out: Folder for differences.png.
        first: Name of the first run.
        comparisons: Name of each other run, and its comparison with the first.

    Returns:
        The file.
    """
    rows = comparisons[0][1].rows
    names = [*distinct_names([row.name for row in rows]), f"worst {comparisons[0][1].unit}"]
    figure = _new_figure(7.0, 1.2 + 0.22 * len(names) * (1 + len(comparisons)))
    axes = figure.subplots()
    for k, (name, found) in enumerate(comparisons):
        value = np.array([*(row.difference for row in found.rows), found.difference])
        low = np.array([*(row.low for row in found.rows), found.low])
        high = np.array([*(row.high for row in found.rows), found.high])
        position = np.arange(len(names)) + 0.6 * (k - (len(comparisons) - 1) / 2) / len(comparisons)
        label = without_controls(f"{name} - {first}")
        error = np.maximum(0, [value - low, high - value])
        axes.errorbar(value, position, xerr=error, fmt=MARKERS[k % len(MARKERS)], capsize=3, label=label)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.axhline(len(names) - 1.5, color=GRAY, linewidth=0.8, linestyle=":")
    shortened = [without_controls(name if len(name) <= 50 else f"{name[:49]}…") for name in names]
    axes.set_yticks(range(len(names)), shortened, fontsize=8, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("difference of accuracy (95% interval)")
    legend = axes.legend(loc="lower center", frameon=False, bbox_to_anchor=(0.5, 1.0), fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, out / "differences.png")


def draw_samples(out: Path, samples: ImageSamples) -> Path:
    """Draw sixteen mixed images with the weights of their two classes.

    Args:
        out: Folder for samples.png.
        samples: The images.

    Returns:
        The file.
    """
    from torch import Tensor

    figure = _new_figure(9, 3.5, layout="constrained")
    source, batch, names = samples.source, samples.batch, samples.class_names
    mean, std = source.mean.view(1, -1, 1, 1), source.std.view(1, -1, 1, 1)
    assert isinstance(batch.input, Tensor)
    pixels = (batch.input * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for k, axes in enumerate(figure.subplots(2, 8).flat):
        lam, label, partner_label = float(batch.lam[k]), int(batch.label[k]), int(batch.partner_label[k])
        axes.imshow(pixels[k])
        lines = [
            f"{share:.2f} {without_controls(names[y]) if names else f'of class {y}'}"[:22]
            for share, y in ((lam, label), (1 - lam, partner_label))
        ]
        axes.set_title("\n".join(lines), fontsize=8, parse_math=False)
        axes.axis("off")
    return _save(figure, out / "samples.png")
