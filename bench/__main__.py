"""`python -m bench`: spurmix against every peer that is installed and against what the memory can do."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from bench import report
from bench.context import Context
from bench.measure import Row, measure
from bench.peers.client import Peers
from bench.registry import CASES, selected


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Medians of interleaved runs. `python -m bench plot` draws the newest results.",
    )
    parser.add_argument("action", nargs="?", choices=["run", "plot"], default="run")
    parser.add_argument(
        "--case", action="append", default=[], metavar="NAME", help="a name or shell pattern; repeatable"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="the quick cases, fewer repetitions, minutes in total")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: bench/results/cpu-<threads>.json")
    parser.add_argument("--list", action="store_true", help="name the cases")
    arguments = parser.parse_args(argv)
    cores = os.cpu_count() or 1
    if arguments.threads < 1:
        parser.error(f"--threads must be 1 or more, got {arguments.threads}")
    if arguments.json is not None and arguments.json.suffix != ".json":
        parser.error(f"--json must name a file that ends in .json, got {str(arguments.json)!r}")
    if arguments.threads > cores:
        parser.error(f"--threads {arguments.threads}: this machine has {cores} cores; figures would mean nothing")
    return arguments


def _versions(peers: Peers) -> dict[str, str]:
    try:
        return peers.versions()
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"bench: .venv-peers does not work ({error}); `make bench-peers` repairs it", file=sys.stderr)
        return {}


def _run(arguments: argparse.Namespace) -> int:
    from spurmix.ops import library

    if library.COMPILED_CPU != "ok":
        print(f"bench: the compiled kernels are not in use: {library.COMPILED_CPU}", file=sys.stderr)
        return 1
    suffix = "-quick" if arguments.quick else "-part" if arguments.case else ""
    target = arguments.json or report.RESULTS / f"cpu-{arguments.threads}{suffix}.json"
    try:
        report.check_writable(target)
    except OSError as error:
        print(f"bench: results cannot be written to {target}: {error.strerror}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    peers = Peers(arguments.threads)
    rows: list[Row] = []
    complete = False
    try:
        libraries = _versions(peers)
        head = report.header(arguments.threads, libraries)
        print(", ".join(f"{k} {v}" for k, v in head.items() if k != "peers"))
        print(
            "peers: "
            + (", ".join(f"{k} {v}" for k, v in libraries.items()) or "none; `make bench-peers` installs them")
        )
        context = Context(arguments.threads, arguments.quick, peers, libraries)
        for registered in selected(arguments.case, arguments.quick):
            try:
                case = registered.build(context)
            except RuntimeError as error:  # of the peers' process
                print(f"\n{registered.name}: not measured: {error}", file=sys.stderr)
                continue
            if arguments.quick:
                case.repeats = min(case.repeats, 101) if case.repeats > 50 else min(case.repeats, 9)
            new = measure(registered.name, case, budget_s=2.0 if arguments.quick else 3.0)
            del case  # with its memory and maps, before the next one is built
            report.show(registered.description, new)
            rows += new
        complete = True
    except KeyboardInterrupt:
        print(f"\nbench: interrupted after {len({r.case for r in rows})} cases; nothing is written", file=sys.stderr)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        peers.close()
    if not complete:
        return 130
    report.save(head, rows, target)
    print(f"\nwritten: {target}, {target.with_suffix('.csv').name}")
    failed = [r for r in rows if r.note.startswith(("gate", "failed"))]
    return 1 if any(r.kind == "ours" for r in failed) else 0


def main(argv: list[str] | None = None) -> int:
    import bench.cases  # noqa: F401  (registers them)

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
