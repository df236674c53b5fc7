"""avl-tune: the cheapest policy that answers one's own questions well enough."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from avl_plugins.errors import shown
from avl_plugins.policies import parse
from avl_runtime.cli.lists import path_name, policies, share
from avl_runtime.cli.output import STDOUT, check_apart, check_file, write_text
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.running import add_running
from avl_runtime.cli.status import exit_status
from avl_runtime.evaluate.cases import Case, read_cases
from avl_runtime.evaluate.rows import DIVERGENCE, SCORE, compare_rows, harmless
from avl_runtime.evaluate.tune import COSTS, USUAL, as_json, chosen, table, tune, usual
from avl_runtime.model import LVLM
from avl_runtime.package.defaults import write_defaults
from avl_runtime.package.info import row_types
from avl_runtime.package.manifest import MANIFEST, CheckedRows
from avl_runtime.package.package import load_package


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parsed = make_parser().parse_args(argv)
    return exit_status("avl-tune", lambda: _run(parsed))


def _run(arguments: argparse.Namespace) -> int:
    check_apart([arguments.json], [arguments.data])
    if arguments.json is not None:
        check_file(arguments.json)
    cases = read_cases(arguments.data)
    computed = load_package(arguments.package).manifest.dtype  # whatever was found before
    kv = computed if arguments.kv == "auto" else arguments.kv
    model = _loaded(arguments, kv)
    if arguments.write:
        check_file(model.package.folder / MANIFEST)
    named = usual(model) if arguments.policies is None else arguments.policies
    for policy in named:
        model.loaded.check(parse(policy))

    def told(questions: int, count: int) -> None:
        print(f"avl-tune: {questions} questions, {count} policies", file=sys.stderr)

    least, cost = arguments.min_quality, arguments.cost
    trials = tune(model, named, cases, least, cost, told)
    picked = chosen(trials, least, sure=arguments.sure)
    out = sys.stderr if arguments.json == STDOUT else sys.stdout
    print(table(trials, least, picked), file=out)
    spread = f"95 % interval {picked.low:.3f} to {picked.high:.3f}"
    print(
        f"\n{picked.policy}: {picked.quality:.3f} of dense attention's scores ({spread}), "
        f"{picked.kv:.0%} of its KV, {picked.flops:.0%} of its arithmetic",
        file=out,
    )
    if picked.low < least:
        print(
            f"avl-tune: {picked.cases} questions do not make it sure that quality is at least "
            f"{least:g}; ask more, or give --sure",
            file=sys.stderr,
        )
    rows = _checked(arguments, model, picked.policy, cases) if arguments.kv == "auto" else None
    if rows is not None:
        print(_rows_line(rows), file=out)
    if arguments.json is not None:
        report = {
            "model": model.package.manifest.model,
            "data": arguments.data.name,
            "min_quality": least,
            "cost": cost,
            "chosen": picked.policy,
            "policies": [as_json(one) for one in trials],
            "rows": None if rows is None else {**asdict(rows), "harmless": harmless(rows)},
        }
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")
    if arguments.write:
        kept = rows if rows is not None and harmless(rows) else None
        write_defaults(model.package, picked.policy, kept)
        rows_too = "" if kept is None else f" with rows in {kept.rows}"
        print(
            f"avl-tune: {shown(arguments.package)} runs under {picked.policy}{rows_too} from now "
            "on, unless a request names another",
            file=sys.stderr,
        )
    return 0


def _loaded(arguments: argparse.Namespace, kv: str) -> LVLM:
    backend, compute = arguments.backend, arguments.compute
    return LVLM.load(arguments.package, backend=backend, kv=kv, compute=compute, policy="dense")


def _checked(
    arguments: argparse.Namespace, model: LVLM, policy: str, cases: Sequence[Case]
) -> CheckedRows | None:
    """Rows of 8 bits under a policy; None where the backend or the package has none."""
    if model.loaded.backend.name != "ort-cpu" or "int8" not in row_types(model.package.manifest):
        return None
    print("avl-tune: the same questions with rows of 8 bits", file=sys.stderr)
    return compare_rows(model, _loaded(arguments, "int8"), policy, cases).checked()


def _rows_line(rows: CheckedRows) -> str:
    found = "harmless" if harmless(rows) else "not harmless"
    return (
        f"rows in {rows.rows}: {found}: scores differ by {rows.apart:.4f} (at most {SCORE}), the "
        f"divergence is {rows.divergence:.1e} nats a token (at most {DIVERGENCE}), over "
        f"{rows.tokens} tokens"
    )


def make_parser() -> CommandParser:
    """The parser of avl-tune."""
    parser = CommandParser(
        "avl-tune",
        "Find the cheapest policy whose answers to your own questions are nearly as good as those "
        "of dense attention. Answers are greedy, with the penalties and bans of the package.",
        "avl-tune avl-tiny.avl --data questions.jsonl --min-quality 0.95",
    )
    add = parser.add_argument
    add("package", metavar="PACKAGE", type=path_name, help="folder with avl.json")
    add(
        "--data",
        metavar="FILE",
        type=path_name,
        required=True,
        help="JSONL of images, prompt, answers and metric, as avl-eval takes it (no default)",
    )
    add(
        "--min-quality",
        metavar="SHARE",
        type=share,
        default=0.98,
        help="of dense attention's scores (default: 0.98)",
    )
    add(
        "--cost",
        choices=COSTS,
        default="kv",
        help="what is to be small: bytes of the cache, or arithmetic (default: kv)",
    )
    add(
        "--policies",
        metavar="POLICIES",
        type=policies,
        help=f"as fastv:keep=0.5,avl (default: those of {len(USUAL)} that the package can serve)",
    )
    add(
        "--sure",
        action="store_true",
        help="choose a policy only if the lower end of its interval is good enough, too",
    )
    add(
        "--write",
        action="store_true",
        help="make the chosen policy the package's default, and rows of 8 bits if harmless",
    )
    add_running(parser)
    add("--json", metavar="FILE", type=path_name, help="write all figures there, - is stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
