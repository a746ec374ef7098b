"""`python -m bench.debias` compares debiasing methods under one protocol, on data made from installed packages."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from bench import report
from bench.debias import heads, plots, protocol
from bench.debias.features import Known
from bench.debias.images import ImageScale
from spurmix.cli.versions import versions
from spurmix.train.sweep.methods import METHODS
from spurmix.train.sweep.statistics import SweepRow, summarize_methods

KINDS = ("images", "texts", "features")
QUICK = protocol.DebiasPlan(
    settings=("photos-2x2-95", "features-gaussian-2x2-95"), methods=("erm", "group_balanced", "dfr"), trials=1,
    development=(100,), reported=(200, 201), scale=ImageScale(bulk=1000, epochs=0.3, test=200),
)  # fmt: skip
"""A run of less than a minute. Its results mean nothing."""


def _known(text: str) -> Known:
    if text == "all":
        return "all"
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a positive integer or "all", got {text!r}')
    return int(text)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.debias", description=(__doc__ or "").strip())
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of data (default: all)")
    parser.add_argument(
        "--setting", nargs="+", default=["*"], metavar="NAME", help="names or shell patterns of settings"
    )
    parser.add_argument("--method", nargs="+", metavar="NAME", help="names of methods (default: all)")
    parser.add_argument(
        "--known", nargs="+", type=_known, default=[100], metavar="N", help='attributed examples per group, or "all"'
    )
    parser.add_argument("--trials", type=int, default=4, help="trials of each method on images and texts (default: 4)")
    parser.add_argument("--seeds", type=int, default=5, help="number of reported seeds, from 200 upwards (default: 5)")
    parser.add_argument(
        "--development", type=int, default=3, help="number of seeds of each trial, from 100 (default: 3)"
    )
    parser.add_argument("--epochs", type=float, default=12.0, help="epochs with each method on images (default: 12)")
    parser.add_argument("--bulk", type=int, default=4400, help="unattributed training images (default: 4400)")
    parser.add_argument("--digits", type=Path, metavar="FOLDER", help="test digits of MNIST for the feature settings")
    parser.add_argument("--quick", action="store_true", help="a run of less than a minute, whose results mean nothing")
    parser.add_argument("--list", action="store_true", help="list settings and methods")
    parser.add_argument(
        "--out", type=Path, default=report.RESULTS / "debias.jsonl", metavar="FILE", help="results as JSON lines"
    )
    arguments = parser.parse_args(argv)
    arguments.settings = [
        name
        for name in protocol.settings_of_kinds(arguments.kind)
        if any(fnmatch(name, pattern) for pattern in arguments.setting)
    ]
    if not arguments.settings:
        parser.error(f"--setting {' '.join(arguments.setting)} matches no setting of {', '.join(arguments.kind)}")
    known_methods = dict.fromkeys([*METHODS, *heads.METHODS])
    arguments.methods = arguments.method or list(known_methods)
    for name in arguments.methods:
        if name not in known_methods:
            parser.error(f"--method {name!r} is not one of {', '.join(known_methods)}")
    for name in ("trials", "seeds", "development", "bulk"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be a positive integer, got {getattr(arguments, name)}")
    if not arguments.epochs > 0 or math.isinf(arguments.epochs):
        parser.error(f"--epochs must be a positive number, got {arguments.epochs}")
    if arguments.out.suffix != ".jsonl":
        parser.error(f"--out must be a file name that ends in .jsonl, got {str(arguments.out)!r}")
    return arguments


def _plan(arguments: argparse.Namespace) -> protocol.DebiasPlan:
    return protocol.DebiasPlan(
        settings=tuple(arguments.settings), methods=tuple(arguments.methods), known=tuple(arguments.known),
        trials=arguments.trials, development=tuple(range(100, 100 + arguments.development)),
        reported=tuple(range(200, 200 + arguments.seeds)),
        scale=ImageScale(bulk=arguments.bulk, epochs=arguments.epochs), digits=arguments.digits,
    )  # fmt: skip


def save(rows: list[SweepRow], plan: protocol.DebiasPlan, out: Path, seconds: float) -> None:
    """Write the tables and the pictures beside the log."""
    table = protocol.audit_table(rows)
    result = {
        "versions": versions(),
        "seconds": round(seconds, 1),
        "trials": plan.trials,
        "development": plan.development,
        "reported": plan.reported,
        "methods": [summary.to_dict() for summary in summarize_methods(rows)],
        "audits": [
            dict(zip(("method", "residual", "residual_given_lam", "worst"), line, strict=True)) for line in table
        ],
        "rank_correlations": {
            name: {key: None if math.isnan(value) else value for key, value in values.items()}
            for name, values in protocol.rank_correlations(table).items()
        },
    }
    report.write_together(
        (out.with_suffix(".json"), json.dumps(result, indent=1)), (out.with_suffix(".md"), protocol.markdown(rows))
    )
    plots.plot_methods(rows, out.with_suffix(".png"))
    if len(plan.known) > 1:
        plots.plot_attributed(rows, out.with_name(f"{out.stem}-attributed.png"))
    if table:
        plots.plot_audits(rows, out.with_name(f"{out.stem}-audits.png"))


def main(argv: list[str] | None = None) -> int:
    """Run the comparison. Returns the exit status."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    if arguments.list:
        print("settings:", *arguments.settings, sep="\n  ")
        print("methods:", *arguments.methods, sep="\n  ")
        return 0
    plan, start = QUICK if arguments.quick else _plan(arguments), time.perf_counter()
    try:
        report.check_writable(arguments.out)
        rows = protocol.run_debias(plan, None if arguments.quick else arguments.out)
    except KeyboardInterrupt:
        print(f"\nbench.debias: interrupted; the same command resumes from {arguments.out}", file=sys.stderr)
        return 130
    except (ValueError, ImportError, OSError) as error:
        print(f"bench.debias: {error}", file=sys.stderr)
        return 2
    print(protocol.markdown(rows))
    if not arguments.quick:
        save(rows, plan, arguments.out, time.perf_counter() - start)
        print(f"written: {arguments.out}, and tables and pictures beside it")
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
