"""`python -m bench` compares spurmix with other libraries and with the limits of memory and disk."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from bench import report
from bench.context import Context
from bench.measure import measure
from bench.peers.client import Peers
from bench.registry import CASES, selected
from bench.row import Row


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure spurmix and other libraries in turns and write medians, quartiles and ratios.",
    )
    parser.add_argument(
        "action", nargs="?", choices=["run", "plot"], default="run", help="run: measure (default); plot: draw results"
    )
    parser.add_argument(
        "--case", action="append", default=[], metavar="NAME", help="case name or shell pattern; may be repeated"
    )
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        choices=["variant", "peer", "baseline", "limit"],
        help="measure spurmix and only this kind of contender; may be repeated",
    )
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of each contender (default: 2)"
    )
    parser.add_argument("--quick", action="store_true", help="only the quick cases, with fewer repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="output (default: bench/results/cpu-<threads>.json)")
    parser.add_argument("--list", action="store_true", help="list the cases")
    arguments = parser.parse_args(argv)
    cores = os.cpu_count() or 1
    if arguments.threads < 1:
        parser.error(f"--threads must be a positive integer, got {arguments.threads}")
    if arguments.json is not None and arguments.json.suffix != ".json":
        parser.error(f"--json must be a file name that ends in .json, got {str(arguments.json)!r}")
    if arguments.threads > cores:
        parser.error(f"--threads must be at most {cores}, the number of cores of this machine, got {arguments.threads}")
    return arguments


def _versions(peers: Peers) -> dict[str, str]:
    try:
        return peers.versions()
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"bench: .venv-peers is broken ({error}); run `make bench-peers` to repair it", file=sys.stderr)
        return {}


def _measure_cases(arguments: argparse.Namespace, context: Context, rows: list[Row]) -> None:
    """Measure the selected cases and append their rows."""
    for registered in selected(arguments.case, arguments.quick):
        try:
            case = registered.build(context)
        except RuntimeError as error:  # raised by the process of the other libraries
            print(f"\n{registered.name}: not measured: {error}", file=sys.stderr)
            continue
        if arguments.kind:
            case.contenders = [c for c in case.contenders if c.kind in ("ours", *arguments.kind)]
        if arguments.quick:
            case.repeats = min(case.repeats, 101) if case.repeats > 50 else min(case.repeats, 9)
        new = measure(registered.name, case, budget_s=2.0 if arguments.quick else 3.0)
        del case  # free its memory before the next case is built
        report.show(registered.description, new)
        rows += new


def _run(arguments: argparse.Namespace) -> int:
    """Measure and write results. Returns the exit status."""
    from spurmix.ops import library

    if library.COMPILED_CPU != "ok":
        print(f"bench: the compiled CPU kernels are not available: {library.COMPILED_CPU}", file=sys.stderr)
        return 1
    suffix = "-quick" if arguments.quick else "-part" if arguments.case or arguments.kind else ""
    target = arguments.json or report.RESULTS / f"cpu-{arguments.threads}{suffix}.json"
    try:
        report.check_writable(target)
    except OSError as error:
        print(f"bench: cannot write results to {target}: {error.strerror}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    peers = Peers(arguments.threads)
    rows: list[Row] = []
    try:
        libraries = _versions(peers)
        head = report.header(arguments.threads, libraries)
        print(", ".join(f"{k} {v}" for k, v in head.items() if k != "peers"))
        listed = ", ".join(f"{k} {v}" for k, v in libraries.items())
        print(f"other libraries: {listed or 'none; run `make bench-peers` to install them'}")
        _measure_cases(arguments, Context(arguments.threads, arguments.quick, peers, libraries), rows)
    except KeyboardInterrupt:
        print(f"\nbench: interrupted after {len({r.case for r in rows})} cases; no results written", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        peers.close()
    report.save(head, rows, target, repeated=("device", "threads", "torch", "date"))
    print(f"\nwritten: {target}, {target.with_suffix('.csv').name}")
    failed = [row for row in rows if row.error and row.kind == "ours"]
    for row in failed:
        print(f"bench: {row.case}, {row.contender}: {row.error}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark. Returns the exit status."""
    import bench.cases  # noqa: F401  (registers the cases)

    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    if arguments.list:
        for registered in CASES.values():
            print(f"{registered.name:<24} {'quick' if registered.quick else '     '}  {registered.description}")
        return 0
    if arguments.action == "plot":
        try:
            print(report.plot())
        except FileNotFoundError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        return 0
    began = time.perf_counter()
    code = _run(arguments)
    print(f"{time.perf_counter() - began:.0f} s")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
