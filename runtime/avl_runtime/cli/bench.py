"""avl-bench: speed and memory of policies, side by side with other libraries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from avl_runtime.bench.candidates import PEERS, own_candidates, peer_candidates
from avl_runtime.bench.measure import Settings, measure
from avl_runtime.bench.report import as_csv, as_json, as_markdown
from avl_runtime.bench.workload import TEXT_TOKENS, make_workload
from avl_runtime.cli.lists import count, names, policies
from avl_runtime.cli.output import check_file, write_text
from avl_runtime.cli.status import exit_status
from avl_runtime.package import load_package
from avl_runtime.processor import Processor
from avl_runtime.resources import cores

POLICIES = ("dense", "fastv", "avl", "avl+fastv")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parsed = _parser().parse_args(argv)
    return exit_status("avl-bench", lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> int:
    for path in filter(None, (parsed.json, parsed.csv)):
        check_file(path)
    packages = [load_package(folder) for folder in (parsed.package, *parsed.beside)]
    package = packages[0]
    candidates = own_candidates(packages, parsed.policies, parsed.backends)
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
    print(as_markdown(environment, rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="avl-bench",
        description="Measure speed and memory of policies, and of other libraries on the same "
        "checkpoint. Candidates take turns, each in a process of its own, and decode greedily "
        "without penalties, whatever the checkpoint's generation settings.",
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", type=Path, help="folder with avl.json")
    add(
        "--policies",
        type=policies,
        default=list(POLICIES),
        help="as dense,fastv:keep=0.5,avl (default: %(default)s)",
    )
    add("--backends", type=names, default=["ort-cpu"], help="of avl (default: ort-cpu)")
    add(
        "--beside",
        metavar="PACKAGE",
        type=Path,
        action="append",
        default=[],
        help="a package of the same model, as with INT4 weights; repeat it for several",
    )
    add("--against", type=names, default=[], help=f"of {','.join(PEERS)}")
    add("--peer-python", metavar="PYTHON", help="for peers that this Python has not")
    add(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="for peers (default: the one the package was made from)",
    )
    add(
        "--visual-tokens",
        metavar="N",
        type=_none_or_more,
        help="pictures are repeated to reach N (default: one picture)",
    )
    add(
        "--text-tokens",
        metavar="N",
        type=count,
        help=f"of the prompt, its template included (default: {TEXT_TOKENS})",
    )
    add("--new-tokens", metavar="N", type=count, default=64, help="default: 64")
    add("--batch", metavar="N", type=count, default=1, help="sequences decoded together")
    add("--threads", metavar="N", type=count, help="default: all processors")
    add(
        "--starts",
        metavar="N",
        type=count,
        default=1,
        help="start every candidate's process anew N times, each for all rounds (default: 1)",
    )
    add("--repeats", metavar="N", type=count, default=5, help="rounds that count (default: 5)")
    add("--warm-up", metavar="N", type=_none_or_more, default=1, help="rounds that do not")
    add(
        "--idle-wait",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="wait so long before each run for an idle machine, 0 for not at all (default: 60)",
    )
    add("--json", metavar="FILE", type=Path, help="write all figures there")
    add("--csv", metavar="FILE", type=Path, help="write a line a candidate there")
    return parser


def _none_or_more(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {text}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or more seconds, found {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
