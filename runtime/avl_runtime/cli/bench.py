"""avl-bench: speed and memory of policies, side by side with other libraries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from avl_runtime.bench.against import PEERS, peer_candidates
from avl_runtime.bench.candidates import own_candidates
from avl_runtime.bench.measure import Settings, measure
from avl_runtime.bench.report import as_csv, as_json, as_markdown
from avl_runtime.bench.workload import TEXT_TOKENS, make_workload
from avl_runtime.cli.lists import (
    count,
    names_of,
    none_or_more,
    path_name,
    policies,
    seconds,
    some_name,
    threads,
)
from avl_runtime.cli.output import STDOUT, check_apart, check_file, write_text
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.status import exit_status
from avl_runtime.execute.protocol import BACKENDS, COMPUTES, KV
from avl_runtime.machine.resources import cores
from avl_runtime.package.package import load_package
from avl_runtime.prompts.processor import Processor

POLICIES = ("dense", "fastv", "avl", "avl+fastv")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parser = make_parser()
    parsed = parser.parse_args(argv)
    _check_usage(parser, parsed)
    return exit_status("avl-bench", lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> int:
    for path in filter(None, (parsed.json, parsed.csv)):
        check_file(path)
    check_apart([parsed.json, parsed.csv])
    packages = [load_package(folder) for folder in (parsed.package, *parsed.beside)]
    package = packages[0]
    candidates = own_candidates(
        packages, parsed.policies, parsed.backends, parsed.kv, parsed.compute
    )
    candidates += peer_candidates(packages, parsed.against, parsed.peer_python, parsed.checkpoint)
    workload = make_workload(
        Processor.from_package(package),
        package.manifest,
        parsed.visual_tokens,
        parsed.text_tokens,
        parsed.new_tokens,
        parsed.batch,
    )
    settings = Settings(
        parsed.threads or cores(), parsed.starts, parsed.repeats, parsed.warm_up, parsed.idle_wait
    )
    environment, rows = measure(
        candidates,
        workload,
        package.manifest,
        settings,
        lambda line: print(f"avl-bench: {line}", file=sys.stderr, flush=True),
    )
    if parsed.json is not None:
        write_text(parsed.json, json.dumps(as_json(environment, rows), indent=2) + "\n")
    if parsed.csv is not None:
        write_text(parsed.csv, as_csv(rows))
    alone = STDOUT in (parsed.json, parsed.csv)
    print(as_markdown(environment, rows), file=sys.stderr if alone else sys.stdout)
    return 0


def _check_usage(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Refuse options that nothing would look at."""
    if parsed.json == parsed.csv == STDOUT:
        parser.error("--json - and --csv -: stdout takes one of them, write the other to a file")
    for option in ("peer_python", "checkpoint"):
        if getattr(parsed, option) is not None and not parsed.against:
            parser.error(f"--{option.replace('_', '-')} is for peers, name them with --against")


def make_parser() -> CommandParser:
    """The parser of avl-bench."""
    parser = CommandParser(
        "avl-bench",
        "Measure speed and memory of policies, and of other libraries on the same "
        "checkpoint. Candidates take turns, each in a process of its own, and decode greedily "
        "without penalties, whatever the checkpoint's generation settings.",
        "avl-bench avl-tiny.avl --policies dense,avl --idle-wait 0",
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", type=path_name, help="folder with avl.json")
    add(
        "--policies",
        type=policies,
        default=list(POLICIES),
        help=f"as dense,fastv:keep=0.5,avl (default: {','.join(POLICIES)})",
    )
    add(
        "--backends",
        metavar="BACKENDS",
        type=names_of(BACKENDS),
        default=["ort-cpu"],
        help=f"of {', '.join(BACKENDS)} (default: ort-cpu)",
    )
    add(
        "--kv",
        metavar="KINDS",
        type=names_of(KV),
        default=["auto"],
        help=f"how cached rows are kept, of {', '.join(KV)} (default: auto)",
    )
    add(
        "--compute",
        metavar="COMPUTES",
        type=names_of(COMPUTES),
        default=["auto"],
        help=f"what prompts are multiplied in on ort-cpu, of {', '.join(COMPUTES)} (default: auto)",
    )
    add(
        "--beside",
        metavar="PACKAGE",
        type=path_name,
        action="append",
        default=[],
        help="a package of the same model, as with INT4 weights; repeat it for several",
    )
    add(
        "--against",
        metavar="PEERS",
        type=names_of(tuple(PEERS)),
        default=[],
        help=f"other libraries, of {', '.join(PEERS)}",
    )
    add(
        "--peer-python",
        metavar="PYTHON",
        type=some_name,
        help="runs the peers that this Python has not (default: this Python)",
    )
    add(
        "--checkpoint",
        metavar="DIR",
        type=path_name,
        help="what peers load (default: what the package was made from)",
    )
    add(
        "--visual-tokens",
        metavar="N",
        type=none_or_more,
        help="pictures are repeated to reach N (default: one picture)",
    )
    add(
        "--text-tokens",
        metavar="N",
        type=count,
        help=f"of the prompt, its template included (default: {TEXT_TOKENS})",
    )
    add("--new-tokens", metavar="N", type=count, default=64, help="of each answer (default: 64)")
    add(
        "--batch",
        metavar="N",
        type=count,
        default=1,
        help="sequences decoded together (default: 1)",
    )
    add("--threads", metavar="N", type=threads, help="CPU threads (default: all processors)")
    add(
        "--starts",
        metavar="N",
        type=count,
        default=1,
        help="start every candidate's process anew N times, each for all rounds (default: 1)",
    )
    add("--repeats", metavar="N", type=count, default=5, help="rounds that count (default: 5)")
    add(
        "--warm-up",
        metavar="N",
        type=none_or_more,
        default=1,
        help="rounds before them that do not count (default: 1)",
    )
    add(
        "--idle-wait",
        metavar="SECONDS",
        type=seconds,
        default=60.0,
        help="wait so long before each run for an idle machine, 0 for not at all (default: 60)",
    )
    add("--json", metavar="FILE", type=path_name, help="write all figures there, - is stdout")
    add("--csv", metavar="FILE", type=path_name, help="write a line a candidate there, - is stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
