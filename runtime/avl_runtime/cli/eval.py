"""avl-eval: what each policy costs in quality and saves in memory and arithmetic."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import onnxruntime as ort

from avl_plugins.errors import PolicyError, shown
from avl_plugins.policies import parse
from avl_runtime.bench.idle import QUIET, busy_share
from avl_runtime.bench.surroundings import machine
from avl_runtime.cli.lists import count, names_of, path_name, picture_name, policies
from avl_runtime.cli.output import STDOUT, check_apart, check_file, check_picture, write_text
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.pool import map_in_processes
from avl_runtime.cli.running import add_running
from avl_runtime.cli.status import exit_status
from avl_runtime.evaluate import Case, Measured, measure, read_cases, task_cases
from avl_runtime.evaluate.measure import TIMED_STEPS
from avl_runtime.evaluate.records import read_record
from avl_runtime.evaluate.report import plot, table
from avl_runtime.evaluate.zoo import Entry, zoo
from avl_runtime.machine.installation import need
from avl_runtime.model import LVLM
from avl_runtime.package.package import load_package
from avl_runtime.tasks import TASKS

BUDGETS = (0.75, 0.5, 0.25, 0.1)
SWEEP = (
    "dense",
    *(f"fastv:layer=2,keep={keep}" for keep in BUDGETS),
    *(f"random:layer=2,keep={keep}" for keep in BUDGETS),
    *(f"avl:keep={keep}" for keep in (1, *BUDGETS)),
    *(f"random:of=avl,keep={keep}" for keep in BUDGETS),
    *(f"avl:core={core}" for core in (0.2, 0.1)),
    *(f"avl:refresh={refresh}" for refresh in (1, 8)),
    *(f"avl:text={text}" for text in (0.8, 0.6)),
    "avl+fastv",
)

MEASURING = (
    "tasks",
    "data",
    "policies",
    "zoo",
    "backend",
    "kv",
    "compute",
    "samples",
    "jobs",
    "no_times",
    "json",
)  # options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parser = make_parser()
    parsed = parser.parse_args(argv)
    for option in ("tasks", "samples"):
        if parsed.data is not None and getattr(parsed, option) != parser.get_default(option):
            parser.error(f"--{option} is for avl-tiny's own tasks, --data asks other questions")
    if parsed.zoo and parsed.policies != parser.get_default("policies"):
        parser.error("--zoo names the policies, --policies others; leave one out")
    if (parsed.package is None) == (parsed.from_json is None):
        found = "none" if parsed.package is None else "both; leave one out"
        parser.error(
            f"expected a PACKAGE to measure, or --from-json FILE of an earlier run, found {found}"
        )
    for option in MEASURING:
        if parsed.from_json and getattr(parsed, option) != parser.get_default(option):
            named = option.replace("_", "-")
            parser.error(f"--{named} is for measuring, --from-json shows what was measured")
    return exit_status("avl-eval", lambda: _run(parsed))


def _run(arguments: argparse.Namespace) -> int:
    # Before hours of work.
    check_apart([arguments.json, arguments.plot], [arguments.data, arguments.from_json])
    if arguments.plot is not None:
        check_picture(arguments.plot)
        need("eval", "matplotlib", what_for="--plot")
    report = _measured(arguments) if arguments.from_json is None else _earlier(arguments.from_json)
    rows = report["policies"]
    if arguments.plot is not None:
        title = f"{shown(report['model'])}: quality against what each policy keeps"
        plot(rows, arguments.plot, title)
    print(table(rows), file=sys.stderr if arguments.json == STDOUT else sys.stdout)
    return 0


def _earlier(path: Path) -> dict[str, Any]:
    report = read_record(path)
    if not any(row.get("standard_errors") for row in report["policies"]):
        print(
            f"avl-eval: {shown(path)} has no standard errors, so points have no bars; "
            "records written by this version have them",
            file=sys.stderr,
        )
    return report


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write what --json asks for, and return the report."""
    if arguments.json is not None:
        check_file(arguments.json)
    if arguments.data is not None:  # before any package is loaded
        read_cases(arguments.data)
    if arguments.data is None and "ocr" in arguments.tasks:
        need("eval", "scikit-learn", what_for="--tasks ocr")
    manifest = load_package(arguments.package).manifest
    chosen = [str(parse(policy)) for policy in arguments.policies]
    entries: dict[str, Entry] = {}
    if arguments.zoo:
        found_zoo = zoo(manifest)
        entries = {entry.policy: entry for entry in found_zoo.entries}
        chosen = list(entries)
        for why in found_zoo.left_out:
            print(f"avl-eval: left out: {why}", file=sys.stderr)
    jobs = [(arguments, [policy]) for policy in chosen]
    times = _surroundings() if _timed(arguments) else None
    begun = time.perf_counter()
    if arguments.jobs == 1:
        found = _measure(arguments, chosen)
    else:
        # One process a policy: ONNX Runtime's threads help a small model less than a second run.
        parts = map_in_processes(_measure, *zip(*jobs, strict=True), processes=arguments.jobs)
        found = list(chain.from_iterable(parts))
    rows = [_row(measured, entries.get(measured.policy)) for measured in found]
    report = {
        "model": manifest.model,
        "samples_per_task": arguments.samples if arguments.data is None else None,
        "data": None if arguments.data is None else arguments.data.name,
        "kv": arguments.kv,
        "compute": arguments.compute,
        "machine": f"{platform.machine()}, {platform.system()}",
        "times": times,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - begun, 1),
        "policies": rows,
    }
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")
    return report


def _timed(arguments: argparse.Namespace) -> bool:
    """Processes that run side by side would time one another."""
    return bool(arguments.jobs == 1 and not arguments.no_times)


def _surroundings() -> dict[str, Any]:
    """What times depend on; says aloud where the machine has other work."""
    busy = busy_share()
    if busy is not None and busy > QUIET:
        print(
            f"avl-eval: {busy:.0%} of the processors are busy with other work, which makes times "
            "longer; stop it, or give --no-times",
            file=sys.stderr,
        )
    return {
        "machine": machine(),
        "onnxruntime": ort.__version__,
        "busy_before": busy,
        "steps": TIMED_STEPS,
    }


def _row(measured: Measured, entry: Entry | None) -> dict[str, object]:
    """A row of the report; of the zoo's with its name there, its stage and its share."""
    row = measured.row()
    if entry is not None:
        row |= {"name": entry.name, "stage": entry.stage, "share": entry.share}
    return row


def _measure(arguments: argparse.Namespace, chosen: list[str]) -> list[Measured]:
    """Measure some policies in a process of their own."""
    threads = 1 if arguments.jobs > 1 else None
    model = LVLM.load(
        arguments.package,
        backend=arguments.backend,
        threads=threads,
        kv=arguments.kv,
        compute=arguments.compute,
    )
    cases: Iterator[Case] = (
        chain.from_iterable(task_cases(task, arguments.samples) for task in arguments.tasks)
        if arguments.data is None
        else iter(read_cases(arguments.data))
    )
    if arguments.zoo:
        chosen = _served(model, chosen)
        if not chosen:
            return []
    if arguments.jobs == 1:
        cases = _told(cases, len(chosen))
    found = measure(model, chosen, cases, times=_timed(arguments))
    if arguments.jobs > 1:
        print(f"avl-eval: {', '.join(chosen)} done", file=sys.stderr)
    return found


def _served(model: LVLM, chosen: Sequence[str]) -> list[str]:
    """Those policies of the zoo that the backend serves too; says of the others why not."""
    found = []
    for policy in chosen:
        try:
            model.loaded.check(parse(policy))
        except PolicyError as error:
            print(f"avl-eval: left out: {error}", file=sys.stderr)
        else:
            found.append(policy)
    return found


def _told(cases: Iterator[Case], policies: int) -> Iterator[Case]:
    """The same cases; says after each ten how far it has come."""
    for number, case in enumerate(cases):
        if number and number % 10 == 0:
            print(f"avl-eval: {number} questions, {policies} policies done", file=sys.stderr)
        yield case


def make_parser() -> CommandParser:
    """The parser of avl-eval."""
    parser = CommandParser(
        "avl-eval",
        "Measure quality, memory and arithmetic of policies. Answers are greedy, with the "
        "penalties and bans of the package.",
        "avl-eval avl-tiny.avl --tasks vqa --policies dense,avl --samples 10",
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", type=path_name, nargs="?", help="folder with avl.json")
    add(
        "--tasks",
        metavar="TASKS",
        type=names_of(tuple(TASKS)),
        default=list(TASKS),
        help=f"of {', '.join(TASKS)} (default: all)",
    )
    add(
        "--data",
        metavar="FILE",
        type=path_name,
        help="JSONL of images, prompt, answers and metric, instead of tasks",
    )
    add(
        "--policies",
        metavar="POLICIES",
        type=policies,
        default=list(SWEEP),
        help=f"as dense,fastv:keep=0.5,avl (default: {len(SWEEP)}, every budget of each)",
    )
    add(
        "--zoo",
        action="store_true",
        help="in place of these every policy that drops image tokens, and CAAC, as the package can "
        "serve them, at 1/2, 1/3, 1/9 and 1/18 of the tokens, with controls for each stage",
    )
    add_running(parser)
    add(
        "--samples",
        metavar="N",
        type=count,
        default=50,
        help="held-out samples a task (default: 50)",
    )
    add(
        "--jobs",
        metavar="N",
        type=count,
        default=1,
        help="policies measured at once, a thread each; with more than one no times are taken "
        "(default: 1)",
    )
    add(
        "--no-times",
        action="store_true",
        help="do not time first tokens and steps, which takes a further run of each question",
    )
    add("--json", metavar="FILE", type=path_name, help="write all figures there, - is stdout")
    add(
        "--plot",
        metavar="FILE.png",
        type=picture_name,
        help="draw quality against memory and arithmetic",
    )
    add(
        "--from-json",
        metavar="FILE",
        type=path_name,
        help="measure nothing: show and draw what --json wrote",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
