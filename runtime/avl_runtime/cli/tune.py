"""avl-tune: the cheapest policy that answers one's own questions well enough."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from avl_plugins.errors import shown
from avl_plugins.policies import parse
from avl_runtime.cli.lists import path_name, policies, share
from avl_runtime.cli.output import STDOUT, check_apart, check_file, write_text
from avl_runtime.cli.parser import CommandParser
from avl_runtime.cli.running import add_running
from avl_runtime.cli.status import exit_status
from avl_runtime.evaluate.cases import read_cases
from avl_runtime.evaluate.tune import COSTS, USUAL, as_json, chosen, table, tune, usual
from avl_runtime.model import LVLM
from avl_runtime.package.default_policy import write_default_policy
from avl_runtime.package.manifest import MANIFEST


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 1 (a failure), 2 (usage) or 130."""
    parsed = make_parser().parse_args(argv)
    return exit_status("avl-tune", lambda: _run(parsed))


def _run(arguments: argparse.Namespace) -> int:
    check_apart([arguments.json], [arguments.data])
    if arguments.json is not None:
        check_file(arguments.json)
    cases = read_cases(arguments.data)
    model = LVLM.load(
        arguments.package,
        backend=arguments.backend,
        kv=arguments.kv,
        compute=arguments.compute,
        policy="dense",
    )
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
    if arguments.json is not None:
        report = {
            "model": model.package.manifest.model,
            "data": arguments.data.name,
            "min_quality": least,
            "cost": cost,
            "chosen": picked.policy,
            "policies": [as_json(one) for one in trials],
        }
        write_text(arguments.json, json.dumps(report, indent=2) + "\n")
    if arguments.write:
        write_default_policy(model.package, picked.policy)
        print(
            f"avl-tune: {shown(arguments.package)} runs under {picked.policy} from now on, unless "
            "a request names another",
            file=sys.stderr,
        )
    return 0


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
    add("--write", action="store_true", help="make the chosen policy the package's default")
    add_running(parser)
    add("--json", metavar="FILE", type=path_name, help="write all figures there, - is stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
