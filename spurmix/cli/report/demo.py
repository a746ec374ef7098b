"""The report of a demo: pictures, report.html, report.json and a table on the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from spurmix.cli.report.methods import MethodSummary, columns, summarize
from spurmix.cli.report.page import write_page
from spurmix.cli.report.pictures import BLUE, GRAY, draw_accuracy, draw_audit, draw_samples
from spurmix.cli.report.text import ImageSamples, ReportText, TextSample
from spurmix.cli.terminal import cell, show
from spurmix.cli.versions import versions
from spurmix.train.runs.files import write_text

if TYPE_CHECKING:
    from spurmix.cli.demo.experiment import SeedResult
    from spurmix.deploy.export import ExportReport
    from spurmix.train.evaluation import Evaluation


class _OnnxResult(TypedDict):
    file: str
    max_abs_logit_diff: float
    argmax_flips: int
    worst_group: float


def write_report(
    out: Path,
    text: ReportText,
    settings: dict[str, object],
    results: list[SeedResult],
    *,
    exported: ExportReport,
    samples: ImageSamples | list[TextSample],
    start: float,
) -> dict[str, object]:
    """Write the report and print a table.

    Args:
        out: Folder to write to.
        text: Texts of the page.
        settings: Policy, task, model and seed of the demo.
        results: Results of every seed. The report shows the first seed, and a summary of all.
        exported: Result of the export.
        samples: Mixed training samples.
        start: Start of the demo, from `time.perf_counter`.

    Returns:
        The contents of report.json.
    """
    policy, first = str(settings["policy"]), results[0]
    before, after, audits = first.test["erm"], first.test[policy], first.audits
    audit = audits[policy]
    summaries = summarize(results)
    shown = summaries if len(summaries) > 2 or len(results) > 1 else []
    details = audit.to_dict()
    residuals = {name: (a.residual, a.residual_given_lam) for name, a in audits.items()}
    onnx: _OnnxResult = {
        "file": exported.path.name,
        "max_abs_logit_diff": exported.max_abs_logit_diff,
        "argmax_flips": exported.argmax_flips,
        "worst_group": exported.evaluation.worst_group,
    }
    pictures = [
        draw_accuracy(out, [("ERM", before, GRAY), ("debiased", after, BLUE)]),
        draw_audit(out, residuals, audit.raw, text.attribute),
    ]
    if isinstance(samples, ImageSamples):
        pictures.append(draw_samples(out, samples))
    seconds = round(time.perf_counter() - start, 1)
    result: dict[str, object] = {
        **settings,
        "erm": before.to_dict(),
        "debiased": after.to_dict(),
        "prior": first.prior,
        "methods": {summary.name: summary.to_dict() for summary in summaries},
        "seeds": [result.seed for result in results],
        "kept": [dict(result.kept) for result in results],
        "audit": {
            "raw": details["raw"],
            "residual": details["residual"],
            "residual_given_lam": details["residual_given_lam"],
            "policies": {name: a.to_dict()["residual"] for name, a in audits.items()},
            "policies_given_lam": {name: a.to_dict()["residual_given_lam"] for name, a in audits.items()},
            "details": details,
        },
        "onnx": onnx,
        "versions": versions(),
        "seconds": seconds,
    }
    write_page(
        out, "demo.html.j2", pictures, text=text, result=result, before=before, after=after, audit=str(audit),
        texts=samples if isinstance(samples, list) else [],
        pairs=list(zip(before.groups, after.groups, strict=True)),
        methods=[summary.cells() for summary in shown], columns=columns(len(results)),
        seeds=[result.seed for result in results],
    )  # fmt: skip
    write_text(out / "report.json", json.dumps(result, indent=1))
    _print_table(before, after)
    if shown:
        _print_methods(shown, len(results))
    print(
        f"{onnx['file']} was verified on the test set: maximum logit difference {onnx['max_abs_logit_diff']:.1e}, "
        f"{onnx['argmax_flips']} changed predictions, worst group {100 * onnx['worst_group']:.1f}%"
    )
    show(f"finished in {seconds} s; see {out / 'report.html'}")
    return result


def _print_table(before: Evaluation, after: Evaluation) -> None:
    """Print the accuracy of every group before and after debiasing."""
    from rich.console import Console
    from rich.table import Table

    table = Table("group", "examples", "ERM", "debiased", title="accuracy on the test set")
    for old, new in zip(before.groups, after.groups, strict=True):
        table.add_row(cell(old.name), str(old.count), f"{100 * old.accuracy:.1f}%", f"{100 * new.accuracy:.1f}%")
    table.add_section()
    for name in ("worst_group", "average", "adjusted_average"):
        values = (f"{100 * getattr(evaluation, name):.1f}%" for evaluation in (before, after))
        table.add_row(name.replace("_", " "), "", *values)
    Console().print(table)


def _print_methods(summaries: list[MethodSummary], seeds: int) -> None:
    """Print the worst-group accuracy of every method."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns(seeds), title="methods, equally long training")
    for summary in summaries:
        table.add_row(*summary.cells())
    Console().print(table)
