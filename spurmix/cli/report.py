"""Pictures, page and terminal table of demos and runs. Every file appears by rename."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from spurmix.cli.app import versions
from spurmix.core.audit import Audit
from spurmix.data.batch import Batch
from spurmix.data.sources.arrays import ImageSource
from spurmix.deploy.export import ExportReport
from spurmix.train.metrics import Evaluation
from spurmix.train.runs.files import write_text

GREY, BLUE = "#9aa5b1", "#2563eb"


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.png")
    figure.savefig(temporary, dpi=130, bbox_inches="tight")
    temporary.replace(path)


@dataclass(frozen=True)
class Story:
    """What a page says of its task: title, the data and what goes wrong, the attribute's name, the exported file."""

    title: str
    data: str
    attribute: str
    file: str


@dataclass(frozen=True)
class MixedText:
    """A mixed sample of two texts, for the page: weight of the first, texts, names of their classes."""

    lam: float
    text: str
    label: str
    partner: str
    partner_label: str


def finish(
    out: Path,
    story: Story,
    settings: dict[str, Any],
    before: Evaluation,
    after: Evaluation,
    audits: dict[str, Audit],
    exported: ExportReport,
    samples: tuple[ImageSource, Batch, Sequence[str] | None] | list[MixedText],
    began: float,
) -> dict[str, Any]:
    """Write pictures, report.html and report.json into `out` and print the table; returns the contents of the latter.

    Args:
        settings: policy, task, model and seed of the run. began: when it did, by `time.perf_counter`.
    """
    audit = audits[settings["policy"]]
    residuals = {name: a.residual for name, a in audits.items()}
    result: dict[str, Any] = {
        **settings,
        "erm": before.to_dict(),
        "debiased": after.to_dict(),
        "audit": {"raw": audit.raw, "residual": audit.residual, "policies": residuals, "details": audit.to_dict()},
        "onnx": {
            "file": exported.path.name,
            "max_abs_logit_diff": exported.max_abs_logit_diff,
            "argmax_flips": exported.argmax_flips,
            "worst_group": exported.evaluation.worst_group,
        },
        "versions": versions(),
    }
    pictures = draw(out, before, after, residuals, audit.raw, story.attribute)
    if isinstance(samples, tuple):
        pictures.append(draw_samples(out, *samples))
    result["seconds"] = round(time.perf_counter() - began, 1)
    texts = [] if isinstance(samples, tuple) else samples
    write_html(out, story, result, before, after, str(audit), pictures, texts)
    write_text(out / "report.json", json.dumps(result, indent=1))
    print_table(out, before, after, result)
    return result


def _figure(width: float, height: float, **options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("pictures need the package 'matplotlib': pip install 'spurmix[demo]'") from error
    return Figure(figsize=(width, height), **options)


def draw(
    out: Path, before: Evaluation, after: Evaluation, residuals: dict[str, float], raw: float, attribute: str
) -> list[Path]:
    """Write accuracy.png and audit.png into `out`."""
    return [
        draw_accuracy(out, [("ERM", before, GREY), ("debiased", after, BLUE)]),
        draw_audit(out, residuals, raw, attribute),
    ]


def draw_accuracy(out: Path, evaluations: list[tuple[str, Evaluation, str]]) -> Path:
    """Write accuracy.png into `out`: a bar for each group (or cell, where cells decide) and (name, evaluation, colour).

    Bars lie where names would not fit below them.
    """
    rows = [e.cells or e.groups for _, e, _ in evaluations]
    names = [row.name for row in rows[0]]
    lying = len(names) > 8 or max(len(part) for name in names for part in name.split(", ")) > 14
    size = (7.0, 1.2 + 0.2 * len(names) * (1 + len(evaluations))) if lying else (max(7.0, 0.9 * len(names)), 3.6)
    figure = _figure(*size)
    axes = figure.subplots()
    x, width = np.arange(len(names)), 0.8 / len(evaluations)
    bars, error = (axes.barh, "xerr") if lying else (axes.bar, "yerr")
    for k, ((label, _, colour), own) in enumerate(zip(evaluations, rows, strict=True)):
        found = {row.name: row for row in own}
        place = np.array([n for n, name in enumerate(names) if name in found])
        shown = [found[names[n]] for n in place]
        value = np.array([g.accuracy for g in shown])
        low, high = (np.array([getattr(g, side) for g in shown]) for side in ("low", "high"))
        whiskers = np.maximum(0, [value - low, high - value])
        shift = (k - (len(evaluations) - 1) / 2) * width
        options = {"color": colour, "label": label, error: whiskers, "capsize": 3, "ecolor": "#444444"}
        bars(x[place] + shift, value, 0.95 * width, **options)
    named = "accuracy (95% interval)"
    if lying:
        axes.set_yticks(x, [n if len(n) <= 50 else n[:49] + "…" for n in names], fontsize=8, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 1.05)
        axes.set_xlabel(named)
    else:
        axes.set_xticks(x, [name.replace(", ", "\n") for name in names], fontsize=9, parse_math=False)
        axes.set_ylim(0, 1.05)
        axes.set_ylabel(named)
    axes.legend(loc="lower center", ncols=2, frameon=False, bbox_to_anchor=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, out / "accuracy.png")
    return out / "accuracy.png"


def draw_audit(out: Path, residuals: dict[str, float], raw: float, attribute: str) -> Path:
    """Write audit.png into `out`: the correlation that each policy leaves."""
    figure = _figure(7, 3.4)
    axes = figure.subplots()
    names = list(residuals)[::-1]
    values = [residuals[n] for n in names]
    axes.barh(names, values, color=BLUE)
    for k, v in enumerate(values):
        axes.text(v + 0.01, k, f"{v:.3f}", va="center", fontsize=8)
    axes.axvline(raw, color=GREY, linestyle="--", label=f"raw data: {raw:.3f}")
    axes.set_xlim(0, 1.1)
    axes.set_xlabel(f"correlation of class and {attribute} left after mixing", parse_math=False)
    axes.legend(loc="lower center", frameon=False, bbox_to_anchor=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, out / "audit.png")
    return out / "audit.png"


def draw_curves(out: Path, losses: list[float], evaluations: list[dict[str, Any]], kept_step: int) -> Path:
    """Write curves.png into `out`: the loss of every batch, and accuracy on the validation split as training went on."""
    figure = _figure(7, 3.4)
    axes = figure.subplots()
    window = max(1, len(losses) // 100)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    named = "loss" if window == 1 else f"loss (mean of {window} batches)"
    axes.plot(np.arange(window, len(losses) + 1), smooth, color=GREY, label=named)
    axes.set_xlabel("batches")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.spines["top"].set_visible(False)
    if evaluations:
        right = axes.twinx()
        steps = [row["step"] for row in evaluations]
        for key, style in (("average", "--"), ("worst_group", "-")):
            right.plot(
                steps, [row[key] for row in evaluations], style, color=BLUE, marker=".", label=key.replace("_", " ")
            )
        right.axvline(kept_step, color="#444444", linewidth=0.8, linestyle=":")
        right.set_ylim(0, 1.05)
        right.set_ylabel("accuracy on the validation split")
        right.spines["top"].set_visible(False)
    figure.legend(loc="upper center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 1.03))
    _save(figure, out / "curves.png")
    return out / "curves.png"


def draw_samples(out: Path, source: ImageSource, sample: Batch, names: Sequence[str] | None) -> Path:
    """Write samples.png, sixteen mixed images, into `out`; names: of the classes, None for numbers."""
    figure = _figure(9, 3.5, layout="constrained")
    mean, std = source.mean.view(1, -1, 1, 1), source.std.view(1, -1, 1, 1)
    assert isinstance(sample.input, Tensor)
    pixels = (sample.input * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for k, axes in enumerate(figure.subplots(2, 8).flat):
        lam, y, z = float(sample.lam[k]), int(sample.label[k]), int(sample.partner_label[k])
        axes.imshow(pixels[k])
        parts = ((lam, y), (1 - lam, z))
        title = [f"{share:.2f} {names[n] if names else f'of class {n}'}"[:22] for share, n in parts]
        axes.set_title("\n".join(title), fontsize=8, parse_math=False)
        axes.axis("off")
    _save(figure, out / "samples.png")
    return out / "samples.png"


def write_html(
    out: Path,
    story: Story,
    result: dict[str, Any],
    before: Evaluation,
    after: Evaluation,
    audit: str,
    pictures: list[Path],
    texts: list[MixedText],
) -> None:
    """Write report.html, one file with the pictures inside."""
    render(
        out, "report.html.j2", pictures, story=story, result=result, before=before, after=after, audit=audit, texts=texts,
        pairs=list(zip(before.groups, after.groups, strict=True)),
    )  # fmt: skip


def render(out: Path, template: str, pictures: list[Path], **values: Any) -> None:
    """Write report.html into `out`, one file with the pictures inside."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ImportError("pages need the package 'jinja2': pip install 'spurmix[demo]'") from error
    environment = jinja2.Environment(loader=jinja2.PackageLoader("spurmix.cli"), autoescape=True)
    encoded = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in pictures}
    write_text(out / "report.html", environment.get_template(template).render(pictures=encoded, **values))


def print_table(out: Path, before: Evaluation, after: Evaluation, result: dict[str, Any]) -> None:
    """The result, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("group", "examples", "ERM", "debiased", title="accuracy on the test set")
    for old, new in zip(before.groups, after.groups, strict=True):
        table.add_row(old.name, str(old.count), f"{100 * old.accuracy:.1f}%", f"{100 * new.accuracy:.1f}%")
    table.add_section()
    for name in ("worst_group", "average", "adjusted_average"):
        old_value, new_value = getattr(before, name), getattr(after, name)
        table.add_row(name.replace("_", " "), "", f"{100 * old_value:.1f}%", f"{100 * new_value:.1f}%")
    console = Console()
    console.print(table)
    onnx = result["onnx"]
    console.print(
        f"model.onnx agrees with the model: max |logit difference| {onnx['max_abs_logit_diff']:.1e}, "
        f"{onnx['argmax_flips']} flips, worst group {100 * onnx['worst_group']:.1f}%"
    )
    console.print(f"{result['seconds']} s; see {out / 'report.html'}", soft_wrap=True)
